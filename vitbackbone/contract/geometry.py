"""The geometry of a batch: where its patches lie, in pixels of the images and of the photos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from vitbackbone.contract.repeated import Repeated, one_value
from vitbackbone.images import View

Images = Tensor | Sequence[Tensor]  # (B, 3, H, W) float, clips (B, T, 3, H, W), or a list of (3, Hi, Wi)


@dataclass(frozen=True)
class Geometry:
    """The places of the patches of a batch.

    Pixel coordinates are continuous: (x, y) runs from (0, 0), the top-left corner of the image, to (W, H), the
    bottom-right one. Without `views`, source pixels are the pixels that the backbone was given. With `views`, they are
    the pixels of the upright photo, before resize and crop.

    If all images have one size, `sizes`, `grids` and `padding` are `Repeated`. A `Repeated` equals a tuple with an
    entry for each image, but its length may be symbolic, so that a traced graph accepts any batch size.
    """

    sizes: Sequence[tuple[int, int]]  # (H, W) of each image that the backbone was given, before padding
    stride: int  # pixels from one patch to the next
    views: tuple[View, ...] | None = None  # how each image was cut from its photo
    steps: int | None = field(default=None, repr=False)  # steps of time in the maps of clips; None for images

    @classmethod
    def of(cls, images: Images, stride: int, tubelet: int = 1) -> "Geometry":
        """Return the geometry of a batch (B, C, H, W), of clips (B, T, C, H, W), or of a list of images (C, Hi, Wi).

        `tubelet`: the number of frames in one step of time.
        """
        if isinstance(images, Tensor):
            steps = None if images.ndim == 4 else (images.shape[1] - 1) // tubelet + 1
            return cls(Repeated((images.shape[-2], images.shape[-1]), images.shape[0]), stride, steps=steps)
        return cls(tuple((image.shape[1], image.shape[2]) for image in images), stride)

    @property
    def one_size(self) -> bool:
        """Whether all images have the same size."""
        return one_value(self.sizes)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the tallest and the widest image."""
        return _largest(self.sizes)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the feature map, which holds the tallest and the widest image."""
        return _largest(self.grids)

    @property
    def shape(self) -> tuple[int, ...]:
        """(h, w) of the feature map, or (t, h, w) for clips."""
        return self.grid if self.steps is None else (self.steps, *self.grid)

    @property
    def grids(self) -> Sequence[tuple[int, int]]:
        """(h, w) of each image's own patch grid."""
        return self._of_each(lambda height, width: ((height - 1) // self.stride + 1, (width - 1) // self.stride + 1))

    @property
    def padded_size(self) -> tuple[int, int]:
        """(H, W) in pixels of the area that the feature map covers, padding included."""
        return self.grid[0] * self.stride, self.grid[1] * self.stride

    @property
    def padding(self) -> Sequence[tuple[int, int]]:
        """(bottom, right) in pixels of the padding of each image."""
        height, width = self.padded_size
        return self._of_each(lambda h, w: (height - h, width - w))

    def through(self, views: Sequence[View]) -> "Geometry":
        """Return the same geometry with the photos' pixels as source pixels.

        `views`: the `View` of each photo, from `Preprocess.view`.
        Raises `ValueError` if the size of a view differs from the size of its image.
        """
        if tuple(view.size for view in views) != self.sizes:
            raise ValueError(
                f"the views have sizes {[v.size for v in views]}, but the images have {self.sizes}; want equal sizes"
            )
        return replace(self, views=tuple(views))

    def image(self, index: int) -> "Geometry":
        """Return the geometry of one image of the batch."""
        return replace(self, sizes=Repeated(self.sizes[index], 1), views=(self.views[index],) if self.views else None)

    def box(self, image: int, row: int, column: int) -> tuple[float, float, float, float]:
        """Return (left, top, right, bottom) of a patch in source pixels.

        A patch that shows padding, or the border of a letterbox, reaches beyond the image. Raises `IndexError` if the
        image has no such patch.
        """
        self._check_patch(image, row, column)
        left, top = self._to_source(image, column * self.stride, row * self.stride)
        right, bottom = self._to_source(image, (column + 1) * self.stride, (row + 1) * self.stride)
        return left, top, right, bottom

    def patch(self, image: int, x: float, y: float) -> tuple[int, int]:
        """Return (row, column) of the patch that shows the source pixel (x, y).

        Raises `IndexError` if no patch shows it: the pixel is outside the image, or was cropped away.
        """
        column, row = self._from_source(image, x, y)
        height, width = self.sizes[image]
        source = self.views[image].source if self.views else (height, width)
        inside = 0 <= x < source[1] and 0 <= y < source[0]  # the border of a letterbox belongs to no pixel of the photo
        if not (inside and 0 <= column < width and 0 <= row < height):
            raise IndexError(f"pixel (x={x}, y={y}) of image {image} is outside the photo or was cropped away")
        return int(row // self.stride), int(column // self.stride)

    def _of_each(self, rule: Callable[[int, int], tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """Return the result of a rule for the size of each image."""
        if isinstance(self.sizes, Repeated):
            return Repeated(rule(*self.sizes.value), self.sizes.times)
        return tuple(rule(height, width) for height, width in self.sizes)

    def _check_patch(self, image: int, row: int, column: int) -> None:
        h, w = self.grids[image]
        if not (0 <= row < h and 0 <= column < w):
            raise IndexError(f"image {image} has {h} x {w} patches, and none at row {row}, column {column}")

    def _to_source(self, image: int, x: float, y: float) -> tuple[float, float]:
        return self.views[image].to_source(x, y) if self.views else (x, y)

    def _from_source(self, image: int, x: float, y: float) -> tuple[float, float]:
        return self.views[image].from_source(x, y) if self.views else (x, y)


def _largest(pairs: Sequence[tuple[int, int]]) -> tuple[int, int]:
    if isinstance(pairs, Repeated):
        return pairs.value
    return max((a for a, _ in pairs), default=0), max((b for _, b in pairs), default=0)


def _columns(pairs: Sequence[tuple[int, int]]) -> tuple[list[int], list[int]]:
    return [a for a, _ in pairs], [b for _, b in pairs]
