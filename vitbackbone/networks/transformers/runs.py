"""Runs of one of transformers' image encoders, and the outputs of its layers."""

import copy
from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vitbackbone.networks.transformers.input import Feed
from vitbackbone.networks.transformers.layout import Layout, Size, first_tensor, grid_of, layout_of
from vitbackbone.networks.transformers.parts import channels_of, find_layers, setting

WINDOWS = ("window_size", "shift_size")
PATCH = ("patch_size", "spatial_patch_size", "patch_stride")


@dataclass(frozen=True)
class Shapes:
    """The layers of an encoder."""

    layers: tuple[Layout, ...]
    source: str  # "blocks": hooks on the blocks; otherwise the field of the output that holds the maps
    norm: str | None = None  # path of the final norm
    own: int = 0  # number of the encoder's own outputs that are more layers: its last output, or all its maps
    pooled: int | None = None  # width of `pooler_output`
    hidden: bool = True  # whether the encoder accepts `output_hidden_states`


@dataclass
class Run:
    """The outputs of one run."""

    layers: dict[int, Tensor]
    pooled: Tensor | None = None


class _Done(Exception):
    """The deepest layer has run."""


class GroupedError(ValueError):
    """A layer's tokens are groups of patches, which are not a map."""


class Encoder:
    """An encoder, the way of images into it, and its blocks."""

    def __init__(self, model: Any, config: Any, feed: Feed) -> None:
        self.model, self.config, self.feed = model, config, feed
        self.first_stage = False  # whether the layers are only the blocks of the first stage
        self.known: dict[tuple[Size, int, int], Tensor] = {}

    @property
    def blocks(self) -> list[nn.Module]:
        blocks = find_layers(self.model)
        return find_layers(blocks[0]) if self.first_stage else blocks

    def on_meta(self) -> "Encoder":
        """Return a copy that computes only shapes."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        model = copy.deepcopy(self.model, {id(each): _empty(each) for each in tensors})
        return Encoder(model, self.config, self.feed)

    @property
    def channels(self) -> int:
        """The number of channels of the images."""
        return channels_of(self.config)

    @property
    def _parameter(self) -> Tensor:
        return next(p for p in self.model.parameters() if p.is_floating_point())

    # ---- shapes -----------------------------------------------------------------------------------------------

    def shapes(self, size: Size) -> Shapes:
        """Return the layers that a trial run on one image of `size` gives.

        If tokens are grouped by their content from the second stage on, the layers are the blocks of the first stage.
        Raises `ValueError` if a layer is not a map of the image.
        """
        try:
            return self._shapes(size, hidden=True)
        except GroupedError:
            self.first_stage = not self.first_stage and bool(find_layers(self.blocks[0]))
            if not self.first_stage:
                raise
            return self._shapes(size, hidden=False)
        except Exception:  # encoders without `output_hidden_states` have errors of many types
            return self._shapes(size, hidden=False)

    def _shapes(self, size: Size, hidden: bool) -> Shapes:
        image = self._parameter.new_zeros(1, self.channels, *size)
        patch, packed = setting(self.config, *PATCH), self.feed.packed
        seen: dict[int, Tensor] = {}
        norms: list[tuple[str, Any, Any]] = []
        blocks = self.blocks
        with torch.no_grad(), _hooks() as hooks:
            for i, block in enumerate(blocks):
                hooks.append(block.register_forward_hook(lambda _m, _a, out, i=i: seen.update({i: first_tensor(out)})))
            for path, module in self.model.named_modules():
                if "Norm" in type(module).__name__:
                    hooks.append(
                        module.register_forward_hook(
                            lambda _m, given, out, path=path: norms.append((path, given[0] if given else None, out))
                        )
                    )
            result = self._call(image, output_hidden_states=hidden)
        if getattr(result, "encoder_last_hidden_state", None) is not None:
            raise ValueError(f"{type(self.model).__name__} returns the queries of a decoder, which are not a map")
        final = _final(result)
        outputs, source = [seen[i] for i in range(len(blocks)) if isinstance(seen.get(i), Tensor)], "blocks"
        if len(outputs) < len(blocks) or len({tuple(each.shape) for each in outputs}) != 1:
            outputs, source = _levels(result, outputs, size, patch, packed)
        try:
            layouts = _fitting(outputs, size, patch, packed)
        except ValueError:  # such as blocks that see windows in place of images
            outputs, source = _levels(result, [], size, patch, packed)
            layouts = _fitting(outputs, size, patch, packed)
        if not layouts and final is None:
            raise ValueError(f"{type(self.model).__name__} returns no map")
        pooled = None if packed else _pooled_width(result)
        shapes = Shapes(tuple(layouts), source, pooled=pooled, hidden=hidden)
        maps = _field(result, "feature_maps")
        if source == "blocks" and layouts and len(maps) > 1:
            own = _fitting(maps, size, None, packed)
            return replace(shapes, layers=(*shapes.layers, *own), own=len(own))
        if final is None or (outputs and final is outputs[-1]):
            return shapes
        if source == "blocks" and layouts and final.ndim == 3 and final.shape[1] == layouts[-1].others > 1:
            raise ValueError(f"{type(self.model).__name__} returns the tokens beside its patches, which are not a map")
        path = next((path for path, given, out in norms if outputs and given is outputs[-1] and out is final), None)
        if path is not None and source == "blocks":
            return replace(shapes, norm=path)
        try:
            last = layout_of(final, size, 1, patch, packed)
            if not layouts or last.stride != layouts[-1].stride:
                last = _fitting([*outputs, final], size, patch, packed)[-1]
        except ValueError:
            if not layouts:
                raise
            return shapes
        return replace(shapes, layers=(*shapes.layers, last), own=1)

    # ---- runs -------------------------------------------------------------------------------------------------

    def run(self, images: Tensor, shapes: Shapes, wanted: Set[int], whole: bool) -> Run:
        """Return the wanted layers. `whole`: run to the end, and return the pooled vector, too."""
        behind = len(shapes.layers) - shapes.own
        inner = {layer for layer in wanted if layer < behind}
        whole = whole or shapes.source != "blocks" or inner != set(wanted)
        got: dict[int, Tensor] = {}

        def keep(layer: int, out: Any) -> None:
            got[layer] = first_tensor(out)  # type: ignore[assignment]
            if not whole and layer == max(inner):
                raise _Done

        result = None
        with _hooks() as hooks:
            if shapes.source == "blocks":
                for i in inner:
                    hooks.append(self.blocks[i].register_forward_hook(lambda _m, _a, out, i=i: keep(i, out)))
            try:
                result = self._call(
                    images, output_hidden_states=shapes.hidden and (shapes.source != "blocks" or shapes.own > 0)
                )
            except _Done:
                return Run(got)
        if shapes.source != "blocks":
            levels = _field(result, shapes.source)
            first = len(levels) - behind  # without the image itself
            got |= {i: levels[first + i] for i in inner}
        final = _final(result)
        own = _field(result, "feature_maps") if shapes.own > 1 else [] if final is None else [final]
        got |= {layer: own[layer - behind] for layer in wanted - inner}
        return Run(got, None if self.feed.packed else _pooled(result, images.shape[0]))

    def attentions(self, images: Tensor) -> tuple[Tensor, ...]:
        """Return the attention of every block, computed without a fused kernel, or () if the encoder returns none."""
        before = getattr(self.config, "_attn_implementation", None)
        try:
            if hasattr(self.model, "set_attn_implementation"):
                self.model.set_attn_implementation("eager")
            result = self._call(images, output_attentions=True)
        except (TypeError, ValueError):
            return ()
        finally:
            if before is not None and hasattr(self.model, "set_attn_implementation"):
                self.model.set_attn_implementation(before)
        found = getattr(result, "attentions", None) or ()
        return tuple(each for each in found if isinstance(each, Tensor))

    def _call(self, images: Tensor, **options: bool) -> Any:
        """Run the encoder. A result that stacks all blocks becomes the list of their outputs."""
        result = self._run_once(images, **options)
        stacked = (
            isinstance(result, Tensor) and result.ndim == 4 and result.shape[:2] == (len(self.blocks), images.shape[0])
        )
        if isinstance(result, Tensor) and result.ndim == 5 and result.shape[1] == 1:  # a clip of one frame
            return result[:, 0]
        return list(result) if stacked and len(self.blocks) > 1 else result

    def _run_once(self, images: Tensor, **options: bool) -> Any:
        """Run the encoder. A Swin of transformers that saw a small map would keep a smaller window for later ones."""
        kept = [(vars(m), name, vars(m)[name]) for m in self.model.modules() for name in WINDOWS if name in vars(m)]
        try:
            return self.model(**self.feed(images), **{key: value for key, value in options.items() if value})
        finally:
            for attributes, name, value in kept:
                attributes[name] = value

    # ---- places of patches ------------------------------------------------------------------------------------

    def places(self, size: Size, layout: Layout, device: torch.device) -> Tensor:
        """Return the token of each patch, in raster order.

        They are found by what changes at the entrance of the first block when the pixels of some patches change.
        Raises `ValueError` if fewer tokens change there than the layer has patches.
        """
        key = (size, layout.stride, layout.others)
        if layout.kind in ("NCHW", "NHWC"):
            return torch.empty(0, dtype=torch.long, device=device)
        if key not in self.known:
            if torch.compiler.is_compiling():
                raise ValueError(
                    f"the patches of {type(self.model).__name__} at {size[0]} x {size[1]} are found by a run, which no "
                    "graph can hold. Run the backbone once on an image of this size, then export or compile it"
                )
            with torch.inference_mode(False):  # later calls may be trained
                self.known[key] = self._find_places(size, layout)
        return self.known[key].to(device)

    def _find_places(self, size: Size, layout: Layout) -> Tensor:
        h, w = grid_of(size, layout.stride)
        plain = torch.arange(h * w)
        entering = self._entering(size, layout)
        if entering is None:
            if layout.others:
                return plain + layout.others
            return plain
        base, every, *bits = entering
        moved = (every - base).abs().amax(-1)
        changed = moved > 1e-4 * moved.max()
        codes = sum(
            (((bit - base).abs().amax(-1) > 1e-4 * moved.max()).long() << i for i, bit in enumerate(bits)),
            torch.zeros_like(changed, dtype=torch.long),
        )
        where = changed.nonzero()[:, 0].cpu()
        if 0 < len(where) < h * w:
            name = type(self.model).__name__
            raise ValueError(
                f"{name} returns {h * w + layout.others} tokens, and only {len(where)} of those that enter its blocks "
                "hold a part of the image: they are not a map"
            )
        if len(where) != h * w:  # patches overlap, a later step drops tokens, or the weights are zero so far
            return plain + layout.others
        found = codes.cpu()[where]
        if torch.equal(found.sort().values, plain):
            where = where[found.argsort()]
        if layout.others == 0:  # the layer has dropped the tokens that are not patches
            where = where.argsort().argsort()
        return where

    @torch.no_grad()
    def _entering(self, size: Size, layout: Layout) -> Tensor | None:
        """Return the tokens that enter the first block for a noise image, for another one, and for mixtures of both.

        Mixture i takes a patch from the second image if bit i of its number is set.
        """
        h, w = grid_of(size, layout.stride)
        count = max((h * w - 1).bit_length(), 1)
        numbers = torch.arange(h * w).view(1, h, w)
        masks = torch.stack([(numbers[0] >> i) & 1 for i in range(count)])
        masks = torch.cat([torch.zeros(1, h, w, dtype=torch.long), torch.ones(1, h, w, dtype=torch.long), masks])
        pixels = masks.repeat_interleave(layout.stride, 1).repeat_interleave(layout.stride, 2)[:, : size[0], : size[1]]
        noise = torch.randn(2, 1, self.channels, *size, generator=torch.Generator().manual_seed(0)).to(self._parameter)
        images = torch.where(pixels[:, None].bool().to(noise.device), noise[1], noise[0])
        taken: list[Tensor] = []

        def take(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            entering = first_tensor(given) if given else first_tensor(list(named.values()))
            if entering is not None:
                taken.append(entering)
            raise _Done

        blocks = self.blocks
        if not blocks:
            return None
        hook = blocks[0].register_forward_pre_hook(take, with_kwargs=True)
        mode = self.model.training
        self.model.eval()
        try:
            self._call(images)
        except _Done:
            pass
        finally:
            hook.remove()
            self.model.train(mode)
        if not taken or taken[0].numel() % len(images):
            return None
        return taken[0].reshape(len(images), -1, taken[0].shape[-1]).float()


def _empty(tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta


@contextmanager
def _hooks() -> Iterator[list[Any]]:
    hooks: list[Any] = []
    try:
        yield hooks
    finally:
        for hook in hooks:
            hook.remove()


def _field(result: Any, name: str) -> list[Tensor]:
    """Return the tensors in a field of an encoder's output; of "" in the output itself, if it is a list."""
    value = (result.get(name) if isinstance(result, dict) else getattr(result, name, None)) if name else result
    return [each for each in value if isinstance(each, Tensor)] if isinstance(value, list | tuple) else []


def _levels(
    result: Any, outputs: list[Tensor], size: Size, patch: int | None, packed: bool
) -> tuple[list[Tensor], str]:
    """Return the maps of a hierarchy, and where they are: in a field of the output, or at the blocks."""
    for name in ("feature_maps", "reshaped_hidden_states", "hidden_states", ""):
        found = _field(result, name)
        if found and found[0].ndim == 4 and tuple(found[0].shape[2:]) == size:
            found = found[1:]  # the image itself
        try:
            _fitting(found, size, patch, packed)
        except ValueError:
            continue
        if found:
            return found, name
    return outputs, "blocks"


def _fitting(tensors: list[Tensor], size: Size, patch: int | None, packed: bool) -> list[Layout]:
    """Return the layouts of the layers.

    Raises `ValueError` if a layer is not a map. Raises `GroupedError` if a layer that is coarser than the first one has
    tokens of its own beside the patches, because tokens grouped by content are not a map.
    """
    layouts = [layout_of(each, size, 1, patch, packed) for each in tensors]
    for each in layouts:
        if each.others and each.stride > (patch or layouts[0].stride):
            raise GroupedError(f"a layer of {each.others} tokens and patches of {each.stride} pixels is not a map")
    return layouts


def _final(result: Any) -> Tensor | None:
    """Return the encoder's own output, or None if it returns what is not a map, such as key points."""
    if isinstance(result, Tensor):
        return result
    maps, found = _field(result, "feature_maps"), getattr(result, "last_hidden_state", None)
    if not maps and isinstance(found, Tensor):
        return found
    maps = maps or _field(result, "")
    return maps[-1] if maps else None


def _pooled(result: Any, batch: int) -> Tensor | None:
    pooled = getattr(result, "pooler_output", None)
    if not isinstance(pooled, Tensor) or pooled.shape[0] != batch:
        return None
    pooled = pooled.flatten(2).squeeze(2) if pooled.ndim == 4 and tuple(pooled.shape[2:]) == (1, 1) else pooled
    return pooled if pooled.ndim == 2 else None


def _pooled_width(result: Any) -> int | None:
    pooled = _pooled(result, 1)
    return None if pooled is None else pooled.shape[1]
