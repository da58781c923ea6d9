"""Checkpoints that the adapter over transformers loads: settings, preprocessing, and the image encoder's tensors.

transformers' own table says how the names on disk become names of the model. Only the encoder's tensors are read.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitbackbone.checkpoints.huggingface import read_preprocess
from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.rules import ConversionError, State
from vitbackbone.checkpoints.shards import FindFile
from vitbackbone.checkpoints.zoo import Entry
from vitbackbone.contract import BackboneModule
from vitbackbone.images import Preprocess
from vitbackbone.model import Indivisible
from vitbackbone.networks import (
    TransformersBackbone,
    TransformersConfig,
    build_tower,
    config_of,
    encoder_config,
    fill_buffers,
    image_size,
    knows,
    make_config,
    private,
    processor_settings,
)

ReadProcessor = Callable[[Json, Preprocess], Preprocess]
LABELS = ("id2label", "label2id")  # long, and they change no feature
COLOURS = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std", "resample")


def adapted_config(saved: Json) -> TransformersConfig | None:
    """Return the configuration of a `config.json` for the adapter, or None if transformers has no such model type.

    Raises `ImportError` if transformers is not installed.
    """
    if not knows(saved.get("model_type")):
        return None
    kept = {key: value for key, value in saved.items() if key not in LABELS}
    architectures = saved.get("architectures")
    first = architectures[0] if isinstance(architectures, list) and architectures else ""
    return TransformersConfig(json.dumps(kept, sort_keys=True), first if isinstance(first, str) else "")


def read_adapted(settings: Json, default: Preprocess) -> Preprocess:
    """Return the preprocessing of an image processor's settings.

    If it resizes in a way that `Preprocess` lacks, such as to a number of patches, the photo is resized to the
    encoder's own size, and only the interpolation and the normalisation are the processor's.
    """
    height, width = default.image_size
    colours = {key: settings[key] for key in COLOURS if settings.get(key) is not None}
    plain = {**colours, "image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    for each in (settings, plain):
        try:
            return read_preprocess(each, default)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, ZeroDivisionError):
            continue
    return default


class AdaptedDirectory:
    """A directory of a model type that has no native configuration, but that transformers knows.

    `read_processor`: reads the file of the image processor, by a function, over a default.
    """

    labels: tuple[str, ...] = ()

    def __init__(
        self,
        directory: Path,
        config: TransformersConfig,
        find_file: FindFile,
        read_processor: Callable[[Preprocess, ReadProcessor], Preprocess],
    ) -> None:
        self.path, self.config, self.find_file = directory, config, find_file
        self.read_processor = read_processor
        self.config_file = directory / "config.json"

    def entry(self, tower: str | None = None) -> Entry:
        """Return the entry of an image encoder, without the weights."""
        with self._naming():
            config = self.configure(tower, None, "pad")
            return Entry(config, "transformers", self.preprocess(config), "", str(self.path), on_hub=False)

    def configure(
        self, tower: str | None, image_size: int | tuple[int, int] | None, indivisible: Indivisible
    ) -> TransformersConfig:
        """Return the configuration with the options of `load_backbone`."""
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        return replace(self.config, tower=tower or "", image_size=size, indivisible=indivisible)

    def preprocess(self, config: TransformersConfig) -> Preprocess:
        """Return the preprocessing of the processor's file, over the defaults of the model type's own processor."""
        whole = make_config(config.settings)
        size = config.image_size or image_size(encoder_config(whole))
        default = Preprocess(image_size=size, crop_pct=1.0, crop_mode="squash")
        default = read_adapted(processor_settings(config.model_type, whole), default)
        preprocess = self.read_processor(default, read_adapted)
        return preprocess if config.image_size is None else replace(preprocess, image_size=config.image_size)

    def build(self, config: TransformersConfig, name: str) -> BackboneModule:
        """Return an untrained image encoder."""
        with self._naming():
            return TransformersBackbone(config, self.preprocess(config), name).eval()

    def load(self, config: TransformersConfig, name: str, state: State) -> tuple[BackboneModule, str]:
        """Return the image encoder with a checkpoint's weights, and a note on what was left out.

        Raises `ConversionError` unless the checkpoint fills every parameter of the encoder exactly once.
        """
        with self._naming():
            preprocess = self.preprocess(config)
            model, tower = build_tower(config)
            used = fill(model, tower, state)
            settings, encoder = config_of(model, tower), model.get_submodule(tower)
            fill_buffers(encoder)
            backbone = TransformersBackbone(replace(config, tower=tower), preprocess, name, encoder, settings)
        left = sorted(set(state) - used)
        some = f": {', '.join(left[:3])}{', ...' * (len(left) > 3)}" if left else ""
        note = f"took {type(encoder).__name__} from {tower or 'the top'}; left out {len(left)} tensors{some}"
        return backbone.eval(), note

    @contextmanager
    def _naming(self) -> Iterator[None]:
        """Name the file in errors about its contents."""
        try:
            yield
        except ConversionError as error:
            raise ConversionError(f"{self.config_file}: {error}") from error
        except ValueError as error:
            raise ValueError(f"{self.config_file}: {error}") from error


def fill(model: Any, tower: str, checkpoint: State) -> set[str]:
    """Fill the parameters at the path `tower` of a model on the meta device, and return the names that were used."""
    names, state = list(checkpoint), model.state_dict()
    inside = {key for key in state if not tower or key.startswith(f"{tower}.")}
    mapping = private("conversion_mapping", "get_model_conversion_mapping")(model)
    targets = _renamed(model, names, state, mapping)
    chosen = [name for name in names if targets[name] in inside]
    if {targets[name] for name in chosen} != inside and (direct := _by_suffix(tower, inside, names)):
        chosen, mapping = list(direct), []
        tensors = {direct[name]: checkpoint[name] for name in chosen}
    else:
        tensors = {name: checkpoint[name] for name in chosen}
        strange = [name for name in names if targets[name] not in state and _is_in(targets[name], tower, inside)]
        if strange:
            raise ConversionError(_misfit("tensors that the encoder lacks", strange))
    options = private("modeling_utils", "LoadStateDictConfig")(weight_mapping=mapping, dtype=torch.float32)
    with _quietly():
        info, _ = private("core_model_loading", "convert_and_load_state_dict_in_model")(model, tensors, options)
    _check(model.get_submodule(tower), tower, info, inside)
    return set(chosen)


@contextmanager
def _quietly() -> Iterator[None]:
    """Show no progress bar of transformers."""
    shown = private("utils", "logging")
    active = shown.is_progress_bar_enabled()
    shown.disable_progress_bar()
    try:
        yield
    finally:
        if active:
            shown.enable_progress_bar()


def _renamed(model: Any, names: list[str], state: Mapping[str, Any], mapping: list[Any]) -> dict[str, str]:
    """Return the name in the model of each tensor on disk."""
    renaming, converting = (private("core_model_loading", each) for each in ("WeightRenaming", "WeightConverter"))
    rename = private("core_model_loading", "rename_source_key")
    renamings = [each for each in mapping if isinstance(each, renaming)]
    converters = [each for each in mapping if isinstance(each, converting)]
    found = {}
    for name in names:
        target = rename(name, renamings, converters, model.base_model_prefix, state)[0]
        found[name] = name if target not in state and name in state else target
    return found


def _by_suffix(tower: str, inside: set[str], names: list[str]) -> dict[str, str]:
    """Return the encoder's key of each name, if all its keys are in the checkpoint behind one prefix."""
    keys = [key.removeprefix(f"{tower}.") if tower else key for key in inside]
    longest = max(keys, key=len)
    given = set(names)
    for name in names:
        if name.endswith(longest):
            prefix = name.removesuffix(longest)
            if (not prefix or prefix.endswith(".")) and all(prefix + key in given for key in keys):
                return {prefix + key: f"{tower}.{key}" if tower else key for key in keys}
    return {}


def _is_in(target: str, tower: str, inside: set[str]) -> bool:
    """Return whether a name that the model lacks belongs to a module of the encoder."""
    if not tower:
        return target.rpartition(".")[0] in {key.rpartition(".")[0] for key in inside}
    return target.startswith(f"{tower}.")


def _check(encoder: Any, tower: str, info: Any, inside: set[str]) -> None:
    lacking = [f"{tower}.{name}".lstrip(".") for name, each in encoder.named_parameters() if each.device.type == "meta"]
    lacking += sorted(set(info.missing_keys) & inside - set(lacking))
    if lacking:
        raise ConversionError(_misfit("the checkpoint lacks these tensors of the encoder", lacking))
    wrong = [str(each) for each in info.mismatched_keys if _name(each) in inside] + [
        f"{key}: {text}" for key, text in info.conversion_errors.items() if key in inside
    ]
    if wrong:
        raise ConversionError(_misfit("tensors of another shape", wrong))


def _name(mismatch: Any) -> str:
    return mismatch if isinstance(mismatch, str) else mismatch[0]


def _misfit(what: str, names: list[str]) -> str:
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return f"the checkpoint does not fit:\n  {what}: {', '.join(names[:5])}{more}"
