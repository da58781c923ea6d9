"""What a name leads to: an entry of the zoo, a model of timm, or a directory with a `config.json`, and its weights."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from pydantic import Field
from torch import Tensor

from vitbackbone.checkpoints.adapted import adapted_config, default_preprocess, read_adapted
from vitbackbone.checkpoints.formats import TOWERS
from vitbackbone.checkpoints.hub import WeightsUnavailable, by_hand, download, download_config, download_if_there
from vitbackbone.checkpoints.huggingface import PLAIN, read_architecture, read_labels, read_preprocess
from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.rules import ConversionError, State
from vitbackbone.checkpoints.suggestions import did_you_mean
from vitbackbone.checkpoints.tensor_files import read_weights
from vitbackbone.checkpoints.timm_names import describe_timm
from vitbackbone.checkpoints.towers import NoTower, Part, choose, choose_prefix, find_parts, name_part, settle, within
from vitbackbone.checkpoints.zoo import ADAPTED, ZOO, Entry
from vitbackbone.files import SHORT, Record, read_json
from vitbackbone.images import Preprocess
from vitbackbone.model import ViTConfig
from vitbackbone.networks import TransformersConfig

CONFIG, INDEX = "config.json", "model.safetensors.index.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
NANO_FILE = Path(__file__).parent / "weights" / "nano.safetensors"


class Directory:
    """A Hugging Face directory: its `config.json`, which may describe several towers, and its image processor.

    Raises `ValueError` if it has no `config.json`, or if that describes no known tower.
    """

    def __init__(self, directory: Path) -> None:
        self.path = directory
        self.config_file = directory / CONFIG
        if not os.path.lexists(self.config_file):
            raise ValueError(
                f"{directory} has no config.json; want a Hugging Face directory: config.json and safetensors"
            )
        self.saved = read_json(self.config_file, dict)
        with self._naming():
            self.parts = find_parts(self.saved)
            self.labels = read_labels(self.saved)
            self.architecture = read_architecture(self.saved)

    def entry(self, tower: str | None = None) -> Entry:
        """Return the entry of a tower, without the weights. Raises `ValueError` if there are several and `tower` names
        none."""
        with self._naming():
            return self._entry(name_part(self.parts, tower))

    def find(self, state: State, tower: str | None) -> tuple[Entry, dict[str, Tensor]]:
        """Return the entry of the tower in a checkpoint, and its tensors under keys relative to it."""
        with self._naming():
            part, prefix = choose(self.parts, state, tower)
            entry = self._entry(part)
        tensors = within(state, prefix, part.rules)
        if isinstance(entry.config, ViTConfig):
            entry = replace(entry, config=settle(entry.config, part.rules, tensors, self.architecture))
        return entry, tensors

    def _entry(self, part: Part) -> Entry:
        config, preprocess = part.model_type.read_whole(part.settings)
        preprocess = _read_processor(self.path, preprocess)
        hf = config.resampling if isinstance(config, ViTConfig) else PLAIN
        return Entry(config, part.model_type.layout, preprocess, "", str(self.path), hf, on_hub=False)

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the file in errors about its contents."""
        try:
            yield
        except (ConversionError, NoTower):
            raise
        except ValueError as error:
            raise ValueError(f"{self.config_file}: {str(error).removeprefix(f'{CONFIG} ')}") from error


class AdaptedDirectory(Directory):
    """A Hugging Face directory of a model type that has no native configuration, but that transformers knows."""

    def __init__(self, directory: Path, config: TransformersConfig) -> None:
        self.path, self.config, self.labels = directory, config, ()
        self.config_file = directory / CONFIG

    def entry(self, tower: str | None = None) -> Entry:
        """See `Directory`."""
        with self._naming():
            config = replace(self.config, tower=tower or "")
            preprocess = _read_processor(self.path, default_preprocess(config), read_adapted)
            return Entry(config, "transformers", preprocess, "", str(self.path), on_hub=False)

    def find(self, state: State, tower: str | None) -> tuple[Entry, dict[str, Tensor]]:
        """See `Directory`."""
        return self.entry(tower), dict(state)


def open_directory(path: Path) -> Directory:
    """Return a Hugging Face directory: natively if a tower in it has a native configuration, or else in the adapter."""
    try:
        return Directory(path)
    except NoTower as error:
        config = adapted_config(error.saved)
        if config is None:
            raise ValueError(f"{path / CONFIG}: {str(error).removeprefix(f'{CONFIG} ')}") from error
        return AdaptedDirectory(path, config)


def find_tower(found: Entry | Directory, state: State, tower: str | None) -> tuple[Entry, State]:
    """Return the entry of the tower in a checkpoint, and its tensors under the keys of the entry's format."""
    if isinstance(found, Directory):
        return found.find(state, tower)
    if found.format in TOWERS:
        rules = TOWERS[found.format]
        return found, within(state, choose_prefix(state, rules, tower), rules)
    return found, state


def pin(name: str) -> tuple[str, str | None]:
    """Split a name of the zoo or the Hub from the revision after its `@`. The path of a directory stays whole."""
    known, _, revision = name.partition("@")
    if revision and (known in ZOO or known in ADAPTED or known.startswith(("hf:", "timm:"))):
        if known in ZOO and not ZOO[known].on_hub:
            raise ValueError(f"{known!r} has no repository on the Hub, so no revision {revision!r}; leave out the '@'")
        return known, revision
    return name, None


def describe(known: str, revision: str | None, offline: bool) -> Entry | Directory:
    """Return the entry of a name, or its directory. `offline`: read a Hub repository's entry from the zoo."""
    if known in ZOO and (offline or not known.startswith("hf:")):
        return ZOO[known]
    if known in ADAPTED or known.startswith("timm:"):
        return _read_timm(known.removeprefix("timm:"))
    if known.startswith("hf:"):
        return open_directory(download_config(known, revision))
    if Path(known).is_dir():
        return open_directory(Path(known))
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


def _read_processor(
    directory: Path, default: Preprocess, read: Callable[[Json, Preprocess], Preprocess] = read_preprocess
) -> Preprocess:
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
        return read(settings, default) if settings else default
    except ValueError as error:
        raise ValueError(f"{file}: {str(error).removeprefix(f'{PROCESSORS[0]} ')}") from error
    except (TypeError, KeyError, AttributeError, IndexError, OverflowError, ZeroDivisionError) as error:
        raise ValueError(f"{file} has a value of the wrong type: {error!r}") from error


def find_weights(known: str, revision: str | None, found: Entry | Directory) -> dict[str, Tensor]:
    """Return the tensors of a name's own weights: from the package, its directory, the Hub's cache, or the Hub."""
    if known == "nano":
        return read_weights(NANO_FILE)
    if known.startswith("hf:"):
        repository = known.removeprefix("hf:")
        return _read_weights_of(known, lambda file: download_if_there(known, repository, file, revision))
    if isinstance(found, Directory):
        return _read_weights_of(known, lambda file: path if os.path.lexists(path := Path(known) / file) else None)
    if not found.on_hub:
        raise WeightsUnavailable(by_hand(known, f"these weights are not on the Hub; they are at {found.source}"))
    return read_weights(download(known, found.source, "model.safetensors", revision))


def _read_weights_of(name: str, find: Callable[[str], Path | None]) -> dict[str, Tensor]:
    """Read the weights of a Hugging Face repository or directory, in one file or in shards. Safetensors come first.
    `find` returns the path of a file in it, or None."""
    if whole := find("model.safetensors"):
        return read_weights(whole)
    if index := find(INDEX):
        return _read_shards(index, find)
    if pickled := find("pytorch_model.bin"):
        return read_weights(pickled)
    raise FileNotFoundError(f"{name} has no model.safetensors, no model.safetensors.index.json, no pytorch_model.bin")


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
