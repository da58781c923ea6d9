"""Loading a backbone with its weights by name: built in, of the zoo, a Hugging Face directory, or a file."""

import fnmatch
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
from pydantic import Field
from torch import Tensor

from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.formats.openvla import OPENVLA_PARTS, split_openvla
from vitbackbone.checkpoints.hub import WeightsUnavailable, by_hand, download, download_config, download_if_there
from vitbackbone.checkpoints.huggingface import PLAIN, read_config, read_format, read_labels, read_preprocess
from vitbackbone.checkpoints.rules import HEADS, ConversionError, State, convert
from vitbackbone.checkpoints.suggestions import did_you_mean
from vitbackbone.checkpoints.tensor_files import read_weights
from vitbackbone.checkpoints.timm_names import describe_timm, timm_rules
from vitbackbone.checkpoints.zoo import ADAPTED, ZOO, Entry, Positions
from vitbackbone.contract import BackboneModule, float32_default
from vitbackbone.files import SHORT, Record, read_json
from vitbackbone.images import Preprocess
from vitbackbone.model import Indivisible, ViT, ViTConfig
from vitbackbone.networks import FusedBackbone, FusedConfig, TimmBackbone, TimmConfig, fuse

Weights = str | PathLike[str]

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", INDEX, "pytorch_model.bin")  # of a directory, in the order of preference
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
NANO_FILE = Path(__file__).parent / "weights" / "nano.safetensors"


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

    Raises `ValueError` on an unknown name or a malformed file, `OSError` if a file cannot be read,
    `WeightsUnavailable` if the weights cannot be downloaded, and `ConversionError` if the file does not fill the model
    exactly.
    """
    return load_checkpoint(name, weights, positions=positions, indivisible=indivisible).backbone


def load_checkpoint(
    name: str | PathLike[str],
    weights: Weights | None = None,
    *,
    positions: Positions = "native",
    indivisible: Indivisible = "pad",
) -> Checkpoint:
    """Load a backbone with the parameters and class names of its classifier, if the checkpoint has one. It takes the
    arguments of `load_backbone` and raises its errors."""
    # A model loaded in inference mode can still be trained, and it is float32 whatever torch's default dtype is
    with torch.inference_mode(False), float32_default():
        return _load(str(name), weights, positions, indivisible)


def _load(name: str, weights: Weights | None, positions: Positions, indivisible: Indivisible) -> Checkpoint:
    known, revision = _pin(name)
    entry, labels = _describe(known, revision, offline=weights is not None)
    if positions not in get_args(Positions):
        raise ValueError(f"positions={positions!r}; want one of {', '.join(get_args(Positions))}")
    if isinstance(entry.config, FusedConfig):
        return Checkpoint(_load_fused(name, entry, weights, positions, indivisible), {}, ())
    config = replace(entry.at_other_sizes(positions), indivisible=indivisible)
    if weights == "random":
        return Checkpoint(_build(config, entry, name).eval(), {}, labels)
    state = _find_weights(known, revision, entry) if weights is None else read_weights(weights)
    try:
        backbone, head = _fill(config, entry, name, state)
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
    if known in ZOO or not Path(known, CONFIG).is_file():
        return known if weights is None else f"{weights} and {known}"
    own = next((file for file in WEIGHTS if os.path.lexists(Path(known, file))), "")
    return f"{weights or Path(known, own)} and {Path(known, CONFIG)}"


def _build(config: ViTConfig | TimmConfig, entry: Entry, name: str) -> ViT | TimmBackbone:
    if isinstance(config, TimmConfig):
        return TimmBackbone(config, entry.preprocess, name)
    return ViT(config, entry.preprocess, name)


def _fill(
    config: ViTConfig | TimmConfig, entry: Entry, name: str, state: State
) -> tuple[ViT | TimmBackbone, dict[str, Tensor]]:
    """Return the backbone with a checkpoint's weights, and the parameters of its head."""
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
    return _describe(*_pin(str(name)), offline=True)[0]


# ---- sources ---------------------------------------------------------------------------------------------


def _pin(name: str) -> tuple[str, str | None]:
    """Split a name of the zoo or the Hub from the revision after its `@`. The path of a directory stays whole."""
    known, _, revision = name.partition("@")
    if revision and (known in ZOO or known in ADAPTED or known.startswith(("hf:", "timm:"))):
        if known in ZOO and not ZOO[known].on_hub:
            raise ValueError(f"{known!r} has no repository on the Hub, so no revision {revision!r}; leave out the '@'")
        return known, revision
    return name, None


def _describe(known: str, revision: str | None, offline: bool) -> tuple[Entry, tuple[str, ...]]:
    """Return the entry, and the class names of its head. `offline`: read a Hub repository's entry from the zoo."""
    if known in ZOO and (offline or not known.startswith("hf:")):
        return ZOO[known], ()
    if known in ADAPTED or known.startswith("timm:"):
        return _read_timm(known.removeprefix("timm:")), ()
    if known.startswith("hf:"):
        return _read_directory(download_config(known, revision))
    if Path(known).is_dir():
        return _read_directory(Path(known))
    raise ValueError(_unknown(known))


def _read_timm(name: str) -> Entry:
    """Return the entry of a timm model that runs in the adapter."""
    known = describe_timm(name)
    return Entry(
        known.config,
        "timm",
        known.preprocess,
        known.licence,
        known.source,
        num_classes=known.num_classes,
        classifier=known.classifier,
    )


def _read_directory(directory: Path) -> tuple[Entry, tuple[str, ...]]:
    config_file = directory / CONFIG
    if not os.path.lexists(config_file):
        raise ValueError(f"{directory} has no config.json; want a Hugging Face directory: config.json and safetensors")
    saved = read_json(config_file, dict)
    try:
        config, preprocess = read_config(saved)
        layout, labels = read_format(saved), read_labels(saved)
        if layout not in FORMATS:
            raise ValueError(
                f"config.json has the architecture {SHORT.repr(layout)}, whose key layout is not known here"
            )
    except ValueError as error:
        raise ValueError(f"{config_file}: {str(error).removeprefix(f'{CONFIG} ')}") from error
    preprocess = _read_processor(directory, preprocess)
    hf = config.resampling if isinstance(config, ViTConfig) else PLAIN
    return Entry(config, layout, preprocess, "", str(directory), hf, on_hub=False), labels


def _read_processor(directory: Path, default: Preprocess) -> Preprocess:
    """Return the image processor's settings, or `default` if no file has them. A processor for images and text keeps
    them under `image_processor`."""
    file = next((path for path in (directory / name for name in PROCESSORS) if os.path.lexists(path)), None)
    if file is None:
        return default
    settings = read_json(file, dict)
    if file.name == PROCESSORS[-1]:
        settings = settings.get("image_processor") or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"{file} has image_processor={SHORT.repr(settings)}; want an object")
    try:
        return read_preprocess(settings, default) if settings else default
    except ValueError as error:
        raise ValueError(f"{file}: {str(error).removeprefix(f'{PROCESSORS[0]} ')}") from error
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{file} has a value of the wrong type: {error!r}") from error


def _find_weights(known: str, revision: str | None, entry: Entry) -> dict[str, Tensor]:
    if known == "nano":
        return read_weights(NANO_FILE)
    if known.startswith("hf:"):
        repository = known.removeprefix("hf:")
        return _read_weights_of(known, lambda file: download_if_there(known, repository, file, revision))
    if known not in ZOO and entry.classifier is None:
        return _read_weights_of(known, lambda file: path if os.path.lexists(path := Path(known) / file) else None)
    if not entry.on_hub:
        raise WeightsUnavailable(by_hand(known, f"these weights are not on the Hub; they are at {entry.source}"))
    return read_weights(download(known, entry.source, "model.safetensors", revision))


def _read_weights_of(name: str, find: Callable[[str], Path | None]) -> dict[str, Tensor]:
    """Read the weights of a Hugging Face repository or directory, in one file or in shards. Safetensors come first.
    `find` returns the path of a file in it, or None."""
    for file in WEIGHTS:
        if found := find(file):
            return _read_shards(found, find) if file == INDEX else read_weights(found)
    raise FileNotFoundError(f"{name} has no {', no '.join(WEIGHTS)}")


class Index(Record):
    """The contents of `model.safetensors.index.json`: which file has which tensor."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)]


def _read_shards(index: Path, find: Callable[[str], Path | None]) -> dict[str, Tensor]:
    """Read the tensors of all files that an index names. Raises `ValueError` if a file lies in another folder than the
    index, or lacks a tensor that the index lists."""
    places = read_json(index, Index).weight_map
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or "\\" in name or "\0" in name:
            raise ValueError(f"{index} has {SHORT.repr(name)} in weight_map; want the name of a file beside it")
        file = find(name)
        if file is None:
            raise FileNotFoundError(f"{index.parent} lacks {name}, which {index.name} names")
        # Links are followed: in the Hub's cache, these files and the index are links into one other folder
        if file.resolve().parent not in (index.parent.resolve(), index.resolve().parent):
            raise ValueError(
                f"{index} has {SHORT.repr(name)} in weight_map, a link out of its folder, to {file.resolve()}"
            )
        tensors = read_weights(file)
        if twice := sorted(state.keys() & tensors.keys()):
            raise ValueError(f"{file} has {twice[0]}, which another file that {index.name} names has, too")
        state |= tensors
        if lost := sorted(key for key, place in places.items() if place == name and key not in tensors):
            raise ValueError(f"{file} lacks {lost[0]}, which {index.name} says it has")
    return state


def _unknown(known: str) -> str:
    hint = did_you_mean(known, [*ZOO, *ADAPTED])
    return f"unknown backbone {known!r}{hint} Want a name of list_backbones(), 'hf:OWNER/REPOSITORY' or a directory."
