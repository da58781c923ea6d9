"""Where the patches of a batch lie, in pixels of the images and of the photos."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from vitbackbone.contract.repeated import Repeated, one_value
from vitbackbone.images import View

Images = Tensor | Sequence[Tensor]  # (B, 3, H, W) float, or a list of (3, Hi, Wi)


@dataclass(frozen=True)
class Geometry:
    """Where the patches of a batch lie.

    Pixels are continuous: (0, 0) is the top-left corner of the image and (H, W) the bottom-right one. Without
    `views`, source pixels are the pixels handed to the backbone; with them, those of the photo, before resize and
    crop and after its EXIF orientation was applied.

    Where all images have one size, `sizes` and what follows from it are `Repeated`: equal to a tuple with an entry for
    each image, but not made before it is read, so that a traced graph takes any batch.
    """

    sizes: Sequence[tuple[int, int]]  # (H, W) of each image as handed to the backbone, before padding
    stride: int  # pixels from one patch to the next
    views: tuple[View, ...] | None = None  # how each image was cut from its photo

    @classmethod
    def of(cls, images: Images, stride: int) -> "Geometry":
        """The geometry of a batch (B, C, H, W), or of a list of images (C, Hi, Wi)."""
        if isinstance(images, Tensor):
            return cls(Repeated((images.shape[2], images.shape[3]), images.shape[0]), stride)
        return cls(tuple((image.shape[1], image.shape[2]) for image in images), stride)

    @property
    def one_size(self) -> bool:
        """Whether all images have the same size."""
        return one_value(self.sizes)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) that holds each of the images: where they have one size, that size."""
        return _largest(self.sizes)

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w) of the feature map: enough patches for the tallest and the widest image."""
        return _largest(self.grids)

    @property
    def grids(self) -> Sequence[tuple[int, int]]:
        """(h, w) of each image's own patches."""
        return self._of_each(lambda height, width: ((height - 1) // self.stride + 1, (width - 1) // self.stride + 1))

    @property
    def padded_size(self) -> tuple[int, int]:
        """(H, W) that the feature map covers, padding at the bottom and right included."""
        return self.grid[0] * self.stride, self.grid[1] * self.stride

    @property
    def padding(self) -> Sequence[tuple[int, int]]:
        """Pixels added to each image at its (bottom, right)."""
        height, width = self.padded_size
        return self._of_each(lambda h, w: (height - h, width - w))

    def through(self, views: Sequence[View]) -> "Geometry":
        """The same geometry in the pixels of the photos, given the `View` of each (`Preprocess.view`).

        Raises `ValueError` if a view made another size than the backbone was given.
        """
        if tuple(view.size for view in views) != self.sizes:
            raise ValueError(f"the views have sizes {[v.size for v in views]}, the backbone was given {self.sizes}")
        return replace(self, views=tuple(views))

    def image(self, index: int) -> "Geometry":
        """The geometry of one image of the batch."""
        return replace(self, sizes=Repeated(self.sizes[index], 1), views=(self.views[index],) if self.views else None)

    def box(self, image: int, row: int, column: int) -> tuple[float, float, float, float]:
        """(left, top, right, bottom) of a patch in source pixels. The part of it in the padding, or in the border of a
        letterbox, lies outside the image. Raises `IndexError` if the image has no such patch."""
        self._check_patch(image, row, column)
        left, top = self._to_source(image, column * self.stride, row * self.stride)
        right, bottom = self._to_source(image, (column + 1) * self.stride, (row + 1) * self.stride)
        return left, top, right, bottom

    def patch(self, image: int, x: float, y: float) -> tuple[int, int]:
        """(row, column) of the patch that shows the source pixel (x, y). Raises `IndexError` where none does: outside
        the image, or cropped away."""
        column, row = self._from_source(image, x, y)
        height, width = self.sizes[image]
        source = self.views[image].source if self.views else (height, width)
        inside = 0 <= x < source[1] and 0 <= y < source[0]  # the border of a letterbox is seen, but is no photo
        if not (inside and 0 <= column < width and 0 <= row < height):
            raise IndexError(f"pixel (x={x}, y={y}) is not within what the backbone saw of image {image}")
        return int(row // self.stride), int(column // self.stride)

    def _of_each(self, rule: Callable[[int, int], tuple[int, int]]) -> Sequence[tuple[int, int]]:
        """What a rule makes of the size of each image."""
        if isinstance(self.sizes, Repeated):
            return Repeated(rule(*self.sizes.value), self.sizes.times)
        return tuple(rule(height, width) for height, width in self.sizes)

    def _check_patch(self, image: int, row: int, column: int) -> None:
        h, w = self.grids[image]
        if not (0 <= row < h and 0 <= column < w):
            raise IndexError(f"image {image} has a grid of {h} x {w} patches, none at row {row}, column {column}")

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
