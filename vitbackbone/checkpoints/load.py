"""Loading a backbone with its weights by name: built in, of the zoo, a directory or repository, or a file."""

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from vitbackbone.checkpoints.adapted_directory import AdaptedDirectory
from vitbackbone.checkpoints.dinotxt import attach_text_head, is_text_head
from vitbackbone.checkpoints.fill import build, fill, log
from vitbackbone.checkpoints.formats.openvla import OPENVLA_PARTS, split_openvla
from vitbackbone.checkpoints.options import Checkpoint, Options
from vitbackbone.checkpoints.other_sizes import Size
from vitbackbone.checkpoints.radio_adaptors import attach_adaptor
from vitbackbone.checkpoints.resolve import CONFIG, AnyDirectory, Directory, describe, find_weights, pin
from vitbackbone.checkpoints.rules import ConversionError, State
from vitbackbone.checkpoints.sam2_pyramid import PYRAMID, attach_pyramid, has_pyramid
from vitbackbone.checkpoints.sam3_pyramid import attach_scaled_pyramid, has_scaled_pyramid
from vitbackbone.checkpoints.shards import read_directory
from vitbackbone.checkpoints.tensor_files import read_weights
from vitbackbone.checkpoints.trainers import unwrap
from vitbackbone.checkpoints.zoo import ADAPTED, ZOO, Entry, Positions
from vitbackbone.contract import BackboneModule, float32_default
from vitbackbone.model import Indivisible, ViT
from vitbackbone.networks import FusedBackbone, FusedConfig, TimmBackbone, fuse

Weights = str | PathLike[str]


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

    `name`: `"nano"` (built in), a name of `list_backbones()`, `"timm:NAME"` for any other model of timm whose
    maps cover the image, `"hf:OWNER/REPOSITORY"` (or timm's spelling, `"hf-hub:"`), or a directory that transformers or
    timm wrote.
    The vision tower of a larger model is found by its keys, and nothing else is read. `@REVISION` after a name of the
    Hub pins a commit or tag.
    `weights`: a `.safetensors`, `.pth`, `.ckpt`, `.bin` or `.npz` file in the format of that name, or `"random"` for an
    untrained model. A trainer's file may have the network under any prefix; a line of the log says what was taken and
    left out. Neither value needs a network. The default takes the weights from the package (`nano`), from the
    directory, from the Hub's cache, or from the Hub. `HF_HUB_OFFLINE=1` forbids downloads.
    `positions`: how position tables are resampled at other sizes than the native one. `"native"` follows the authors of
    the weights, or transformers for a Hugging Face checkpoint. `"timm"` and `"hf"` follow those libraries. For a Swin
    it decides the windows at other sizes.
    `indivisible`: what to do with images that the patch size does not divide. `"pad"` adds zeros at the right and
    bottom; `"refuse"` raises `ValueError`.
    `image_size`: the native size in pixels, one side or (height, width), if it is not the name's. Tables of positions
    that were trained at this size are kept, and others are resampled to it once. Without it, tables of another size
    are resampled to the name's size, and a line of the log says so.
    `dtype`, `device`: where and how the parameters are kept; float32 on the CPU by default. `dtype` may be a name such
    as `"bfloat16"`.
    `tower`: which vision tower to load from a checkpoint that has several. It is the prefix of its keys, such as
    `"encoder.image_encoder"`, or the object in `config.json` that holds its settings.
    `part`: which copy of the network in a trainer's file, such as `"student"`. By default an averaged copy comes first:
    `ema`, `teacher`, `target_encoder`; then `state_dict`, `model`, `encoder`.
    `in_chans`: the number of channels of the images, if it is not the name's. A checkpoint with such kernels is loaded
    as it is. RGB kernels are fitted by timm's rule: one channel gets their sum, and n channels get the kernels in turn,
    times 3 / n. The means and deviations of `preprocess` are fitted in the same way; replace them if you know the
    statistics of the bands.
    `wavelengths`: one for each channel of the images, in micrometres, for a network that makes its patch projection
    from them (DOFA, Clay).
    `adaptor`: the name of a C-RADIO's teacher, such as `"siglip2-g"`: the features are the teacher's, as the checkpoint
    predicts them. They have one layer, and `pooled` is the teacher's summary of the image. `"fpn"`: the layers are the
    maps of the feature pyramid of a SAM 2 or SAM 3, from the finest to the coarsest. The path of a file: the features
    of dino.txt's blocks in that file, in the space of the vectors of `load_text`.

    Raises `ValueError` on an unknown name, a malformed file, or several towers, and `OSError` if a file cannot be read.
    Raises `WeightsUnavailable` if the weights cannot be downloaded, and `ConversionError` if the file does not fill the
    model exactly.
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
        return Checkpoint(build(options.apply(entry.at_other_sizes(options.positions)), entry, name).eval(), {}, labels)
    state = find_weights(known, revision, found) if weights is None else read_weights(weights)
    place = _place(known, weights)
    try:
        backbone, head = fill(found, name, unwrap(state), options, place)
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
        raise ValueError(
            f"part={options.part!r}: {name} runs in transformers' own code, which reads no trainer's files"
        )
    config = found.configure(options.tower, options.image_size, options.indivisible, options.in_chans)
    if weights == "random":
        return Checkpoint(found.build(config, name), {}, ())
    state = read_directory(name, found.find_file) if weights is None else read_weights(weights)
    backbone, note = found.load(config, name, unwrap(state))
    log(_place(name, weights), note)
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
            members.append(fill(ZOO[member], member, state, options, str(weights))[0])
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
    if not isinstance(found, Entry):
        return found.entry(tower)
    if tower is not None:
        raise ValueError(f"{name} has a single vision tower, so that tower={tower!r} names none; leave it out")
    return found
