"""Directories and repositories in timm's format: a `config.json` with `architecture`, and the weights.

timm/models/_hub.py writes them. The settings of the weights are flat in older files, and under `pretrained_cfg` in
newer ones; `model_args` are arguments of the constructor.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.open_clip import CONFIG as OPEN_CLIP
from vitbackbone.checkpoints.open_clip import OpenClip
from vitbackbone.checkpoints.rules import convert
from vitbackbone.checkpoints.shards import FindFile
from vitbackbone.checkpoints.timm_names import describe_weights
from vitbackbone.checkpoints.timm_vit import native_vit
from vitbackbone.checkpoints.zoo import ZOO, Entry
from vitbackbone.checkpoints.zoo.entry import TIMM_RESAMPLING
from vitbackbone.files import SHORT, did_you_mean, read_json
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD
from vitbackbone.model import ViT, ViTConfig
from vitbackbone.networks import Projection, TimmConfig

LARGEST, MOST_BLOCKS, LONGEST = 1 << 17, 1000, 64  # a number, a depth and a list among the arguments of a constructor
SIZES = {"img_size", "dynamic_img_size", "strict_img_size"}  # arguments that are settings of any native network, too
DEFAULTS: dict[str, Any] = {  # timm/data/config.py
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
}


class TimmDirectory:
    """A directory in timm's format. A network that this package's `ViT` equals runs natively, others in the adapter.

    Raises `ValueError` if timm does not know the architecture, or if an argument is out of bounds.
    """

    def __init__(self, directory: Path, saved: Json, find_file: FindFile) -> None:
        self.path, self.find_file = directory, find_file
        self.config_file = directory / "config.json"
        self.architecture = self._read_architecture(saved)
        self.cfg = self._read_cfg(saved)
        self.arguments = self._read_arguments(saved)
        names = self.cfg.get("label_names")
        labels = tuple(names) if isinstance(names, list) else ()
        self.labels = labels if all(isinstance(label, str) for label in labels) else ()

    def entry(self, tower: str | None = None) -> Entry:
        """Return the entry of the network, without the weights."""
        given = self.network()
        if (width := self._projection_width()) is None:
            return given
        layout = f"open_clip {given.format}"
        if isinstance(given.config, ViTConfig) and layout in FORMATS:
            return replace(
                given, config=replace(given.config, projection_dim=width, projection_bias=True), format=layout
            )
        described = self.adapted()
        assert isinstance(described.config, TimmConfig)
        return replace(described, config=replace(described.config, projection=Projection(width)), classifier=())

    def network(self) -> Entry:
        """Return the entry of the network without a projection."""
        given, model = self.adapted(), self._build()
        if native := native_vit(model):
            config, layout = native
            return replace(given, config=config, format=layout, classifier=None)
        assert isinstance(given.config, TimmConfig)
        if given.config.windows != "timm" and any(map(_is_padded, model.modules())):
            given = replace(given, config=replace(given.config, windows="timm"))
        return self._of_the_zoo(given, model) or given

    def _projection_width(self) -> int | None:
        """Return the width of the space of texts, or None if timm's head is a classifier.

        The image tower of an image-text model has open_clip's configuration beside it, and its head is the projection.
        """
        file = self.find_file(OPEN_CLIP)
        if file is None:
            return None
        width = read_json(file, OpenClip).model_cfg.embed_dim
        return width if self.cfg.get("num_classes") == width else None

    def adapted(self) -> Entry:
        """Return the entry of the network in the adapter."""
        known = describe_weights(self.architecture, self.cfg, tuple(self.arguments.items()))
        return Entry(
            known.config,
            "timm",
            known.preprocess,
            known.licence,
            str(self.path),
            on_hub=False,
            num_classes=known.num_classes,
            classifier=known.classifier,
        )

    def _build(self) -> Any:
        """Return the network without numbers."""
        import timm

        try:
            with torch.device("meta"):
                return timm.create_model(self.architecture, pretrained=False, num_classes=0, **self.arguments)
        except Exception as error:  # a constructor raises all kinds of errors on arguments that it does not take
            given = SHORT.repr(self.arguments)
            raise ValueError(
                f"{self.config_file} has model_args={given}, which {self.architecture} does not take: {error}"
            ) from error

    def _of_the_zoo(self, given: Entry, model: Any) -> Entry | None:
        """Return the native entry of an architecture that the zoo has, if all tensors have their places in it."""
        named = [entry for name, entry in ZOO.items() if name.partition(".")[0] == self.architecture]
        if not named or not isinstance(named[0].config, ViTConfig) or self.arguments.keys() - SIZES:
            return None
        assert isinstance(given.config, TimmConfig)
        size = given.config.image_size
        config = replace(named[0].config, image_size=size, resampling=TIMM_RESAMPLING)
        try:
            with torch.device("meta"):
                expected = ViT(config).state_dict()
            convert(model.state_dict(), FORMATS[named[0].format], expected)
        except ValueError:
            return None
        return replace(given, config=config, format=named[0].format, classifier=None)

    def _read_architecture(self, saved: Json) -> str:
        import timm

        name = saved.get("architecture")
        if not isinstance(name, str) or not timm.is_model(name.partition(".")[0]):
            hint = did_you_mean(str(name)[:LONGEST], timm.list_models()) or "."
            known = f"timm {timm.__version__} knows no architecture {SHORT.repr(name)}{hint}"
            raise ValueError(f"{self.config_file}: {known}")
        return name.partition(".")[0]

    def _read_cfg(self, saved: Json) -> dict[str, Any]:
        """Return timm's settings of the weights, with its defaults for the missing ones."""
        nested = saved.get("pretrained_cfg", saved)
        if not isinstance(nested, Mapping):
            raise ValueError(f"{self.config_file} has pretrained_cfg={SHORT.repr(nested)}; want an object")
        above = {key: saved[key] for key in ("num_classes", "label_names") if key in saved}
        whole = {**nested, **above}
        if "labels" in whole:
            whole.setdefault("label_names", whole["labels"])
        return DEFAULTS | {key: value for key, value in whole.items() if value is not None}

    def _read_arguments(self, saved: Json) -> dict[str, Any]:
        """Return the constructor's arguments. Raises `ValueError` on one that no network has."""
        arguments = saved.get("model_args") or {}
        if not isinstance(arguments, Mapping):
            raise ValueError(f"{self.config_file} has model_args={SHORT.repr(arguments)}; want an object")
        kept = {key: value for key, value in arguments.items() if value is not None and key != "num_classes"}
        for key, value in kept.items():
            if not _is_plain(value) or (key.startswith("depth") and _largest(value) > MOST_BLOCKS):
                given = f"model_args.{SHORT.repr(key)[1:-1]}={SHORT.repr(value)}"
                raise ValueError(f"{self.config_file} has {given}; want a value that a network can have")
        return {key: tuple(value) if isinstance(value, list) else value for key, value in kept.items()}


def _is_padded(block: Any) -> bool:
    """Return whether a module is a block of a Swin whose windows do not divide the map that timm built it for. Its
    weights know timm's way to pad."""
    sides, windows = (getattr(block, name, ()) for name in ("input_resolution", "window_size"))
    return any(side % window for side, window in zip(sides, windows, strict=False))


def _is_plain(value: Any) -> bool:
    """Return whether a value of a JSON file is a word, or a number or list of numbers of the sizes that networks
    have."""
    if isinstance(value, list):
        return len(value) <= LONGEST and all(map(_is_plain, value))
    if isinstance(value, str):
        return len(value) <= LONGEST
    return isinstance(value, int | float) and abs(value) <= LARGEST


def _largest(value: Any) -> float:
    return max(map(_largest, value), default=0) if isinstance(value, list) else float(value)
