"""Several named cameras, of sizes of their own, to one sequence of tokens with a mask.

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
from heads.unread import Wanted, rest
from vitbackbone import BackboneModule, Features, Geometry, Pooled

MISSING = ("mask", "refuse")
Batch = tuple[int, ...]  # (B,) or (B, T)


@dataclass(frozen=True, eq=False)
class CameraTokens:
    """What a policy is given. Where a camera is missing, its tokens are zeros and the mask is False."""

    tokens: Float[Tensor, "... N D"]  # (B, N, D) or (B, T, N, D), one camera after another
    mask: Bool[Tensor, "... N"]  # True where there is a token
    slices: Mapping[str, slice]  # of N, where each camera's tokens are

    def camera(self, name: str) -> Float[Tensor, "... n D"]:
        """The tokens of one camera."""
        return self.tokens[..., self.slices[name], :]


@dataclass(frozen=True, eq=False)
class CameraFeatures:
    """What the backbones made of a batch, before any head: to be kept, while heads alone learn.

    `features[camera][i]` is of the i-th layer that the camera's head reads, and of the B * T images row by row; where
    the camera is missing, it holds zeros.
    """

    features: Mapping[str, tuple[Features, ...]]
    present: Mapping[str, Bool[Tensor, "..."]]  # (B,) or (B, T) for each camera

    def __getitem__(self, rows: Tensor | slice) -> "CameraFeatures":
        """Those of some of the batch: a slice of B, indices, or a mask (B,). All time steps of each stay."""
        anywhere = next(iter(self.present.values()))
        numbers = torch.arange(anywhere.numel(), device=anywhere.device).view(anywhere.shape)
        indices = numbers[rows].flatten()
        features = {name: tuple(_rows(each, indices) for each in layers) for name, layers in self.features.items()}
        return CameraFeatures(features, {name: present[rows] for name, present in self.present.items()})


class CameraEncoder(nn.Module):
    """Named cameras through a backbone and a head each, to one sequence of tokens.

        encoder = CameraEncoder({"front": (240, 320), "wrist": (128, 128)}, backbone, create_head("map_pool", spec))
        encoder({"front": front, "wrist": wrist}).tokens  # (B, 2, D), or (B, T, 2, D) with time

    `cameras`: (H, W) of each one's images, in the order of their tokens.
    `backbones`, `heads`: one that all cameras share, or one for each by its name. A head gives (B, D), one token, or
    (B, N, D).
    `missing`: `"mask"` gives zeros and a mask that is False; `"refuse"` raises where a camera is missing.

    With a frozen backbone, `features` is the part that does not learn: compute it once, keep what it returns, and train
    on `tokens(kept[rows])`.

    Raises `ValueError` on names that do not match, a head that does not fit its backbone or cannot divide the map of
    its camera, and tokens of different widths.
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
            raise ValueError("CameraEncoder: no cameras; want a dict of at least one, its name with its (H, W)")
        check("CameraEncoder, cameras", dict.fromkeys(cameras, Size), cameras)
        if missing not in MISSING:
            raise ValueError(f"CameraEncoder: missing={missing!r}; want one of {', '.join(MISSING)}")
        self.cameras = {name: (size[0], size[1]) for name, size in cameras.items()}
        self.missing = missing
        # Lists, as names of cameras may have dots, which names of modules may not; and what is shared is in them once.
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

    def forward(
        self,
        images: Mapping[str, Float[Tensor, "... 3 H W"] | None],
        present: Mapping[str, Any] | None = None,
    ) -> CameraTokens:
        """`images`: (B, 3, H, W) or (B, T, 3, H, W) of each camera, normalised as its backbone wants. A camera that is
        None, or not there, is missing from the whole batch. `present`, bool (B,) or (B, T), is True for the samples
        that the camera is in: a tensor, an array or a list, in which 0 and 1 do for False and True.

        Raises `ValueError` on a camera it does not know, images of another size or batch than they should have, a
        missing camera where that is refused, and where all cameras are missing.
        """
        return self.tokens(self.features(images, present))

    def features(
        self,
        images: Mapping[str, Float[Tensor, "... 3 H W"] | None],
        present: Mapping[str, Any] | None = None,
    ) -> CameraFeatures:
        """The backbones' part. No backbone is run on what is missing. Arguments and errors are those of `forward`."""
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
        """The heads' part. A head is run on the samples alone in which its camera is present."""
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
        """That of a camera."""
        return cast(BackboneModule, self._of(self.backbones, camera))

    def head(self, camera: str) -> Head:
        """That of a camera."""
        return cast(Head, self._of(self.heads, camera))

    def _of(self, modules: nn.ModuleList, camera: str) -> nn.Module:
        return modules[0 if len(modules) == 1 else list(self.cameras).index(camera)]

    def _reads(self) -> tuple[frozenset[Wanted], bool]:
        """What the heads read of the backbones, taken together."""
        heads = [cast(Head, head) for head in self.heads]
        return frozenset(each for head in heads for each in head.used), any(head.needs.pooled for head in heads)

    def _token_shape(self, name: str) -> tuple[int, int]:
        """(N, D) of a camera's tokens."""
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
        """In which samples each camera is, after every check of what `features` is given."""
        present = {name: as_mask(name, mask) for name, mask in masks.items()}
        unknown = sorted({*named, *present} - set(self.cameras))
        if unknown:
            raise ValueError(f"unknown cameras: {', '.join(unknown)}; this encoder has {', '.join(self.cameras)}")
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
            raise ValueError(f"want one batch of all cameras, got {batches}")
        first = next(iter(given.values()))
        batch: Batch = tuple(first.shape[:-3])
        nowhere = torch.zeros(batch, dtype=torch.bool, device=first.device)
        return {
            name: nowhere if name not in given else present[name].to(first.device) if name in present else ~nowhere
            for name in self.cameras
        }


def as_mask(name: str, mask: Any) -> Bool[Tensor, "..."]:
    """Where a camera is present, as bool. Raises `ValueError` on what is not bool, and not 0 and 1 either."""
    wanted = "want bool, (B,) or (B, T): True where the camera is there"
    try:
        found = torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"present[{name!r}] is no mask ({error}); {wanted}") from None
    if found.dtype != torch.bool and not ((found == 0) | (found == 1)).all():
        raise ValueError(f"present[{name!r}] holds {found.dtype} other than 0 and 1; {wanted}")
    return found.bool()


M = TypeVar("M", bound=nn.Module)


def _of_each(cameras: Mapping[str, object], modules: M | Mapping[str, M], kind: str) -> list[M]:
    """One for each camera, in their order, or the one that they share."""
    if isinstance(modules, nn.Module):
        return [modules]
    if set(modules) != set(cameras):
        raise ValueError(f"CameraEncoder: {kind} for {sorted(modules)}; want one for all, or for {sorted(cameras)}")
    return [modules[name] for name in cameras]


def _as_tokens(output: Tensor) -> Float[Tensor, "n N D"]:
    if output.ndim not in (2, 3):
        raise ValueError(f"a head gives {tuple(output.shape)}; want one that gives tokens (B, N, D), or one, (B, D)")
    return output[:, None] if output.ndim == 2 else output


def output_of_zeros(head: Head, size: tuple[int, int]) -> Tensor:
    """What a head makes of one image of (H, W) whose features are all zeros: a head does not tell what it gives."""
    spec, like = head.spec, next(head.parameters(), torch.empty(0))

    def zeros(layer: int) -> Features:
        geometry, dim = Geometry((size,), spec.strides[layer]), spec.dims[layer]
        cls = like.new_zeros(1, dim) if spec.has_cls else None
        registers, maps = like.new_zeros(1, spec.num_registers, dim), like.new_zeros(1, dim, *geometry.grid)
        return Features(cls, registers, maps, geometry, lambda _: like.new_zeros(1, spec.pooled_dims[layer]))

    modes = [part.training for part in head.modules()]
    with torch.no_grad():
        output = head.eval()(*map(zeros, head.layers))
    for part, mode in zip(head.modules(), modes, strict=True):
        part.training = mode
    return output


def _rows(features: Features, indices: Tensor) -> Features:
    """Some images of a batch whose images have one size."""
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
    """Images of one size put at the rows that are True, with zeros at the others."""
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
