"""Loading a backbone with its weights by name: built in, of the zoo, a directory or repository, or a file."""

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TypeVar, get_args

import torch
from torch import Tensor

from vitbackbone.checkpoints.adapted import AdaptedDirectory
from vitbackbone.checkpoints.adaptors import attach_adaptor
from vitbackbone.checkpoints.channels import (
    VIT_KERNELS,
    inflate,
    kernels,
    preprocess_for,
    stored_channels,
    with_channels,
    with_wavelengths,
)
from vitbackbone.checkpoints.dinotxt import attach_text_head, is_text_head
from vitbackbone.checkpoints.formats import FORMATS, TOWERS
from vitbackbone.checkpoints.formats.openvla import OPENVLA_PARTS, split_openvla
from vitbackbone.checkpoints.open_clip_images import OpenClipDirectory
from vitbackbone.checkpoints.other_sizes import Size, at_size, resample_tables, trained_grid
from vitbackbone.checkpoints.pyramids import PYRAMID, attach_pyramid, has_pyramid
from vitbackbone.checkpoints.rules import HEADS, ConversionError, State, bind, convert
from vitbackbone.checkpoints.scaled_pyramids import attach_scaled_pyramid, has_scaled_pyramid
from vitbackbone.checkpoints.shapes import Parts, settle
from vitbackbone.checkpoints.shards import read_directory
from vitbackbone.checkpoints.sources import CONFIG, AnyDirectory, Directory, describe, find_weights, pin
from vitbackbone.checkpoints.tensor_files import read_weights
from vitbackbone.checkpoints.timm_directory import TimmDirectory
from vitbackbone.checkpoints.timm_names import timm_rules
from vitbackbone.checkpoints.towers import Taken, count_blocks, take
from vitbackbone.checkpoints.trainers import unwrap
from vitbackbone.checkpoints.zoo import ADAPTED, ZOO, Entry, Positions
from vitbackbone.contract import BackboneModule, float32_default
from vitbackbone.images import Preprocess
from vitbackbone.model import Indivisible, ViT, ViTConfig, make_vit
from vitbackbone.networks import FusedBackbone, FusedConfig, TimmBackbone, TimmConfig, fuse

Weights = str | PathLike[str]
Network = TypeVar("Network", ViT, TimmBackbone)
LOG = logging.getLogger("vitbackbone")
DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Checkpoint:
    """A backbone, and the classifier that the checkpoint has beside it."""

    backbone: BackboneModule
    head: dict[str, Tensor]  # the classifier's parameters, under the prefixes of `rules.HEADS`; {} if none
    labels: tuple[str, ...]  # class names in the order of the head's outputs; () if there are none


def load_backbone(
    name: str | PathLike[str],
    weights: Weights | None = None,
    *,
    positions: Positions = "native",
    indivisible: Indivisible = "pad",
    image_size: Size | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    tower: str | None = None,
    part: str | None = None,
    in_chans: int | None = None,
    wavelengths: Sequence[float] | None = None,
    adaptor: str | None = None,
) -> BackboneModule:
    """Load a backbone in eval mode.

    `name`: `"nano"` (built in), a name of `list_backbones()`, `"timm:NAME"` for any other model of timm with feature
    levels, `"hf:OWNER/REPOSITORY"` (or timm's spelling, `"hf-hub:"`), or a directory that transformers or timm wrote.
    The vision tower of a larger model is found by its keys, and nothing else is read. `@REVISION` after a name of the
    Hub pins a commit or tag.
    `weights`: a `.safetensors`, `.pth`, `.ckpt`, `.bin` or `.npz` file in the format of that name, or `"random"` for an
    untrained model. A trainer's file may have the network under any prefix; a line of the log says what was taken and
    left out. Neither needs a network. The default takes the weights from the package (`nano`), from the directory, from
    the Hub's cache, or from the Hub. `HF_HUB_OFFLINE=1` forbids downloads.
    `positions`: how position tables are resampled at other sizes than the native one. `"native"` follows the authors of
    the weights, or transformers for a Hugging Face checkpoint. `"timm"` and `"hf"` follow those libraries. For a Swin
    it decides the windows at other sizes.
    `indivisible`: what to do with images that the patch size does not divide. `"pad"` adds zeros at the right and
    bottom; `"refuse"` raises `ValueError`.
    `image_size`: the native size in pixels, one side or (height, width), if it is not the name's. Tables of positions
    that were trained at this size are kept, and others are resampled to it once. Without it, tables of another size
    are resampled to the name's size, and a line of the log says so.
    `dtype`, `device`: of the parameters; float32 on the CPU if not given. `dtype` may be a name such as `"bfloat16"`.
    `tower`: which vision tower of a checkpoint that has several: the prefix of its keys, such as
    `"encoder.image_encoder"`, or the object in `config.json` that holds its settings.
    `part`: which copy of the network in a trainer's file, such as `"student"`. By default an averaged copy comes first:
    `ema`, `teacher`, `target_encoder`; then `state_dict`, `model`, `encoder`.
    `in_chans`: the number of channels of the images, if it is not the name's. A checkpoint with such kernels is loaded
    as it is, and RGB kernels are fitted by timm's rule: 1 is their sum, n are the kernels in turn, times 3 / n. The
    means and deviations of `preprocess` follow; replace them if those of the bands are known.
    `wavelengths`: of the channels of the images, in micrometres, for a network that makes its patch projection from
    them (DOFA).
    `adaptor`: the name of a C-RADIO's teacher, such as `"siglip2-g"`: the features are the teacher's, as the checkpoint
    predicts them. They have one layer, and `pooled` is the teacher's summary of the image. `"fpn"`: the layers are the
    maps of the feature pyramid of a SAM 2 or SAM 3, from the finest to the coarsest. The path of a file: the features
    of dino.txt's blocks in that file, in the space of the vectors of `load_text`.

    Raises `ValueError` on an unknown name, a malformed file, or several towers, `OSError` if a file cannot be read,
    `WeightsUnavailable` if the weights cannot be downloaded, and `ConversionError` if the file does not fill the model
    exactly.
    """
    options = Options(positions, indivisible, image_size, dtype, device, tower, part, in_chans, wavelengths, adaptor)
    return _load_checkpoint(name, weights, options).backbone


def load_checkpoint(
    name: str | PathLike[str],
    weights: Weights | None = None,
    *,
    positions: Positions = "native",
    indivisible: Indivisible = "pad",
    image_size: Size | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    tower: str | None = None,
    part: str | None = None,
    in_chans: int | None = None,
    wavelengths: Sequence[float] | None = None,
    adaptor: str | None = None,
) -> Checkpoint:
    """Load a backbone with the parameters and class names of its classifier, if the checkpoint has one. It takes the
    arguments of `load_backbone` and raises its errors."""
    options = Options(positions, indivisible, image_size, dtype, device, tower, part, in_chans, wavelengths, adaptor)
    return _load_checkpoint(name, weights, options)


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `load_backbone`. Raises `ValueError` on an unknown value."""

    positions: Positions
    indivisible: Indivisible
    image_size: Size | None
    dtype: str | torch.dtype | None
    device: str | torch.device | None
    tower: str | None
    part: str | None
    in_chans: int | None = None
    wavelengths: Sequence[float] | None = None
    adaptor: str | None = None

    def __post_init__(self) -> None:
        if self.positions not in get_args(Positions):
            raise ValueError(f"positions={self.positions!r}; want one of {', '.join(get_args(Positions))}")
        if self.dtype is not None and str(self.dtype).removeprefix("torch.") not in DTYPES:
            raise ValueError(f"dtype={self.dtype}; want one of {', '.join(DTYPES)}")

    def apply(self, config: ViTConfig | TimmConfig) -> ViTConfig | TimmConfig:
        """Return the configuration with the options that belong to it."""
        sized = replace(at_size(config, self.image_size), indivisible=self.indivisible)
        if self.wavelengths is not None:
            return with_wavelengths(sized, tuple(self.wavelengths))
        return with_channels(sized, self.in_chans)

    def move(self, checkpoint: Checkpoint) -> Checkpoint:
        """Move the parameters to the device and dtype."""
        if self.dtype is None and self.device is None:
            return checkpoint
        dtype = None if self.dtype is None else getattr(torch, str(self.dtype).removeprefix("torch."))
        head = {key: tensor.to(device=self.device, dtype=dtype) for key, tensor in checkpoint.head.items()}
        return replace(checkpoint, backbone=checkpoint.backbone.to(device=self.device, dtype=dtype), head=head)


def _load_checkpoint(name: str | PathLike[str], weights: Weights | None, options: Options) -> Checkpoint:
    # A model loaded in inference mode can still be trained, and it is float32 whatever torch's default dtype is
    with torch.inference_mode(False), float32_default():
        return options.move(_load(str(name), weights, options))


def _load(name: str, weights: Weights | None, options: Options) -> Checkpoint:
    if options.adaptor is not None and is_text_head(options.adaptor):
        backbone = _load(name, weights, replace(options, adaptor=None)).backbone
        try:
            return Checkpoint(attach_text_head(backbone, options.adaptor, name), {}, ())
        except ConversionError as error:
            raise ConversionError(f"{options.adaptor}: {error}") from error
    known, revision = pin(name)
    found = describe(known, revision, offline=weights is not None)
    labels = () if isinstance(found, Entry) else found.labels
    if isinstance(found, Entry) and isinstance(found.config, FusedConfig):
        return Checkpoint(_load_fused(name, found, weights, options), {}, ())
    if options.adaptor is not None and (weights == "random" or not isinstance(found, Directory)):
        raise ValueError(
            f"adaptor={options.adaptor!r}: {name} has none; want a directory of C-RADIO, SAM 2 or SAM 3, with weights"
        )
    if isinstance(found, AdaptedDirectory):
        return _load_adapted(found, name, weights, options)
    if weights == "random":
        entry = found if isinstance(found, Entry) else found.entry(options.tower)
        return Checkpoint(
            _build(options.apply(entry.at_other_sizes(options.positions)), entry, name).eval(), {}, labels
        )
    state = find_weights(known, revision, found) if weights is None else read_weights(weights)
    place = _place(known, weights)
    try:
        backbone, head = _fill(found, name, unwrap(state), options, place)
        _check_labels(head, labels)
        if options.adaptor is not None:
            return Checkpoint(_adaptor(found, backbone, unwrap(state), options.adaptor, name), {}, ())
    except ConversionError as error:
        plain = weights is None and options.adaptor is None
        if plain and (instead := _load_instead(found, name, options)) is not None:
            return instead
        raise ConversionError(f"{place}: {error}") from error
    return Checkpoint(backbone, head, labels if head else ())


def _adaptor(
    found: Entry | AnyDirectory, backbone: ViT | TimmBackbone, state: State, adaptor: str, name: str
) -> BackboneModule:
    """Return the backbone of an adaptor's features."""
    if isinstance(found, Directory) and adaptor == PYRAMID and has_scaled_pyramid(state):
        return attach_scaled_pyramid(backbone, found.saved, state, name)
    if isinstance(found, Directory) and isinstance(backbone, ViT):
        return attach_adaptor(backbone, adaptor, found.saved, state, name)
    if isinstance(found, Directory) and adaptor == PYRAMID and has_pyramid(state):
        return attach_pyramid(backbone, found.saved, state, name)
    wanted = f"want a directory of C-RADIO, or {PYRAMID!r} of a SAM 2 or SAM 3"
    raise ValueError(f"adaptor={adaptor!r}: {name} has none; {wanted}")


def _load_instead(found: AnyDirectory | Entry, name: str, options: Options) -> Checkpoint | None:
    """Load the tower of a composite model or a backbone class in the adapter if its keys fit no native format, or
    return None.

    Such models may keep the tower's keys under other names than the tower's own class, which transformers knows.
    """
    if not isinstance(found, Directory):
        return None
    if not all(part.path for part in found.parts) and not found.architecture.endswith("Backbone"):
        return None
    adapted = found.adapted()
    try:
        return None if adapted is None else _load_adapted(adapted, name, None, options)
    except ValueError:  # the error about the native format says more
        return None


def _load_adapted(found: AdaptedDirectory, name: str, weights: Weights | None, options: Options) -> Checkpoint:
    """Load an image encoder of transformers in the adapter."""
    if options.part is not None:
        raise ValueError(f"part={options.part!r}: {name} runs by transformers' own code, which reads no other copies")
    config = found.configure(options.tower, options.image_size, options.indivisible, options.in_chans)
    if weights == "random":
        return Checkpoint(found.build(config, name), {}, ())
    state = read_directory(name, found.find_file) if weights is None else read_weights(weights)
    backbone, note = found.load(config, name, unwrap(state))
    _log(_place(name, weights), note)
    return Checkpoint(backbone, {}, ())


def _check_labels(head: Mapping[str, Tensor], labels: tuple[str, ...]) -> None:
    outputs = len(next(iter(head.values()))) if head else 0
    if head and labels and len(labels) != outputs:
        raise ConversionError(
            f"the checkpoint does not fit:\n  {outputs} outputs of the classifier, {len(labels)} labels in id2label"
        )


def _place(known: str, weights: Weights | None) -> str:
    """Name the files that do not go together: the weights, and the config.json of a directory."""
    if known in ZOO or not Path(known, CONFIG).is_file():
        return known if weights is None else f"{weights} and {known}"
    own = Path(known, "model.safetensors")
    return f"{weights or (own if own.is_file() else known)} and {Path(known, CONFIG)}"


def _build(config: ViTConfig | TimmConfig, entry: Entry, name: str) -> ViT | TimmBackbone:
    if isinstance(config, TimmConfig):
        return TimmBackbone(config, _preprocess(config, entry), name)
    return make_vit(config, _preprocess(config, entry), name)


def _preprocess(config: ViTConfig | TimmConfig, entry: Entry) -> Preprocess:
    same = config.image_size == entry.config.image_size
    own = entry.preprocess if same else replace(entry.preprocess, image_size=config.image_size, unseen=(0, 0))
    return preprocess_for(own, config.channels)


def _fill(
    found: Entry | Directory | TimmDirectory | OpenClipDirectory, name: str, state: State, options: Options, place: str
) -> tuple[ViT | TimmBackbone, dict[str, Tensor]]:
    """Return the backbone with a checkpoint's weights, and the parameters of its head."""
    timm_written = isinstance(found, TimmDirectory)
    if isinstance(found, TimmDirectory | OpenClipDirectory):
        found = found.entry()
    if isinstance(found, Entry) and found.classifier is not None:
        return _fill_by_name(found, name, state, options, place)
    if isinstance(found, Directory):
        entry, taken = found.find(state, options.tower, options.part)
    else:
        entry, must = found, found.format in TOWERS
        taken = take(state, FORMATS[found.format], options.tower, options.part, must)
        if timm_written and isinstance(entry.config, ViTConfig):
            blocks = count_blocks(taken.tensors, "", taken.rules)
            entry = replace(entry, config=settle(entry.config, taken.rules, taken.tensors, blocks, {}))
    config = options.apply(entry.at_other_sizes(options.positions))
    # A directory is a larger model as a rule; a file was given as the network's own
    _log(place, taken.note, logging.DEBUG if isinstance(found, Directory) else logging.WARNING)
    _log(place, taken.warning)
    if isinstance(config, TimmConfig):
        return _fill_timm(_build_timm(config, entry, name), config, entry, taken)
    assert isinstance(entry.config, ViTConfig)
    stored = stored_channels(config, VIT_KERNELS, taken.rules, taken.tensors, entry.config.channels)
    rules = bind(taken.rules, replace(config, channels=stored))
    config = replace(config, mask_token="mask_token" in Parts(rules, taken.tensors))
    grid = trained_grid(config, rules, taken.tensors)
    size = (grid[0] * config.patch_size, grid[1] * config.patch_size)
    if grid != config.grid and isinstance(found, Directory) and options.image_size is None:
        raise ConversionError(_two_sizes(config, size))
    with torch.device("meta"):
        backbone = make_vit(config, _preprocess(config, entry), name)
        expected = _build(replace(config, image_size=size, channels=stored), entry, name).state_dict()
    parameters = convert(taken.tensors, rules, expected)
    if stored != config.channels:
        parameters = inflate(parameters, VIT_KERNELS, backbone.state_dict())
    if grid != config.grid:
        parameters = resample_tables(parameters, config, grid)
        height, width = config.image_size
        _log(place, f"resampled the positions, trained at {size[0]} x {size[1]} pixels, to {height} x {width}")
    return _assign(backbone, parameters)


def _fill_by_name(
    entry: Entry, name: str, state: State, options: Options, place: str
) -> tuple[TimmBackbone, dict[str, Tensor]]:
    """Fill a network of timm, whose rules follow from its parameters' names."""
    backbone = _build_timm(options.apply(entry.at_other_sizes(options.positions)), entry, name)
    taken = take(state, timm_rules(backbone, entry.classifier or ()), options.tower, options.part, must=False)
    _log(place, taken.note)
    assert isinstance(backbone.config, TimmConfig)
    return _fill_timm(backbone, backbone.config, entry, taken)


def _fill_timm(
    backbone: TimmBackbone, config: TimmConfig, entry: Entry, taken: Taken
) -> tuple[TimmBackbone, dict[str, Tensor]]:
    """Fill a network of timm from a checkpoint that was trained at its size, or at the name's.

    A network that is built again for each size keeps the tables of the name's size, and resamples them when it runs.
    """
    native, size = entry.config, config.image_size
    assert isinstance(native, TimmConfig)
    try:
        return _fill_timm_at(backbone, config, entry, taken)
    except ConversionError as error:
        if not config.rebuild or native.image_size == size:
            raise
        own = at_size(config, native.image_size)
        assert isinstance(own, TimmConfig)
        try:
            filled, head = _fill_timm_at(_build_timm(own, entry, backbone.spec.name), own, entry, taken)
        except ConversionError:
            raise error from None
        filled.preprocess = replace(filled.preprocess, image_size=size, unseen=(0, 0))
        filled.spec = replace(filled.spec, image_size=size)
        note = f"kept the positions, trained at {_by(native.image_size)} pixels; images of {_by(size)} resample them"
        _log(filled.spec.name, note)
        return filled, head


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"


def _fill_timm_at(
    backbone: TimmBackbone, config: TimmConfig, entry: Entry, taken: Taken
) -> tuple[TimmBackbone, dict[str, Tensor]]:
    """Fill a network of timm from a checkpoint of its own number of channels, or of RGB."""
    wanted, names = backbone.state_dict(), kernels(backbone)
    assert isinstance(entry.config, TimmConfig)
    stored = stored_channels(config, names, taken.rules, taken.tensors, entry.config.channels)
    if stored == config.channels:
        return _assign(backbone, convert(taken.tensors, taken.rules, wanted))
    expected = _build_timm(replace(config, channels=stored), entry, backbone.spec.name).state_dict()
    return _assign(backbone, inflate(convert(taken.tensors, taken.rules, expected), names, wanted))


def _build_timm(config: ViTConfig | TimmConfig, entry: Entry, name: str) -> TimmBackbone:
    with torch.device("meta"):
        backbone = _build(config, entry, name)
    assert isinstance(backbone, TimmBackbone)
    return backbone


def _assign(backbone: Network, parameters: dict[str, Tensor]) -> tuple[Network, dict[str, Tensor]]:
    """Give a network its parameters, and return it with those of the head."""
    head = {key: parameters.pop(key) for key in list(parameters) if key.startswith(HEADS)}
    for name, wanted in backbone.state_dict().items():
        if name in parameters and parameters[name].shape != wanted.shape:
            given, asked = (" x ".join(map(str, each.shape)) for each in (parameters[name], wanted))
            raise ConversionError(
                f"the checkpoint does not fit:\n  {name} is {given} and {asked} for this image_size, and no rule "
                "resamples it; load without image_size"
            )
    backbone.load_state_dict(parameters, assign=True)
    return backbone.eval(), head


def _two_sizes(config: ViTConfig | TimmConfig | FusedConfig, size: tuple[int, int]) -> str:
    """Say that a directory's settings and weights have different sizes."""
    (height, width), (rows, columns) = config.image_size, size
    return (
        f"the checkpoint does not fit:\n  image_size is {height} x {width} in the settings, and the weights have "
        f"positions for {rows} x {columns}; load with image_size=({rows}, {columns}) to keep these positions"
    )


def _log(place: str, note: str, level: int = logging.WARNING) -> None:
    if note:
        LOG.log(level, "%s: %s", place, note)


def _load_fused(name: str, entry: Entry, weights: Weights | None, options: Options) -> FusedBackbone:
    """Load each member with its own weights, or all members from one file in OpenVLA's layout."""
    assert isinstance(entry.config, FusedConfig)
    if options.image_size is not None:
        raise ValueError(
            f"image_size={options.image_size}: {name} fuses several backbones; load each with its own size"
        )
    names = [member for member, _, _ in entry.config.members]
    if weights is None or weights == "random":
        members = [_load_checkpoint(member, weights, options).backbone for member in names]
        return fuse(entry.config, members, name)
    members = []
    # OpenVLA keeps the positions of its own input size
    options = replace(options, image_size=entry.config.image_size)
    for member, part, state in zip(names, OPENVLA_PARTS, split_openvla(read_weights(weights)), strict=True):
        try:
            members.append(_fill(ZOO[member], member, state, options, str(weights))[0])
        except ConversionError as error:
            raise ConversionError(f"in {part}*, {error}") from error
    return fuse(entry.config, members, name)


def list_backbones(pattern: str = "*") -> list[str]:
    """Return the names that `load_backbone` knows and that match a shell pattern such as `"*dinov2*"`."""
    return fnmatch.filter([*ZOO, *ADAPTED], pattern)


def find_entry(name: str | PathLike[str], tower: str | None = None) -> Entry:
    """Return the entry of a backbone, without its weights: from the zoo, or from a directory of transformers or timm. A
    name of `list_backbones()` needs no network. Raises the errors of `load_backbone`.

    `tower`: the object in `config.json` that holds the settings of a tower, if there are several.
    """
    found = describe(*pin(str(name)), offline=True)
    return found if isinstance(found, Entry) else found.entry(tower)
