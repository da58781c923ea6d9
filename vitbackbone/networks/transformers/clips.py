"""Video encoders of transformers that take clips of a fixed number of frames: VideoMAE, ViViT, TimeSformer, VideoPrism.

Some see each frame as an image of its own: X-CLIP, and a TimeSformer without attention over time.

Axes: `B` batch, `T` frames, `D` width, `t h w` steps of time and patch grid, `N` tokens.
"""

import copy
import inspect
from collections.abc import Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.contract import (
    Asked,
    BackboneModule,
    BackboneSpec,
    Features,
    Geometry,
    Images,
    Pooled,
    Wanted,
    check_images,
    describe_settings,
    float32_default,
    one_by_one,
    pool_cls,
    pool_mean,
)
from vitbackbone.images import Preprocess
from vitbackbone.networks.transformers.backbone import TransformersBackbone, TransformersConfig, build_tower, untrained
from vitbackbone.networks.transformers.input import ANY_SIZE, VIDEOS_ALONE
from vitbackbone.networks.transformers.layout import MOST_PREFIX, Size, first_tensor, others
from vitbackbone.networks.transformers.parts import PIXELS, channels_of, find_layers, float_dtype, image_size, setting
from vitbackbone.networks.transformers.towers import config_of

FRAMES = ("num_frames", "frames_per_clip")


@dataclass(frozen=True)
class Clip:
    """The clips that an encoder takes."""

    argument: str
    frames: int
    tubelet: int  # frames in a step of time
    patch: int  # side in pixels
    switch: bool  # whether the encoder has a switch for other sizes than its own
    flat: bool = False  # whether the frames of a batch are its images: (B T, C, H, W)

    @property
    def steps(self) -> int:
        return self.frames // self.tubelet

    def grid(self, size: Size) -> Size:
        return size[0] // self.patch, size[1] // self.patch


@dataclass(frozen=True)
class Layers:
    """The layers of an encoder: tokens (B, N, D) of its blocks, or only its own output."""

    dim: int
    depth: int
    others: int  # tokens that are not patches
    blocks: bool  # whether the layers are the blocks
    norm: str | None = None  # path of the final norm
    pooled: int | None = None  # width of `pooler_output`
    apart: bool = False  # whether each frame has tokens of its own: (B T, N, D)


def clip_of(tower: Any, config: Any) -> Clip | None:
    """Return the clips that an encoder takes, or None if it takes images.

    Raises `ValueError` on an encoder of videos whose config does not tell the frames or the patches.
    """
    names = list(inspect.signature(tower.forward).parameters)
    frames = setting(config, *FRAMES)
    if names[0] != PIXELS[1] and not (names[0] == PIXELS[0] and frames is not None and "grid_thw" not in names):
        return None
    tube, patch = getattr(config, "tubelet_size", 1), getattr(config, "patch_size", None)
    tubelet = tube[0] if isinstance(tube, list | tuple) else tube
    sides = patch if patch is not None else tube[1:] if isinstance(tube, list | tuple) else None
    pair = (sides, sides) if isinstance(sides, int) else tuple(sides or ())
    if frames is None or len(pair) != 2 or pair[0] != pair[1] or frames % tubelet:
        raise ValueError(f"{type(tower).__name__} {VIDEOS_ALONE}")
    return Clip(names[0], frames, tubelet, pair[0], ANY_SIZE in names)


def adapt(
    config: TransformersConfig,
    preprocess: Preprocess | None = None,
    name: str = "transformers",
    model: nn.Module | None = None,
    settings: Any = None,
) -> "TransformersBackbone | ClipBackbone":
    """Return an image encoder, or an encoder of clips, of transformers. The arguments are `TransformersBackbone`'s."""
    if model is None:
        whole, path = build_tower(config)
        config, settings = replace(config, tower=path), config_of(whole, path)
        model = untrained(whole.get_submodule(path))
    clip = clip_of(model, settings)
    if clip is None:
        return TransformersBackbone(config, preprocess, name, model, settings)
    return ClipBackbone(config, clip, preprocess, name, model, settings)


class ClipBackbone(BackboneModule):
    """A video encoder of transformers that returns features. The encoder is `model`, with transformers' own names.

    Clips are (B, T, C, H, W) with the encoder's own number of frames, and maps have an axis of time, (B, D, t, h, w).
    An image runs as a clip of equal frames, and its map is the mean over the steps of time. The encoders' authors give
    no rule for images.
    `norm=True` and `pooled` are as in `TransformersBackbone`. Some encoders see each frame as an image. Then
    `registers` are the tokens beside the patches of each frame, in the order of the frames, and `pooled` is the mean of
    the patches.

    Raises `ValueError` if the layers are not maps of a clip.
    """

    @float32_default()
    def __init__(
        self,
        config: TransformersConfig,
        clip: Clip,
        preprocess: Preprocess | None,
        name: str,
        model: nn.Module,
        settings: Any,
    ) -> None:
        super().__init__()
        self.config, self.clip = config, clip
        self.model: Any = model
        self.channels = (channels_of(settings),)
        if config.channels not in (None, *self.channels):
            raise ValueError(f"in_chans={config.channels}: {type(model).__name__} takes {self.channels[0]} channels")
        self.native = native = config.image_size or image_size(settings)
        self.preprocess = preprocess or Preprocess(image_size=native)
        self.accepted: dict[Size, bool] = {}
        self.places: dict[Size, Tensor] = {}
        self.layers = self._measure(native)
        named = any("cls" in key for key, _ in model.named_parameters())
        self.has_cls = self.layers.others > 0 and named and not self.layers.apart
        self.spec = BackboneSpec(
            name=name,
            dim=self.layers.dim,
            depth=self.layers.depth,
            num_heads=setting(settings, "num_attention_heads") or 0,
            stride=clip.patch,
            num_registers=self.layers.others - int(self.has_cls),
            has_cls=self.has_cls,
            has_norm=self.layers.norm is not None,
            image_size=native,
            in_chans=self.channels[0],
            settings=describe_settings(config),
            pooled_dim=self.layers.pooled or 0,
            pooled_dims=(self.layers.dim,) * (self.layers.depth - 1) + (self.layers.pooled or self.layers.dim,),
            tubelet=clip.tubelet,
        )

    def forward(self, images: Images, asked: Asked | None = None) -> Any:
        """See `BackboneModule`. The images of a list run one by one."""
        asked = asked or self.last
        check_images(images, self.channels, clips=True)
        if asked.part == "attention":
            raise ValueError(f"{self.spec.name} has no attention maps: transformers' video encoders return none")
        return asked.answer(one_by_one(partial(self._features, wanted=set(asked.wanted)), images))

    def _features(self, images: Float[Tensor, "B *T C H W"], wanted: Set[Wanted]) -> Mapping[Wanted, Features]:
        still = images.ndim == 4
        clips = self._pad(repeat(images, "B C H W -> B T C H W", T=self.clip.frames) if still else images)
        last = self.layers.depth - 1
        got, result = self._run(self.model, clips, {layer for layer, _ in wanted})
        pooled = getattr(result, "pooler_output", None)
        outputs: dict[Wanted, Features] = {}
        for layer, norm in wanted:
            tokens = got[layer]
            if norm:
                tokens = self.model.get_submodule(self.layers.norm)(tokens)
            features = self._unpack(tokens, images, (clips.shape[-2], clips.shape[-1]), still)
            own = layer == last and norm == self.spec.has_norm and self.layers.pooled is not None
            if own and isinstance(pooled, Tensor):
                features = replace(features, pool=Pooled(pooled))
            outputs[layer, norm] = features
        return outputs

    def _unpack(self, tokens: Float[Tensor, "B N D"], images: Tensor, size: Size, still: bool) -> Features:
        """Turn a layer's tokens for clips of `size` into the `Features` of `images`."""
        places = self._places(size).to(tokens.device)
        h, w = self.clip.grid(size)
        maps = rearrange(tokens[:, places], "B (t h w) D -> B D t h w", h=h, w=w)
        rest = tokens[:, others(places, tokens.shape[1])]
        geometry = Geometry.of(images, self.clip.patch, self.clip.tubelet)
        rows, columns = geometry.grid
        maps = (maps.mean(dim=2) if still else maps)[..., :rows, :columns]
        cls = rest[:, 0] if self.has_cls else None
        return Features(cls, rest[:, int(self.has_cls) :], maps, geometry, pool_cls if self.has_cls else pool_mean)

    def _pad(self, clips: Float[Tensor, "B T C H W"]) -> Float[Tensor, "B T C _ _"]:
        """Pad the clips at the right and bottom to whole patches. Raises `ValueError` on clips that do not fit."""
        height, width = clips.shape[-2:]
        if clips.shape[1] != self.clip.frames:
            raise ValueError(f"clips have {clips.shape[1]} frames; {self.spec.name} takes {self.clip.frames}")
        down, right = -height % self.clip.patch, -width % self.clip.patch
        if (down or right) and self.config.indivisible == "refuse":
            raise ValueError(
                f"frames are {height} x {width}, which the patch size {self.clip.patch} does not divide; resize them, "
                "or load the backbone with indivisible='pad'"
            )
        size = height + down, width + right
        if not self._accepts(size):
            native = " x ".join(map(str, self.spec.image_size))
            raise ValueError(f"frames are {height} x {width}; {self.spec.name} accepts only frames of {native}")
        return F.pad(clips, (0, right, 0, down)).to(float_dtype(self.model))

    # ---- runs -------------------------------------------------------------------------------------------------

    def _run(self, model: Any, clips: Tensor, wanted: Set[int]) -> tuple[dict[int, Tensor], Any]:
        """Return the tokens of the wanted layers, and the encoder's own output."""
        got: dict[int, Tensor] = {}
        with ExitStack() as hooks:
            if self.layers.blocks:
                blocks = find_layers(model)
                for i in wanted:
                    hook = blocks[i].register_forward_hook(lambda _m, _a, out, i=i: got.update({i: _tensor(out)}))
                    hooks.callback(hook.remove)
            result = self._call(model, clips)
        got = got if self.layers.blocks else {0: result.last_hidden_state}
        return {i: _joined(tokens, len(clips)) for i, tokens in got.items()}, result

    def _call(self, model: Any, clips: Tensor) -> Any:
        other = tuple(clips.shape[-2:]) != self.native
        options = {ANY_SIZE: True} if self.clip.switch and other else {}
        clips = clips.flatten(0, 1) if self.clip.flat else clips
        return model(**{self.clip.argument: clips}, **options)

    def _measure(self, native: Size) -> Layers:
        """Return the layers that a trial run gives. Raises `ValueError` if they are not maps of a clip."""
        blocks, norms = find_layers(self.model), [(p, m) for p, m in self.model.named_modules() if _is_norm(m)]
        seen: dict[int, Any] = {}
        normed: list[tuple[str, Any, Any]] = []
        with ExitStack() as hooks, torch.no_grad():
            for i, block in enumerate(blocks):
                hook = block.register_forward_hook(lambda _m, _a, out, i=i: seen.update({i: first_tensor(out)}))
                hooks.callback(hook.remove)
            for path, norm in norms:
                hook = norm.register_forward_hook(
                    lambda _m, given, out, path=path: normed.append((path, given[0] if given else None, out))
                )
                hooks.callback(hook.remove)
            result = self._first_call(native)
        final = getattr(result, "last_hidden_state", None)
        h, w = self.clip.grid(native)
        count = self.clip.steps * h * w
        outputs = [each for each in seen.values() if isinstance(each, Tensor) and _extra(each, count) is not None]
        pooled = getattr(result, "pooler_output", None)
        width = pooled.shape[1] if isinstance(pooled, Tensor) and pooled.ndim == 2 else None
        apart = isinstance(final, Tensor) and len(final) > 1
        width = None if apart else width
        if blocks and len(outputs) == len(blocks):
            last = outputs[-1]
            path = next((p for p, given, out in normed if given is last and out is final), None)
            if path is not None or final is last:
                return Layers(last.shape[-1], len(blocks), _extra(last, count) or 0, True, path, width, apart)
        if not isinstance(final, Tensor) or _extra(final, count) is None:
            shape = tuple(final.shape) if isinstance(final, Tensor) else "none"
            name = type(self.model).__name__
            raise ValueError(f"the output of {name}, of shape {shape}, is not a map of a clip, and it {VIDEOS_ALONE}")
        return Layers(final.shape[-1], 1, _extra(final, count) or 0, False, None, width, apart)

    def _first_call(self, native: Size) -> Any:
        """Run the encoder on a clip, or on its frames as images. Raises `ValueError` if it runs on neither."""
        zeros, errors = self._zeros(self.model, native), []
        for clip in (self.clip, replace(self.clip, flat=True)):
            self.clip = clip
            try:
                return self._call(self.model, zeros)
            except Exception as error:  # every encoder has its own errors
                errors.append(error)
        text = f"{type(self.model).__name__} does not run on clips of {self.clip.frames} frames"
        raise ValueError(f"{text} ({errors[0]}), and {VIDEOS_ALONE}") from errors[0]

    def _zeros(self, model: Any, size: Size) -> Tensor:
        parameter = next(p for p in model.parameters() if p.is_floating_point())
        return parameter.new_zeros(1, self.clip.frames, self.channels[0], *size)

    def _accepts(self, size: Size) -> bool:
        """Return whether the encoder runs on frames of a size. A copy on the meta device tries it once."""
        if size == self.native:
            return True
        if size not in self.accepted:
            tensors = [*self.model.parameters(), *self.model.buffers()]
            model = copy.deepcopy(self.model, {id(each): _empty(each) for each in tensors})
            h, w = self.clip.grid(size)
            try:
                with torch.no_grad():
                    final = self._call(model, self._zeros(model, size)).last_hidden_state
                self.accepted[size] = _extra(final, self.clip.steps * h * w) == self.layers.others
            except Exception:  # every encoder has its own error for a size that it does not accept
                self.accepted[size] = False
        return self.accepted[size]

    # ---- places of patches ------------------------------------------------------------------------------------

    def _places(self, size: Size) -> Tensor:
        """Return the token of each patch, step by step and row by row.

        They are found by what changes at the entrance of the first block when the pixels of some patches change.
        """
        if size not in self.places:
            with torch.inference_mode(False), torch.no_grad():  # later calls may be trained
                self.places[size] = self._find_places(size)
        return self.places[size]

    def _find_places(self, size: Size) -> Tensor:
        t, (h, w) = self.clip.steps, self.clip.grid(size)
        plain = torch.arange(t * h * w) + self.layers.others
        if not self.layers.blocks:  # transformers joins the frames in their order
            return plain
        bits = max((t * h * w - 1).bit_length(), 1)
        numbers = torch.arange(t * h * w).view(t, h, w)
        mixed = [(numbers >> i) & 1 for i in range(bits)]
        masks = torch.stack([torch.zeros_like(numbers), torch.ones_like(numbers), *mixed]).bool()
        pixels = repeat(
            masks, "n t h w -> n (t u) 1 (h p) (w q)", u=self.clip.tubelet, p=self.clip.patch, q=self.clip.patch
        )
        like = self._zeros(self.model, size)
        noise = torch.randn(2, *like.shape[1:], generator=torch.Generator().manual_seed(0)).to(like)
        given = (torch.where(each.to(like.device), noise[1], noise[0]) for each in pixels)
        base, *entering = (self._entering(clip) for clip in given)
        moved, *changed = ((each - base).abs().amax(-1) for each in entering)
        least = 1e-4 * moved.max()
        codes = sum((each > least).long() << i for i, each in enumerate(changed))
        where = (moved > least).nonzero()[:, 0].cpu()
        if len(where) != t * h * w:  # the weights are zero so far
            return plain
        found = torch.as_tensor(codes).cpu()[where]
        return where[found.argsort()] if torch.equal(found.sort().values, plain - self.layers.others) else plain

    def _entering(self, clip: Float[Tensor, "T C H W"]) -> Float[Tensor, "N D"]:
        """Return the tokens of one clip that enter the first block."""
        taken: list[Tensor] = []

        def take(_module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            taken.append(_tensor(given if given else list(named.values())))
            raise _Done

        hook = find_layers(self.model)[0].register_forward_pre_hook(take, with_kwargs=True)
        mode = self.model.training
        self.model.eval()
        try:
            self._call(self.model, clip[None])
        except _Done:
            pass
        finally:
            hook.remove()
            self.model.train(mode)
        return _joined(taken[0], 1)[0].float()


class _Done(Exception):
    """The tokens that enter the first block are known."""


def _tensor(value: Any) -> Tensor:
    found = first_tensor(value)
    assert found is not None
    return found


def _is_norm(module: nn.Module) -> bool:
    return "Norm" in type(module).__name__


def _extra(tokens: Tensor, patches: int) -> int | None:
    """Return the tokens beside the patches of one clip, or None if their number is not a clip's."""
    extra = tokens.shape[0] * tokens.shape[1] - patches if tokens.ndim == 3 else -1
    return extra if 0 <= extra <= MOST_PREFIX else None


def _joined(tokens: Float[Tensor, "_ _ D"], batch: int) -> Float[Tensor, "B N D"]:
    """Return the tokens of each clip in one row, if the encoder has a row for each frame."""
    return tokens.reshape(batch, -1, tokens.shape[-1])


def _empty(tensor: Tensor) -> Tensor:
    meta = tensor.detach().to("meta")
    return nn.Parameter(meta, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else meta
