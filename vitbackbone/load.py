"""From a name to a backbone with its weights: the built-in one, the zoo, a Hugging Face directory, a file."""

import difflib
import fnmatch
import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vitbackbone.config import Indivisible
from vitbackbone.convert import check_filled, convert
from vitbackbone.formats import FORMATS
from vitbackbone.huggingface import read_config, read_format, read_labels, read_preprocess
from vitbackbone.vit import ViT
from vitbackbone.zoo import ZOO, Entry

Positions = Literal["native", "timm", "hf"]
Weights = str | PathLike[str]

NANO_FILE = Path(__file__).parent / "weights" / "nano.safetensors"
HUB_FILES = ("config.json", "preprocessor_config.json")
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")


class WeightsUnavailable(OSError):
    """The weights could not be had. The message says what to do without a network."""


@dataclass(frozen=True)
class Checkpoint:
    """A backbone and what came with it."""

    backbone: ViT
    head: dict[str, Tensor]  # the classifier's own parameters: `head.weight`, `head.bias`, `head_dist.…`; {} if none
    labels: tuple[str, ...]  # class names in the order of the head's outputs; () if the checkpoint names none


def load_backbone(
    name: str | PathLike[str],
    weights: Weights | None = None,
    *,
    positions: Positions = "native",
    indivisible: Indivisible = "pad",
) -> ViT:
    """A backbone in eval mode, float32, on the CPU.

    `name`: `"nano"` (built in), a name of `list_backbones()`, `"hf:OWNER/REPOSITORY"`, or a Hugging Face directory
    (`config.json` and safetensors). `@REVISION` after a name of the Hub pins a commit or tag.
    `weights`: a `.safetensors` or `.pth` file in the format of that name, or `"random"` for an untrained model; neither
    needs a network. Without it, the weights come from the package (`nano`), the directory, or the Hub's cache and
    then the Hub (`HF_HUB_OFFLINE=1` forbids the latter).
    `positions`: how position tables are resampled for other sizes than the native one. `"native"` is what the authors
    of the weights run, and for a Hugging Face checkpoint what transformers runs; `"timm"` and `"hf"` are those of the
    two libraries.
    `indivisible`: what to do with images that the patch size does not divide; `"pad"` at the right and bottom, or
    `"refuse"` with a `ValueError`.

    Raises `ValueError` on an unknown name, `WeightsUnavailable` where there is no network, and
    `vitbackbone.convert.ConversionError` if the file does not fill the model exactly.
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
    name = str(name)
    known, revision = _pin(name)
    directory = _directory(known, revision, weights)
    entry, labels = _describe(known, directory)
    if positions not in entry.policies:
        raise ValueError(f"positions={positions!r}; want one of {', '.join(entry.policies)}")
    config = replace(entry.config, resampling=entry.policies[positions], indivisible=indivisible)

    if weights == "random":
        return Checkpoint(ViT(config, entry.preprocess, name).eval(), {}, labels)
    if weights is not None:
        state = read_weights(weights)
    elif directory is not None:
        state = _read_directory_weights(directory)
    else:
        state = read_weights(_zoo_file(known, revision, entry))

    filled = {key: value.float() for key, value in convert(state, FORMATS[entry.format]).items()}
    head = {key: value for key, value in filled.items() if key.startswith("head")}
    with torch.device("meta"):
        backbone = ViT(config, entry.preprocess, name)
    parameters = {key: value for key, value in filled.items() if key not in head}
    check_filled(parameters, backbone.state_dict())
    backbone.load_state_dict(parameters, assign=True)
    return Checkpoint(backbone.eval(), head, labels)


def list_backbones(pattern: str = "*") -> list[str]:
    """The names that `load_backbone` knows, by shell pattern (`"*dinov2*"`)."""
    return fnmatch.filter(ZOO, pattern)


def find_entry(name: str | PathLike[str]) -> Entry:
    """What is known of a backbone without its weights: of the zoo, or of a Hugging Face directory. Needs no network
    for a name of `list_backbones()`. Raises as `load_backbone` does."""
    known, revision = _pin(str(name))
    return ZOO[known] if known in ZOO else _describe(known, _directory(known, revision, None))[0]


def read_weights(path: Weights) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file, or of a `.pth`, `.pt` or `.bin` one read with `weights_only=True`, at its
    top level or under `model` or `state_dict`.

    Raises `FileNotFoundError`, or `ValueError` if the file is damaged, holds pickled code, or is no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights file at {path}")
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path} is not a whole safetensors file ({error}); download it again") from error
    if path.suffix not in (".pth", ".pt", ".bin"):
        raise ValueError(f"{path}: want a .safetensors file, or .pth, .pt or .bin")
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"{path} could not be read as plain tensors: it is damaged, or holds pickled code, which is never run. "
            f"Convert it to safetensors where you trust it. ({str(error).splitlines()[0] if str(error) else 'empty'})"
        ) from error
    for wrapper in ("model", "state_dict"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no state dict (names to tensors), nor one under 'model' or 'state_dict'")
    return dict(state)


# ---- where things lie ---------------------------------------------------------------------------------------------


def _pin(name: str) -> tuple[str, str | None]:
    """A name of the zoo or the Hub, and the revision after its `@`, if any; the path of a directory as it is."""
    known, _, revision = name.partition("@")
    if revision and (known in ZOO or known.startswith("hf:")):
        return known, revision
    return name, None


def _directory(name: str, revision: str | None, weights: Weights | None) -> Path | None:
    """The Hugging Face directory that `name` means, downloaded if need be; None if it means none. A known `hf:` name
    whose weights are given needs no directory."""
    if name.startswith("hf:") and not (name in ZOO and weights is not None):
        return _download_directory(name, revision)
    return Path(name) if name not in ZOO and Path(name).is_dir() else None


def _describe(name: str, directory: Path | None) -> tuple[Entry, tuple[str, ...]]:
    """The entry, and the class names of its head."""
    if directory is not None:
        return _read_directory(directory)
    if name in ZOO:
        return ZOO[name], ()
    raise ValueError(_unknown(name))


def _read_directory(directory: Path) -> tuple[Entry, tuple[str, ...]]:
    config_file, processor_file = (directory / file for file in HUB_FILES)
    if not config_file.is_file():
        raise ValueError(f"{directory} has no config.json; want a Hugging Face directory: config.json and safetensors")
    saved = json.loads(config_file.read_text())
    config, preprocess = read_config(saved)
    if processor_file.is_file():
        preprocess = read_preprocess(json.loads(processor_file.read_text()))
    layout = read_format(saved)
    if layout not in FORMATS:
        raise ValueError(f"{config_file} names the architecture {layout!r}, whose key layout is not known here")
    labels = read_labels(saved) if layout.find("Classification") >= 0 else ()
    return Entry(config, layout, preprocess, "", str(directory), config.resampling, on_hub=False), labels


def _read_directory_weights(directory: Path) -> dict[str, Tensor]:
    for file in WEIGHT_FILES:
        if not (directory / file).is_file():
            continue
        if file.endswith(".index.json"):
            shards = set(json.loads((directory / file).read_text())["weight_map"].values())
            return {k: v for shard in sorted(shards) for k, v in read_weights(directory / shard).items()}
        return read_weights(directory / file)
    raise FileNotFoundError(f"{directory} has none of {', '.join(WEIGHT_FILES)}")


def _zoo_file(name: str, revision: str | None, entry: Entry) -> Path:
    if name == "nano":
        return NANO_FILE
    if not entry.on_hub:
        raise WeightsUnavailable(_by_hand(name, f"these weights are not on the Hub; they are at {entry.source}"))
    return _download(name, entry.source, "model.safetensors", revision)


def _download_directory(name: str, revision: str | None) -> Path:
    repository = name.removeprefix("hf:")
    config = _download(name, repository, "config.json", revision)
    for optional in HUB_FILES[1:]:
        _download_if_there(name, repository, optional, revision)
    if _download_if_there(name, repository, "model.safetensors", revision) is None:
        index = _download(name, repository, "model.safetensors.index.json", revision)
        for shard in sorted(set(json.loads(index.read_text())["weight_map"].values())):
            _download(name, repository, shard, revision)
    return config.parent


def _download_if_there(name: str, repository: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return _download(name, repository, file, revision)
    except WeightsUnavailable as error:
        if isinstance(error.__cause__, EntryNotFoundError):
            return None
        raise


def _download(name: str, repository: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except (OSError, ValueError, EntryNotFoundError) as error:  # no network, not in the cache, no such file, gated
        why = f"{repository}/{file} could not be had from the Hub: {error}"
        raise WeightsUnavailable(_by_hand(name, why)) from error


def _by_hand(name: str, why: str) -> str:
    return (
        f"no weights for {name!r}: {why}\n"
        f"Without a network: load_backbone({name!r}, weights=PATH) takes a file downloaded by hand, weights='random' "
        "makes an untrained model, and 'nano' is built in."
    )


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, ZOO, n=3, cutoff=0.5)
    hint = f", did you mean {' or '.join(map(repr, close))}?" if close else "."
    return f"unknown backbone {name!r}{hint} Want a name of list_backbones(), 'hf:OWNER/REPOSITORY' or a directory."
