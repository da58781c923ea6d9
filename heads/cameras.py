"""Several named cameras, each with its own image size, as one sequence of tokens with a mask.

Axes: `B` batch, `T` time steps, `N` tokens, `D` width of a token, `H W` pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, TypeVar, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from heads.attached import check_heads
from heads.base import Head
from heads.options import Size, check
from heads.unread import Wanted, remember, rest
from vitbackbone import BackboneModule, Features, Geometry, Pooled, evaluating

MISSING = ("mask", "refuse")
Batch = tuple[int, ...]  # (B,) or (B, T)


@dataclass(frozen=True, eq=False)
class CameraTokens:
    """The tokens that a policy reads. Where a camera is missing, its tokens are zeros and the mask is False."""

    tokens: Float[Tensor, "... N D"]  # (B, N, D) or (B, T, N, D), one camera after another
    mask: Bool[Tensor, "... N"]  # True where there is a token
    slices: Mapping[str, slice]  # where each camera's tokens are along N

    def camera(self, name: str) -> Float[Tensor, "... n D"]:
        """Return the tokens of one camera."""
        return self.tokens[..., self.slices[name], :]


@dataclass(frozen=True, eq=False)
class CameraFeatures:
    """The backbones' features of a batch, before any head. Keep them while only the heads learn.

    `features[camera][i]` holds the i-th layer that the camera's head reads, for the B * T images row by row. It is zero
    where the camera is missing.
    """

    features: Mapping[str, tuple[Features, ...]]
    present: Mapping[str, Bool[Tensor, "..."]]  # (B,) or (B, T) for each camera

    def __getitem__(self, rows: Tensor | slice) -> "CameraFeatures":
        """Return the features of some samples, by a slice of B, indices, or a mask (B,), with all their time steps."""
        anywhere = next(iter(self.present.values()))
        numbers = torch.arange(anywhere.numel(), device=anywhere.device).view(anywhere.shape)
        indices = numbers[rows].flatten()
        features = {name: tuple(_rows(each, indices) for each in layers) for name, layers in self.features.items()}
        return CameraFeatures(features, {name: present[rows] for name, present in self.present.items()})


class CameraEncoder(nn.Module):
    """A backbone and a head for each named camera, which give one sequence of tokens.

        encoder = CameraEncoder({"front": (240, 320), "wrist": (128, 128)}, backbone, create_head("map_pool", spec))
        encoder({"front": front, "wrist": wrist}).tokens  # (B, 2, D), or (B, T, 2, D) with time

    `cameras`: the (H, W) of each camera's images, in the order of their tokens.
    `backbones`, `heads`: one that all cameras share, or a dict with one for each camera. A head gives one token (B, D),
    or several (B, N, D).
    `missing`: if a camera is missing, `"mask"` gives zeros and a mask that is False; `"refuse"` raises.

    The features of a frozen backbone do not change in training. Compute `features` once, keep the result, and train
    on `tokens(kept[rows])`.

    Raises `ValueError` if names do not match, or if a head does not fit its backbone or cannot divide the map of its
    camera. The tokens of all cameras must have one width.
    """

    def __init__(
        self,
        cameras: Mapping[str, tuple[int, int]],
        backbones: BackboneModule | Mapping[str, BackboneModule],
        heads: Head | Mapping[str, Head],
        missing: str = "mask",
    ) -> None:
        super().__init__()
        if not isinstance(cameras, Mapping) or not cameras:
            raise ValueError("CameraEncoder: no cameras; want a dict of at least one, as in {'front': (240, 320)}")
        check("CameraEncoder, cameras", dict.fromkeys(cameras, Size), cameras)
        if missing not in MISSING:
            raise ValueError(f"CameraEncoder: missing={missing!r}; want one of {', '.join(MISSING)}")
        self.cameras = {name: (size[0], size[1]) for name, size in cameras.items()}
        self.missing = missing
        # Lists, because a camera's name may have dots and a module's may not. A shared module is in its list once.
        self.backbones = nn.ModuleList(_of_each(self.cameras, backbones, "backbones"))
        self.heads = nn.ModuleList(_of_each(self.cameras, heads, "heads"))
        shapes = {name: self._token_shape(name) for name in self.cameras}
        self.used, self.pooled = self._reads()
        for module in self.backbones:
            rest(cast(BackboneModule, module), self)
        if len({width for _, width in shapes.values()}) > 1:
            each = ", ".join(f"{name} {width}" for name, (_, width) in shapes.items())
            raise ValueError(f"the tokens of the cameras have different widths: {each}; give their heads one width")
        self.width = next(iter(shapes.values()))[1]
        ends = list(accumulate(count for count, _ in shapes.values()))
        self.slices = {
            name: slice(end - count, end) for (name, (count, _)), end in zip(shapes.items(), ends, strict=True)
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a copy."""
        super().__setstate__(state)
        for module in self.backbones:
            remember(cast(BackboneModule, module), self)

    def forward(
        self,
        images: Mapping[str, Float[Tensor, "... 3 _ _"] | None],
        present: Mapping[str, Any] | None = None,
    ) -> CameraTokens:
        """Return the tokens of all cameras.

        `images` has (B, 3, H, W) or (B, T, 3, H, W) for each camera, normalised for its backbone. A camera that is None
        or left out is missing from the whole batch. `present` says which samples a camera is in. It has (B,) or (B, T)
        values for each camera: a tensor, an array or a list of bools, or of 0 and 1.

        Raises `ValueError` on an unknown camera, on images or masks of a wrong shape, on masks with other values, and
        if all cameras are missing. It also raises if one camera is missing and `missing` is `"refuse"`.
        """
        return self.tokens(self.features(images, present))

    def features(
        self,
        images: Mapping[str, Float[Tensor, "... 3 _ _"] | None],
        present: Mapping[str, Any] | None = None,
    ) -> CameraFeatures:
        """Run the backbones on the images that are present. Takes the arguments of `forward`, and raises its errors."""
        check("CameraEncoder", {"images": Mapping, "present": Mapping | None}, {"images": images, "present": present})
        given = {name: image for name, image in images.items() if image is not None}
        masks = self._present(given, present or {}, set(images))
        features = {}
        for name, pixels in given.items():
            rows = masks[name].flatten()
            if rows.any():
                head = self.head(name)
                layers = self.backbone(name).forward_layers(
                    pixels.flatten(0, -4)[rows], head.layers, norm=head.needs.norm
                )
                features[name] = tuple(_scatter(each, rows) for each in layers)
        return CameraFeatures(features, masks)

    def tokens(self, features: CameraFeatures) -> CameraTokens:
        """Run the heads, each on the samples in which its camera is present."""
        batch = next(iter(features.present.values())).shape
        tokens, masks = [], []
        for name, where in self.slices.items():
            present = features.present[name]
            rows, count = present.flatten(), where.stop - where.start
            if rows.any():
                seen = [_rows(each, rows.nonzero().flatten()) for each in features.features[name]]
                found = _as_tokens(self.head(name)(*seen))
                tokens.append(_spread(found, rows).unflatten(0, batch))
            else:
                dtype = next((p.dtype for p in self.parameters()), torch.get_default_dtype())
                tokens.append(torch.zeros(*batch, count, self.width, dtype=dtype, device=present.device))
            masks.append(present[..., None].expand(*batch, count))
        return CameraTokens(torch.cat(tokens, -2), torch.cat(masks, -1), self.slices)

    def backbone(self, camera: str) -> BackboneModule:
        """Return the backbone of a camera."""
        return cast(BackboneModule, self._of(self.backbones, camera))

    def head(self, camera: str) -> Head:
        """Return the head of a camera."""
        return cast(Head, self._of(self.heads, camera))

    def _of(self, modules: nn.ModuleList, camera: str) -> nn.Module:
        return modules[0 if len(modules) == 1 else list(self.cameras).index(camera)]

    def _reads(self) -> tuple[frozenset[Wanted], bool]:
        """Return the layers that any head reads, and whether any reads the pooled vectors."""
        heads = [cast(Head, head) for head in self.heads]
        return frozenset(each for head in heads for each in head.used), any(head.needs.pooled for head in heads)

    def _token_shape(self, name: str) -> tuple[int, int]:
        """Return (N, D) of a camera's tokens."""
        head, size = self.head(name), self.cameras[name]
        try:
            check_heads(self.backbone(name), {"head": head}, image_size=size)
        except ValueError as error:
            raise ValueError(f"camera {name!r}: {error}") from error
        _, count, width = _as_tokens(output_of_zeros(head, size)).shape
        return count, width

    def _present(
        self, given: Mapping[str, Tensor], masks: Mapping[str, Any], named: set[str]
    ) -> dict[str, Bool[Tensor, "..."]]:
        """Check all arguments of `features`, and return which samples each camera is in."""
        present = {name: as_mask(name, mask) for name, mask in masks.items()}
        unknown = sorted({*named, *present} - set(self.cameras), key=str)
        if unknown:
            raise ValueError(
                f"unknown cameras: {', '.join(map(str, unknown))}; this encoder has {', '.join(self.cameras)}"
            )
        if not given:
            raise ValueError(f"all cameras are missing; want images of at least one of {', '.join(self.cameras)}")
        absent = [name for name in self.cameras if name not in given or (name in present and not present[name].all())]
        if absent and self.missing == "refuse":
            raise ValueError(
                f"cameras are missing: {', '.join(absent)}; make the CameraEncoder with missing='mask' to allow that"
            )
        for name, pixels in given.items():
            height, width = self.cameras[name]
            if not isinstance(pixels, Tensor):
                raise ValueError(f"the images of camera {name!r} are a {type(pixels).__name__}; want a tensor")
            if 0 in pixels.shape or pixels.ndim not in (4, 5) or pixels.shape[-2:] != (height, width):
                raise ValueError(
                    f"the images of camera {name!r} have shape {tuple(pixels.shape)}; want (B, 3, {height}, {width}) "
                    f"or (B, T, 3, {height}, {width})"
                )
        batches = {name: tuple(pixels.shape[:-3]) for name, pixels in given.items()}
        batches |= {f"present[{name!r}]": tuple(mask.shape) for name, mask in present.items()}
        if len(set(batches.values())) > 1:
            raise ValueError(f"the cameras have different batches, {batches}; want the same (B,) or (B, T) for all")
        first = next(iter(given.values()))
        batch: Batch = tuple(first.shape[:-3])
        nowhere = torch.zeros(batch, dtype=torch.bool, device=first.device)
        return {
            name: nowhere if name not in given else present[name].to(first.device) if name in present else ~nowhere
            for name in self.cameras
        }


def as_mask(name: str, mask: Any) -> Bool[Tensor, "..."]:
    """Return a mask as bool, True where the camera is present. Raises `ValueError` on values other than 0 and 1."""
    wanted = "want bools, or 0 and 1, of shape (B,) or (B, T): True where the camera is present"
    try:
        found = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"present[{name!r}] is not a mask ({error}); {wanted}") from None
    if found.dtype != torch.bool and not ((found == 0) | (found == 1)).all():
        raise ValueError(f"present[{name!r}] has {found.dtype} values other than 0 and 1; {wanted}")
    return found.bool()


M = TypeVar("M", bound=nn.Module)


def _of_each(cameras: Mapping[str, object], modules: M | Mapping[str, M], kind: str) -> list[M]:
    """Return one module for each camera, in their order, or the one that they share."""
    if isinstance(modules, nn.Module):
        return [modules]
    if set(modules) != set(cameras):
        raise ValueError(
            f"CameraEncoder: {kind} for {sorted(modules)}; want one for all, or one each for {sorted(cameras)}"
        )
    return [modules[name] for name in cameras]


def _as_tokens(output: Tensor) -> Float[Tensor, "n N D"]:
    if output.ndim not in (2, 3):
        raise ValueError(
            f"a head gives an output of shape {tuple(output.shape)}; want a head that gives tokens (B, N, D), or one "
            "token (B, D)"
        )
    return output[:, None] if output.ndim == 2 else output


def output_of_zeros(head: Head, size: tuple[int, int]) -> Tensor:
    """Return a head's output for an image of (H, W) with features of zeros, because only a run shows its shape."""
    spec, like = head.spec, next(head.parameters(), torch.empty(0))

    def zeros(layer: int) -> Features:
        geometry, dim = Geometry((size,), spec.strides[layer]), spec.dims[layer]
        cls = like.new_zeros(1, dim) if spec.has_cls else None
        registers, maps = like.new_zeros(1, spec.num_registers, dim), like.new_zeros(1, dim, *geometry.grid)
        return Features(cls, registers, maps, geometry, lambda _: like.new_zeros(1, spec.pooled_dims[layer]))

    with evaluating(head):
        return head(*map(zeros, head.layers))


def _rows(features: Features, indices: Tensor) -> Features:
    """Return the features of some images of a batch of one size."""
    size = features.geometry.size
    return replace(
        features,
        cls=None if features.cls is None else features.cls[indices],
        registers=features.registers[indices],
        patches=features.patches[indices],
        geometry=replace(features.geometry, sizes=(size,) * len(indices)),
        pool=Pooled(features.pool.vectors[indices]) if isinstance(features.pool, Pooled) else features.pool,
    )


def _scatter(features: Features, rows: Bool[Tensor, " n"]) -> Features:
    """Put the features of images of one size at the rows that are True, and zeros at the others."""
    size = features.geometry.size
    return replace(
        features,
        cls=None if features.cls is None else _spread(features.cls, rows),
        registers=_spread(features.registers, rows),
        patches=_spread(features.patches, rows),
        geometry=replace(features.geometry, sizes=(size,) * len(rows)),
        pool=Pooled(_spread(features.pool.vectors, rows)) if isinstance(features.pool, Pooled) else features.pool,
    )


def _spread(x: Float[Tensor, "present ..."], rows: Bool[Tensor, " n"]) -> Float[Tensor, "n ..."]:
    spread = x.new_zeros(len(rows), *x.shape[1:])
    spread[rows] = x
    return spread
