"""From a name to a backbone with its weights: the built-in one, the zoo, a Hugging Face directory, a file."""

import difflib
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
from vitbackbone.checkpoints.huggingface import PLAIN, read_config, read_format, read_labels, read_preprocess
from vitbackbone.checkpoints.rules import HEADS, ConversionError, State, convert
from vitbackbone.checkpoints.tensor_files import read_weights
from vitbackbone.checkpoints.timm_names import describe_timm, timm_rules
from vitbackbone.checkpoints.zoo import ADAPTED, ZOO, Entry, Positions
from vitbackbone.contract import BackboneModule, float32_default
from vitbackbone.files import Record, read_json
from vitbackbone.images import Preprocess
from vitbackbone.model import Indivisible, ViT, ViTConfig
from vitbackbone.networks import FusedBackbone, FusedConfig, TimmBackbone, TimmConfig, fuse

Weights = str | PathLike[str]

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
NANO_FILE = Path(__file__).parent / "weights" / "nano.safetensors"


class WeightsUnavailable(OSError):
    """The weights could not be had. The message says what to do without a network."""


@dataclass(frozen=True)
class Checkpoint:
    """A backbone and what came with it."""

    backbone: BackboneModule
    head: dict[str, Tensor]  # the classifier's own parameters, by what they read (`convert.HEADS`); {} if none
    labels: tuple[str, ...]  # class names in the order of the head's outputs; () if the checkpoint names none


def load_backbone(
    name: str | PathLike[str],
    weights: Weights | None = None,
    *,
    positions: Positions = "native",
    indivisible: Indivisible = "pad",
) -> BackboneModule:
    """A backbone in eval mode, float32, on the CPU.

    `name`: `"nano"` (built in), a name of `list_backbones()`, `"timm:NAME"` for any other model of timm with feature
    levels, `"hf:OWNER/REPOSITORY"`, or a Hugging Face directory (`config.json` and safetensors). `@REVISION` after a
    name of the Hub pins a commit or tag.
    `weights`: a `.safetensors`, `.pth` or `.npz` file in the format of that name, or `"random"` for an untrained model;
    neither needs a network. Without it, the weights come from the package (`nano`), the directory, or the Hub's cache
    and then the Hub (`HF_HUB_OFFLINE=1` forbids the latter).
    `positions`: how tables of positions are resampled for other sizes than the native one. `"native"` is what the
    authors of the weights run, and for a Hugging Face checkpoint what transformers runs; `"timm"` and `"hf"` are those
    of the two libraries. For a Swin it is how windows lie at other sizes.
    `indivisible`: what to do with images that the patch size does not divide; `"pad"` at the right and bottom, or
    `"refuse"` with a `ValueError`.

    Raises `ValueError` on an unknown name, `WeightsUnavailable` where there is no network, and
    `vitbackbone.checkpoints.rules.ConversionError` if the file does not fill the model exactly.
    """
    return load_checkpoint(name, weights, positions=positions, indivisible=indivisible).backbone


def load_checkpoint(
    name: str | PathLike[str],
    weights: Weights | None = None,
    *,
    positions: Positions = "native",
    indivisible: Indivisible = "pad",
) -> Checkpoint:
    """The backbone, and the classifier's parameters and class names where the checkpoint has them. The arguments and
    errors are those of `load_backbone`."""
    # A model can be trained that was loaded in inference mode, and is float32 whatever torch's default dtype is
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
    """The files that do not go together: the weights, and the config.json of a directory."""
    config = str(Path(known, CONFIG)) if Path(known, CONFIG).is_file() and known not in ZOO else known
    return config if weights is None else f"{weights} and {config}"


def _build(config: ViTConfig | TimmConfig, entry: Entry, name: str) -> ViT | TimmBackbone:
    if isinstance(config, TimmConfig):
        return TimmBackbone(config, entry.preprocess, name)
    return ViT(config, entry.preprocess, name)


def _fill(
    config: ViTConfig | TimmConfig, entry: Entry, name: str, state: State
) -> tuple[ViT | TimmBackbone, dict[str, Tensor]]:
    """The backbone with a checkpoint's weights, and the parameters of its head."""
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
    """Each member with its own weights, or all with those of one file in OpenVLA's layout."""
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
    """The names that `load_backbone` knows, by shell pattern (`"*dinov2*"`)."""
    return fnmatch.filter([*ZOO, *ADAPTED], pattern)


def find_entry(name: str | PathLike[str]) -> Entry:
    """What is known of a backbone without its weights: of the zoo, or of a Hugging Face directory. Needs no network
    for a name of `list_backbones()`. Raises as `load_backbone` does."""
    return _describe(*_pin(str(name)), offline=True)[0]


# ---- where things lie ---------------------------------------------------------------------------------------------


def _pin(name: str) -> tuple[str, str | None]:
    """A name of the zoo or the Hub, and the revision after its `@`, if any; the path of a directory as it is."""
    known, _, revision = name.partition("@")
    if revision and (known in ZOO or known in ADAPTED or known.startswith(("hf:", "timm:"))):
        if known in ZOO and not ZOO[known].on_hub:
            raise ValueError(f"{known!r} has no repository on the Hub, so no revision {revision!r}; leave out the '@'")
        return known, revision
    return name, None


def _describe(known: str, revision: str | None, offline: bool) -> tuple[Entry, tuple[str, ...]]:
    """The entry, and the class names of its head. `offline`: what the zoo knows of a Hub repository will do."""
    if known in ZOO and (offline or not known.startswith("hf:")):
        return ZOO[known], ()
    if known in ADAPTED or known.startswith("timm:"):
        return _read_timm(known.removeprefix("timm:")), ()
    if known.startswith("hf:"):
        return _read_directory(_download_config(known, revision))
    if Path(known).is_dir():
        return _read_directory(Path(known))
    raise ValueError(_unknown(known))


def _read_timm(name: str) -> Entry:
    """A model of timm that comes in through the adapter."""
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
            raise ValueError(f"config.json has the architecture {layout!r}, whose key layout is not known here")
    except ValueError as error:
        raise ValueError(f"{config_file}: {str(error).removeprefix(f'{CONFIG} ')}") from error
    preprocess = _read_processor(directory, preprocess)
    hf = config.resampling if isinstance(config, ViTConfig) else PLAIN
    return Entry(config, layout, preprocess, "", str(directory), hf, on_hub=False), labels


def _read_processor(directory: Path, default: Preprocess) -> Preprocess:
    """The image processor's settings, or `default` if there is no file of them. A processor of images and text keeps
    them inside."""
    file = next((path for path in (directory / name for name in PROCESSORS) if os.path.lexists(path)), None)
    if file is None:
        return default
    settings = read_json(file, dict)
    if file.name == PROCESSORS[-1]:
        settings = settings.get("image_processor", {})
    try:
        return read_preprocess(settings, default) if settings else default
    except ValueError as error:
        raise ValueError(f"{file}: {str(error).removeprefix(f'{PROCESSORS[0]} ')}") from error
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{file} has a value of another kind than it should: {error!r}") from error


def _find_weights(known: str, revision: str | None, entry: Entry) -> dict[str, Tensor]:
    if known == "nano":
        return read_weights(NANO_FILE)
    if known.startswith("hf:"):
        repository = known.removeprefix("hf:")
        return _read_weights_of(known, lambda file: _download_if_there(known, repository, file, revision))
    if known not in ZOO and entry.classifier is None:
        return _read_weights_of(known, lambda file: path if os.path.lexists(path := Path(known) / file) else None)
    if not entry.on_hub:
        raise WeightsUnavailable(_by_hand(known, f"these weights are not on the Hub; they are at {entry.source}"))
    return read_weights(_download(known, entry.source, "model.safetensors", revision))


def _read_weights_of(name: str, find: Callable[[str], Path | None]) -> dict[str, Tensor]:
    """The weights of a Hugging Face repository or directory, whole or in shards, safetensors first. `find` gives the
    path of a file in it, or None."""
    if whole := find("model.safetensors"):
        return read_weights(whole)
    if index := find(INDEX):
        return _read_shards(index, find)
    if pickled := find("pytorch_model.bin"):
        return read_weights(pickled)
    raise FileNotFoundError(f"{name} has no model.safetensors, no model.safetensors.index.json, no pytorch_model.bin")


class Index(Record):
    """What `model.safetensors.index.json` says: which file has which tensor."""

    weight_map: Annotated[dict[str, str], Field(min_length=1)]


def _read_shards(index: Path, find: Callable[[str], Path | None]) -> dict[str, Tensor]:
    """The tensors of all files that an index names. Raises `ValueError` if one lies elsewhere than the index, or does
    not have what the index says of it."""
    places = read_json(index, Index).weight_map
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name or "\\" in name or "\0" in name:
            raise ValueError(f"{index} has {name!r} in weight_map; want the name of a file beside it")
        file = find(name)
        if file is None:
            raise FileNotFoundError(f"{index.parent} lacks {name}, which {index.name} names")
        # Links are followed: in the Hub's cache, these files and the index are links into one other folder
        if file.resolve().parent not in (index.parent.resolve(), index.resolve().parent):
            raise ValueError(f"{index} has {name!r} in weight_map, a link out of its folder, to {file.resolve()}")
        tensors = read_weights(file)
        if twice := sorted(state.keys() & tensors.keys()):
            raise ValueError(f"{file} has {twice[0]}, which another file that {index.name} names has, too")
        state |= tensors
        if lost := sorted(key for key, place in places.items() if place == name and key not in tensors):
            raise ValueError(f"{file} lacks {lost[0]}, which {index.name} says it has")
    return state


# ---- the Hub ------------------------------------------------------------------------------------------------------


def _download_config(known: str, revision: str | None) -> Path:
    """The folder with a repository's `config.json` and, if it has one, `preprocessor_config.json`."""
    repository = known.removeprefix("hf:")
    config = _download(known, repository, "config.json", revision)
    if _download_if_there(known, repository, "preprocessor_config.json", revision) is None:
        _download_if_there(known, repository, "processor_config.json", revision)
    return config.parent


def _download_if_there(known: str, repository: str, file: str, revision: str | None) -> Path | None:
    """None if the repository has no such file, which is not the same as one that cannot be had now."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return _download(known, repository, file, revision)
    except WeightsUnavailable as error:
        cause = error.__cause__
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            return None
        if try_to_load_from_cache(repository, file, revision=revision) is _CACHED_NO_EXIST:
            return None
        raise


def _download(known: str, repository: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # no network, not in the cache, gated, a broken proxy: the client has no one error type
        why = f"{repository}/{file} could not be had from the Hub: {error}"
        raise WeightsUnavailable(_by_hand(known, why)) from error


def _by_hand(known: str, why: str) -> str:
    if known in ZOO:
        way = f"load_backbone({known!r}, weights=PATH) takes a file downloaded by hand, weights='random' is untrained"
    else:
        way = "load_backbone(DIR) takes a directory downloaded by hand, config.json and safetensors"
    return f"no weights for {known!r}: {why}\nWithout a network: {way}, and 'nano' is built in."


def _unknown(known: str) -> str:
    close = difflib.get_close_matches(known, [*ZOO, *ADAPTED], n=3, cutoff=0.5)
    hint = f", did you mean {' or '.join(map(repr, close))}?" if close else "."
    return f"unknown backbone {known!r}{hint} Want a name of list_backbones(), 'hf:OWNER/REPOSITORY' or a directory."
