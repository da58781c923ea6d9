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

from vitbackbone.checkpoints.adapted_sizes import fill_resampled
from vitbackbone.checkpoints.channels import preprocess_for
from vitbackbone.checkpoints.huggingface import read_preprocess
from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.rules import ConversionError, State
from vitbackbone.checkpoints.shards import FindFile
from vitbackbone.checkpoints.zoo import Entry
from vitbackbone.contract import BackboneModule
from vitbackbone.images import Preprocess
from vitbackbone.model import Indivisible
from vitbackbone.networks import (
    TransformersConfig,
    adapt,
    build_tower,
    channels_of,
    config_of,
    encoder_config,
    fill_buffers,
    image_size,
    inner_towers,
    knows,
    make_config,
    private,
    processor_settings,
)

ReadProcessor = Callable[[Json, Preprocess], Preprocess]
LABELS = ("id2label", "label2id")  # long, and they change no feature
# transformers' processors of frames do what its CLIP's does with photos, with other defaults
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
FRAMES: dict[str, dict[str, Any]] = {
    "VideoMAEImageProcessor": {"resample": 2, "size": {"shortest_edge": 224}, **HALF},
    "VivitImageProcessor": {"resample": 2, "size": {"shortest_edge": 256}, "rescale_factor": 1 / 127.5, **HALF},
}
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

    `Preprocess` lacks some ways to resize, such as to a number of patches. The photo is then resized to the encoder's
    own size, with the processor's interpolation and normalisation.
    """
    settings = _of_frames(settings)
    height, width = default.image_size
    colours = {key: settings[key] for key in COLOURS if settings.get(key) is not None}
    plain = {**colours, "image_processor_type": "ViTImageProcessor", "size": {"height": height, "width": width}}
    for each in (settings, plain):
        try:
            return read_preprocess(each, default, own_network=False)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, ZeroDivisionError):
            continue
    return default


def _of_frames(settings: Json) -> Json:
    """Return a video processor's settings as settings of `CLIPImageProcessor`, which does the same to one photo. Other
    settings stay as they are."""
    kind = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    kind = kind.replace("FeatureExtractor", "ImageProcessor")
    if kind not in FRAMES:
        return settings
    own = {**FRAMES[kind], **{key: value for key, value in settings.items() if value is not None}}
    if kind == "VivitImageProcessor" and own.pop("offset", True):  # x * factor - 1, before the mean
        scale = 255 * own.pop("rescale_factor")
        own["image_mean"] = [(1 + mean) / scale for mean in own["image_mean"]]
        own["image_std"] = [std / scale for std in own["image_std"]]
    kept = {key: own[key] for key in (*COLOURS, "size", "crop_size", "do_resize", "do_center_crop") if key in own}
    return {**kept, "image_processor_type": "CLIPImageProcessor"}


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
            config = self.configure(tower, None, "pad", None)
            return Entry(config, "transformers", self.preprocess(config), "", str(self.path), on_hub=False)

    def configure(
        self,
        tower: str | None,
        image_size: int | tuple[int, int] | None,
        indivisible: Indivisible,
        in_chans: int | None,
    ) -> TransformersConfig:
        """Return the configuration with the options of `load_backbone`."""
        size = (image_size, image_size) if isinstance(image_size, int) else image_size
        options: dict[str, Any] = {"tower": tower or "", "image_size": size, "channels": in_chans}
        return replace(self.config, indivisible=indivisible, **options)

    def preprocess(self, config: TransformersConfig) -> Preprocess:
        """Return the preprocessing of the processor's file, over the defaults of the model type's own processor."""
        whole = make_config(config.settings)
        size = config.image_size or image_size(encoder_config(whole))
        default = Preprocess(image_size=size, crop_pct=1.0, crop_mode="squash")
        default = read_adapted(processor_settings(config.model_type, whole), default)
        preprocess = self.read_processor(default, read_adapted)
        preprocess = preprocess if config.image_size is None else replace(preprocess, image_size=config.image_size)
        return preprocess_for(preprocess, config.channels or channels_of(encoder_config(whole)))

    def build(self, config: TransformersConfig, name: str) -> BackboneModule:
        """Return an untrained image encoder."""
        with self._naming():
            return adapt(config, self.preprocess(config), name).eval()

    def load(self, config: TransformersConfig, name: str, state: State) -> tuple[BackboneModule, str]:
        """Return the image encoder with a checkpoint's weights, and a note on what was left out.

        Raises `ConversionError` unless the checkpoint fills every parameter of the encoder exactly once.
        """
        with self._naming():
            try:
                backbone, used, note = self._load(config, name, state)
            except ConversionError:
                raise
            except ValueError:
                within = [] if config.tower else inner_towers(*build_tower(config))
                if not within:
                    raise
                backbone, used, note = self._load(replace(config, tower=within[0]), name, state)
        left = sorted(set(state) - used)
        some = f": {', '.join(left[:3])}{', ...' * (len(left) > 3)}" if left else ""
        return backbone.eval(), f"{note}; left out {len(left)} tensors{some}"

    def _load(self, config: TransformersConfig, name: str, state: State) -> tuple[BackboneModule, set[str], str]:
        """Return the image encoder, the names of the tensors that it took, and a note on what it is."""
        model, tower = build_tower(config)
        note = f"took {type(model.get_submodule(tower)).__name__} from {tower or 'the top'}"
        try:
            used = fill(model, tower, state)
        except ConversionError:
            if config.image_size is None:
                raise
            model, _ = build_tower(config)
            trained, _ = build_tower(replace(config, image_size=None))
            used = fill(trained, tower, state)
            pairs = [(each.get_submodule(tower), config_of(each, tower)) for each in (model, trained)]
            fill_resampled(*pairs[0], *pairs[1])
            note += f", and resampled its positions to {' x '.join(map(str, config.image_size))} pixels"
        settings, encoder = config_of(model, tower), model.get_submodule(tower)
        fill_buffers(encoder)
        known = replace(config, tower=tower)
        return adapt(known, self.preprocess(config), name, encoder, settings), used, note

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
    if not tower:  # the whole model, whose files leave out tensors that are tied to others
        model.tie_weights()
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
    """Return the encoder's key for each of these names, if one prefix precedes all keys of the encoder among them."""
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
    """Raise `ConversionError` if a tensor of the encoder is missing, or has another shape."""
    wrong = [_shapes(each) for each in info.mismatched_keys if _name(each) in inside]
    wrong += [f"{key}: {text}" for key, text in info.conversion_errors.items() if key in inside]
    if wrong:
        raise ConversionError(_misfit("tensors of another shape", wrong))
    lacking = [f"{tower}.{name}".lstrip(".") for name, each in encoder.named_parameters() if each.device.type == "meta"]
    buffers = {f"{tower}.{name}".lstrip(".") for name, _ in encoder.named_buffers()}
    lacking += sorted(set(info.missing_keys) & inside & buffers - set(lacking))
    if lacking:
        raise ConversionError(_misfit("the checkpoint lacks these tensors of the encoder", lacking))


def _name(mismatch: Any) -> str:
    return mismatch if isinstance(mismatch, str) else mismatch[0]


def _shapes(mismatch: Any) -> str:
    """Describe a tensor of another shape: its name, and both shapes if transformers tells them."""
    if isinstance(mismatch, str) or len(mismatch) < 3:
        return _name(mismatch)
    given, wanted = (" x ".join(map(str, shape)) for shape in mismatch[1:3])
    return f"{mismatch[0]} is {given} in the checkpoint, and {wanted} in the model"


def _misfit(what: str, names: list[str]) -> str:
    more = f", and {len(names) - 5} more" if len(names) > 5 else ""
    return f"the checkpoint does not fit:\n  {what}: {', '.join(names[:5])}{more}"
