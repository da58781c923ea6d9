"""Resolving a name to an entry of the zoo, a model of timm, or a directory with a `config.json`, and to its weights."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

from vitbackbone.checkpoints.adapted_directory import AdaptedDirectory, adapted_config
from vitbackbone.checkpoints.formats import TOWERS
from vitbackbone.checkpoints.hub import WeightsUnavailable, by_hand, download, download_config, download_if_there
from vitbackbone.checkpoints.huggingface import PLAIN, read_architecture, read_labels, read_preprocess
from vitbackbone.checkpoints.huggingface.backbone_classes import Taps, is_adapted, read_taps
from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.open_clip import CONFIG as OPEN_CLIP
from vitbackbone.checkpoints.open_clip_images import OpenClipDirectory
from vitbackbone.checkpoints.rules import ConversionError, State
from vitbackbone.checkpoints.shapes import settle, settle_swin
from vitbackbone.checkpoints.shards import FindFile, read_directory
from vitbackbone.checkpoints.tensor_files import read_weights
from vitbackbone.checkpoints.timm_directory import TimmDirectory
from vitbackbone.checkpoints.timm_names import describe_timm, is_timm
from vitbackbone.checkpoints.towers import NoTower, Part, Taken, choose, count_blocks, find_parts, name_part
from vitbackbone.checkpoints.zoo import ADAPTED, ZOO, Entry
from vitbackbone.files import SHORT, did_you_mean, read_json
from vitbackbone.images import Preprocess
from vitbackbone.model import ViTConfig
from vitbackbone.networks import TimmConfig

CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
NANO_FILE = Path(__file__).parent / "weights" / "nano.safetensors"


class Directory:
    """A Hugging Face directory: its `config.json`, which may describe several towers, and its image processor.

    `find_file`: returns the path of a file of weights, or None.
    Raises `ValueError` if `config.json` describes no known tower.
    """

    def __init__(self, directory: Path, saved: Json, find_file: FindFile) -> None:
        self.path, self.saved, self.find_file = directory, saved, find_file
        self.config_file = directory / CONFIG
        with self._naming():
            self.parts = find_parts(self.saved)
            self.labels = read_labels(self.saved)
            self.architecture = read_architecture(self.saved)

    @property
    def needs_adapter(self) -> bool:
        """Whether each tower is of a transformers class that hands maps to a decoder, and that no native network
        matches."""
        return all(map(self._is_foreign, self.parts)) or self.saved.get("model_type") == "maskformer-swin"

    def _is_foreign(self, part: Part) -> bool:
        taps = self._taps(part)
        return (taps is not None and not taps.native) or (self._feeds(part) and is_adapted(part.settings))

    def _feeds(self, part: Part) -> bool:
        """Whether a tower is of a backbone class, which hands maps to a decoder."""
        return part.path.endswith("backbone_config") or self.architecture.endswith("Backbone")

    def _taps(self, part: Part) -> Taps | None:
        """Return the maps that a tower hands to a decoder, or None if it hands none."""
        with self._naming():
            return read_taps(part.settings, part.model_type.read(part.settings)) if self._feeds(part) else None

    def adapted(self) -> "AdaptedDirectory | None":
        """Return this directory for the adapter over transformers, or None without transformers."""
        try:
            config = adapted_config(self.saved)
        except ImportError:
            return None
        if config is None:
            return None
        return AdaptedDirectory(self.path, config, self.find_file, partial(_read_processor, self.path))

    def entry(self, tower: str | None = None) -> Entry:
        """Return the entry of a tower, without the weights. Raises `ValueError` if there are several and `tower` names
        none."""
        with self._naming():
            part = name_part(self.parts, tower)
            entry, taps = self._entry(part), self._taps(part)
        if taps is None or not isinstance(entry.config, ViTConfig):
            return entry
        return replace(entry, config=taps.cut(entry.config))

    def find(self, state: State, tower: str | None, part: str | None) -> tuple[Entry, Taken]:
        """Return the entry of the tower in a checkpoint, and its tensors under keys relative to it."""
        with self._naming():
            chosen, taken = choose(self.parts, state, tower, part)
            entry = self._entry(chosen)
        if isinstance(entry.config, ViTConfig):
            blocks = count_blocks(taken.tensors, "", taken.rules)
            settings, saved_by = chosen.settings, self.architecture
            config = settle(entry.config, taken.rules, taken.tensors, blocks, settings, saved_by)
            if (taps := self._taps(chosen)) is not None:
                warning, config = taps.describe(config, saved_by), taps.cut(config)
                taken = taken.ending(config.depth, config.final_norm, warning)
            entry = replace(entry, config=config)
        elif isinstance(entry.config, TimmConfig) and (
            chosen.path or self.architecture.endswith(("Backbone", "PreTraining"))
        ):
            entry = replace(entry, config=settle_swin(entry.config, taken.rules, taken.tensors))
        return entry, taken

    def _entry(self, part: Part) -> Entry:
        config, preprocess = part.model_type.read_whole(part.settings)
        preprocess = _read_processor(self.path, preprocess)
        if isinstance(config, ViTConfig):
            preprocess = preprocess.in_patches(config.patch_size)
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


AnyDirectory = Directory | TimmDirectory | OpenClipDirectory | AdaptedDirectory


def open_directory(path: Path, find_file: FindFile | None = None) -> AnyDirectory:
    """Return a directory in the format of transformers, timm or open_clip. `find_file` finds its weights; the default
    looks into the directory. A model type of transformers without a native configuration runs in the adapter.

    Raises `ValueError` if there is no `config.json`, or if it describes no image encoder that is known."""
    config_file = path / CONFIG
    if not os.path.lexists(config_file):
        here = find_file or (lambda name: file if os.path.lexists(file := path / name) else None)
        if os.path.lexists(file := path / OPEN_CLIP):
            return OpenClipDirectory(file, here)
        wanted = "want a directory of transformers, timm or open_clip: config.json and safetensors"
        raise ValueError(f"{path} has no config.json; {wanted}")
    saved = read_json(config_file, dict)
    find_file = find_file or (lambda name: file if os.path.lexists(file := path / name) else None)
    if "architecture" in saved and "model_type" not in saved:
        return TimmDirectory(path, saved, find_file)
    try:
        found = Directory(path, saved, find_file)
        if not found.needs_adapter:
            return found
        raise NoTower("config.json names a backbone class whose maps this package cannot compute natively", saved)
    except NoTower as error:
        text = f"{config_file}: {str(error).removeprefix(f'{CONFIG} ')}"
        try:
            config = adapted_config(saved)
        except ImportError as missing:
            raise ValueError(f"{text}. For others, {missing}") from error
        if config is None:
            raise ValueError(text) from error
        return AdaptedDirectory(path, config, find_file, partial(_read_processor, path))


def pin(name: str) -> tuple[str, str | None]:
    """Split a name of the zoo or the Hub from the revision after its `@`. The path of a directory stays whole. timm's
    `hf-hub:` and `local-dir:` are read, too."""
    if name.startswith("local-dir:"):
        return name.removeprefix("local-dir:"), None
    if name.startswith("hf-hub:"):
        name = f"hf:{name.removeprefix('hf-hub:')}"
    known, _, revision = name.partition("@")
    if revision and (known in ZOO or known in ADAPTED or known.startswith(("hf:", "timm:"))):
        if known in ZOO and not ZOO[known].on_hub:
            raise ValueError(f"{known!r} has no repository on the Hub, so no revision {revision!r}; leave out the '@'")
        return known, revision
    return name, None


def describe(known: str, revision: str | None, offline: bool) -> Entry | AnyDirectory:
    """Return the entry of a name, or its directory. `offline`: read a Hub repository's entry from the zoo."""
    # timm's config.json of a repository in the zoo may lack what the zoo knows, such as a class of MLP
    if known in ZOO and (offline or not known.startswith("hf:") or ZOO[known].format not in TOWERS):
        return ZOO[known]
    if known in ADAPTED or known.startswith("timm:"):
        return _read_timm(known.removeprefix("timm:"))
    if known.startswith("hf:"):
        repository = known.removeprefix("hf:")
        return open_directory(
            download_config(known, revision), lambda file: download_if_there(known, repository, file, revision)
        )
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


def find_weights(known: str, revision: str | None, found: Entry | AnyDirectory) -> State:
    """Return the tensors of a name's own weights: from the package, its directory, the Hub's cache, or the Hub."""
    if known == "nano":
        return read_weights(NANO_FILE)
    if not isinstance(found, Entry):
        return read_directory(known, found.find_file)
    if known.startswith("hf:"):
        repository = known.removeprefix("hf:")
        return read_directory(known, lambda file: download_if_there(known, repository, file, revision))
    if not found.on_hub:
        raise WeightsUnavailable(by_hand(known, f"these weights are not on the Hub; they are at {found.source}"))
    return read_weights(download(known, found.source, "model.safetensors", revision))


def read_published(name: str) -> State:
    """Return the tensors of a name's own weights, by the keys of its file. Raises the errors of `load_backbone`."""
    known, revision = pin(name)
    return find_weights(known, revision, describe(known, revision, offline=False))


def _unknown(known: str) -> str:
    listed = [*ZOO, *ADAPTED]
    tagged = [name for name in listed if name.startswith(f"{known}.")]
    if tagged or is_timm(known):
        hint = f", did you mean {' or '.join(map(repr, [*tagged[:3], f'timm:{known}']))}?"
    else:
        hint = did_you_mean(known, listed) or "."
    return f"unknown backbone {known!r}{hint} Want a name of list_backbones(), 'hf:OWNER/REPOSITORY' or a directory."
