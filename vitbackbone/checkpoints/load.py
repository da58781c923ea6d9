"""Loading a backbone with its weights by name: built in, of the zoo, a Hugging Face directory, or a file."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from vitbackbone.checkpoints.adapted import load_adapted
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.formats.openvla import OPENVLA_PARTS, split_openvla
from vitbackbone.checkpoints.rules import HEADS, ConversionError, State, convert
from vitbackbone.checkpoints.sources import CONFIG, Directory, describe, find_tower, find_weights, pin
from vitbackbone.checkpoints.tensor_files import read_weights
from vitbackbone.checkpoints.timm_names import timm_rules
from vitbackbone.checkpoints.zoo import ADAPTED, ZOO, Entry, Positions
from vitbackbone.contract import BackboneModule, float32_default
from vitbackbone.model import Indivisible, ViT, ViTConfig
from vitbackbone.networks import (
    FusedBackbone,
    FusedConfig,
    TimmBackbone,
    TimmConfig,
    TransformersBackbone,
    TransformersConfig,
    fuse,
)

Weights = str | PathLike[str]


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
    tower: str | None = None,
) -> BackboneModule:
    """Load a backbone in eval mode, float32, on the CPU.

    `name`: `"nano"` (built in), a name of `list_backbones()`, `"timm:NAME"` for any other model of timm with feature
    levels, `"hf:OWNER/REPOSITORY"`, or a Hugging Face directory (`config.json` and safetensors). `@REVISION` after a
    name of the Hub pins a commit or tag.
    `weights`: a `.safetensors`, `.pth` or `.npz` file in the format of that name, or `"random"` for an untrained model.
    Neither needs a network. The default takes the weights from the package (`nano`), from the directory, from the
    Hub's cache, or from the Hub. `HF_HUB_OFFLINE=1` forbids downloads.
    `positions`: how position tables are resampled at other sizes than the native one. `"native"` follows the authors of
    the weights, or transformers for a Hugging Face checkpoint. `"timm"` and `"hf"` follow those libraries. For a Swin
    it decides the windows at other sizes.
    `indivisible`: what to do with images that the patch size does not divide. `"pad"` adds zeros at the right and
    bottom; `"refuse"` raises `ValueError`.
    `tower`: which vision tower of a checkpoint that has several: the prefix of its keys, such as
    `"encoder.image_encoder"`, or the object in `config.json` that holds its settings.

    Raises `ValueError` on an unknown name or a malformed file, `OSError` if a file cannot be read,
    `WeightsUnavailable` if the weights cannot be downloaded, and `ConversionError` if the file does not fill the model
    exactly.
    """
    return load_checkpoint(name, weights, positions=positions, indivisible=indivisible, tower=tower).backbone


def load_checkpoint(
    name: str | PathLike[str],
    weights: Weights | None = None,
    *,
    positions: Positions = "native",
    indivisible: Indivisible = "pad",
    tower: str | None = None,
) -> Checkpoint:
    """Load a backbone with the parameters and class names of its classifier, if the checkpoint has one. It takes the
    arguments of `load_backbone` and raises its errors."""
    # A model loaded in inference mode can still be trained, and it is float32 whatever torch's default dtype is
    with torch.inference_mode(False), float32_default():
        return _load(str(name), weights, positions, indivisible, tower)


def _load(
    name: str, weights: Weights | None, positions: Positions, indivisible: Indivisible, tower: str | None
) -> Checkpoint:
    known, revision = pin(name)
    found = describe(known, revision, offline=weights is not None)
    labels = found.labels if isinstance(found, Directory) else ()
    if positions not in get_args(Positions):
        raise ValueError(f"positions={positions!r}; want one of {', '.join(get_args(Positions))}")
    if isinstance(found, Entry) and isinstance(found.config, FusedConfig):
        return Checkpoint(_load_fused(name, found, weights, positions, indivisible), {}, ())
    if weights == "random":
        entry = found.entry(tower) if isinstance(found, Directory) else found
        config = replace(entry.at_other_sizes(positions), indivisible=indivisible)
        return Checkpoint(_build(config, entry, name).eval(), {}, labels)
    state = find_weights(known, revision, found) if weights is None else read_weights(weights)
    try:
        entry, tensors = find_tower(found, state, tower)
        config = replace(entry.at_other_sizes(positions), indivisible=indivisible)
        backbone, head = _fill(config, entry, name, tensors)
        _check_labels(head, labels)
    except ConversionError as error:
        raise ConversionError(f"{_place(known, weights)}: {error}") from error
    return Checkpoint(backbone, head, labels if head else ())


def _check_labels(head: Mapping[str, Tensor], labels: tuple[str, ...]) -> None:
    outputs = len(next(iter(head.values()))) if head else 0
    if head and labels and len(labels) != outputs:
        raise ConversionError(
            f"the checkpoint does not fit:\n  {outputs} outputs of the classifier, {len(labels)} labels in id2label"
        )


def _place(known: str, weights: Weights | None) -> str:
    """Name the files that do not go together: the weights, and the config.json of a directory."""
    config = str(Path(known, CONFIG)) if Path(known, CONFIG).is_file() and known not in ZOO else known
    return config if weights is None else f"{weights} and {config}"


Network = ViT | TimmBackbone | TransformersBackbone


def _build(config: ViTConfig | TimmConfig | TransformersConfig, entry: Entry, name: str) -> Network:
    if isinstance(config, TransformersConfig):
        return TransformersBackbone(config, entry.preprocess, name)
    if isinstance(config, TimmConfig):
        return TimmBackbone(config, entry.preprocess, name)
    return ViT(config, entry.preprocess, name)


def _fill(
    config: ViTConfig | TimmConfig | TransformersConfig, entry: Entry, name: str, state: State
) -> tuple[Network, dict[str, Tensor]]:
    """Return the backbone with a checkpoint's weights, and the parameters of its head."""
    if isinstance(config, TransformersConfig):
        try:
            return load_adapted(config, entry.preprocess, name, state)[0], {}
        except ConversionError:
            raise
        except ValueError as error:
            raise ValueError(f"{Path(entry.source, CONFIG)}: {error}") from error
    with torch.device("meta"):
        backbone = _build(config, entry, name)
    if entry.classifier is not None and isinstance(backbone, TimmBackbone):
        rules = timm_rules(backbone, entry.classifier)
    else:
        rules = FORMATS[entry.format]
    parameters = convert(state, rules, backbone.state_dict())
    head = {key: parameters.pop(key) for key in list(parameters) if key.startswith(HEADS)}
    backbone.load_state_dict(parameters, assign=True)
    return backbone.eval(), head


def _load_fused(
    name: str, entry: Entry, weights: Weights | None, positions: Positions, indivisible: Indivisible
) -> FusedBackbone:
    """Load each member with its own weights, or all members from one file in OpenVLA's layout."""
    assert isinstance(entry.config, FusedConfig)
    names = [member for member, _, _ in entry.config.members]
    options: Any = {"positions": positions, "indivisible": indivisible}
    if weights is None or weights == "random":
        members = [load_backbone(member, weights, **options) for member in names]
    else:
        members = []
        parts = zip(names, OPENVLA_PARTS, split_openvla(read_weights(weights)), strict=True)
        for member, part, state in parts:
            of_member = ZOO[member]
            native = of_member.at_other_sizes(positions)
            assert isinstance(native, ViTConfig)
            # OpenVLA keeps the positions of its own input size
            config = replace(native, image_size=entry.config.image_size, indivisible=indivisible)
            try:
                members.append(_fill(config, of_member, member, state)[0])
            except ConversionError as error:
                raise ConversionError(f"in {part}*, {error}") from error
    return fuse(entry.config, members, name)


def list_backbones(pattern: str = "*") -> list[str]:
    """Return the names that `load_backbone` knows and that match a shell pattern such as `"*dinov2*"`."""
    return fnmatch.filter([*ZOO, *ADAPTED], pattern)


def find_entry(name: str | PathLike[str]) -> Entry:
    """Return the entry of a backbone, without its weights: from the zoo, or from a Hugging Face directory. A name of
    `list_backbones()` needs no network. Raises the errors of `load_backbone`."""
    found = describe(*pin(str(name)), offline=True)
    return found.entry() if isinstance(found, Directory) else found
