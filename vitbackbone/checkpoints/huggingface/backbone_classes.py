"""Backbone classes of transformers, such as `Dinov2Backbone`, which hand maps of some blocks to a decoder.

The maps are the outputs of the blocks that `out_features` or `out_indices` names, with the final norm or without it. A
native network of such a class ends with the deepest of these blocks, so that its features are the last map.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Literal

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.records import read_settings
from vitbackbone.files import SHORT, Record
from vitbackbone.model import ViTConfig

Norms = Literal["none", "all", "apply_layernorm", "normalize_backbone_outputs"]
# The maps of each model type that have the final norm: none, all, or those that a setting says
NORMS: dict[str, Norms] = {
    "beit": "none",
    "vitdet": "none",
    "vitpose_backbone": "all",
    "dinov2": "apply_layernorm",
    "dinov2_with_registers": "apply_layernorm",
    "dinov3_vit": "apply_layernorm",
    "tipsv2_vision_model": "apply_layernorm",
    "sapiens2": "normalize_backbone_outputs",
}
LAST_NORMED = ("dinov3_vit",)  # the last block's map has the norm whatever the setting says
# Classes that transformers' own code runs. Swin shifts the windows of each second block even if a map is one window,
# Hiera and Pixio have norms of their own, and the maps of DINOv3's ConvNeXt may be any stages.
ADAPTED = ("donut-swin", "maskformer-swin", "swin", "swinv2", "hiera", "pixio", "dinov3_convnext")
STEM = "stem"  # the name of the map in front of the first block


class Maps(Record):
    """The settings of a class that returns maps."""

    out_features: tuple[str, ...] | None = None
    out_indices: tuple[Annotated[int, Field(ge=-1001, le=1000)], ...] | None = None
    apply_layernorm: bool = True
    normalize_backbone_outputs: bool = True
    add_fpn: bool = False


@dataclass(frozen=True)
class Taps:
    """The blocks whose outputs a class returns, and the maps among them that have the final norm."""

    layers: tuple[int, ...]  # 0-based, rising; -1 is what enters the first block
    norms: tuple[bool, ...]
    pyramid: bool = False  # whether the maps become maps of other sizes

    @property
    def native(self) -> bool:
        """Whether the maps are outputs of blocks."""
        return not self.pyramid and min(self.layers) >= 0

    def cut(self, config: ViTConfig) -> ViTConfig:
        """Return the configuration of the network that ends with the last map."""
        depth = self.layers[-1] + 1
        blocks = tuple(index for index in config.global_blocks if index < depth)
        window = config.window if len(blocks) < depth else 0
        norm = config.final_norm and self.norms[-1]
        blocks = blocks if window else ()
        shorter = replace(config, depth=depth, window=window, global_blocks=blocks)
        return replace(shorter, final_norm=norm, fc_norm=False)

    def describe(self, config: ViTConfig, architecture: str) -> str:
        """Say which layers of the cut network are the maps, and what was left out; "" if nothing was."""
        norms = tuple(config.final_norm and norm for norm in self.norms)
        depth = self.layers[-1] + 1
        left = [f"the blocks from {depth} on"] if depth < config.depth else []
        left += ["the final norm"] if config.final_norm and not norms[-1] else []
        if not left and len(set(norms)) == 1:
            return ""
        norm = norms[0] if len(set(norms)) == 1 else list(norms)
        maps = (
            f"the maps of {architecture or 'the decoder'} are forward_layers(images, {list(self.layers)}, norm={norm})"
        )
        return f"{maps}; left out {' and '.join(left)}" if left else maps


def read_taps(settings: Json, config: object) -> Taps | None:
    """Return the maps that the backbone class of a model type returns, or None if it has no native class.

    `config`: the configuration of the whole network.

    Raises `ValueError` if the settings name blocks that the network does not have.
    """
    model_type = str(settings.get("model_type"))
    if model_type not in NORMS or not isinstance(config, ViTConfig):
        return None
    depth = config.depth
    maps = read_settings(settings, Maps)
    stages = (STEM, *(f"stage{number}" for number in range(1, depth + 1)))
    by_name = None if maps.out_features is None else [_number(name, stages) for name in maps.out_features]
    by_index = None if maps.out_indices is None else [_index(i, stages) for i in maps.out_indices]
    if by_name is not None and by_index is not None and by_name != by_index:
        raise ValueError(
            f"config.json has out_features={SHORT.repr(list(maps.out_features or ()))} and out_indices="
            f"{SHORT.repr(list(maps.out_indices or ()))}, which name different blocks"
        )
    found = by_name or by_index or [depth]
    if found != sorted(set(found)):
        raise ValueError(f"config.json has out_indices={SHORT.repr(found)}; want rising numbers")
    kind = NORMS[model_type]
    normed = kind == "all" or (kind != "none" and bool(getattr(maps, kind)))
    last = depth if model_type in LAST_NORMED else -1
    return Taps(tuple(i - 1 for i in found), tuple(normed or i == last for i in found), maps.add_fpn)


def is_adapted(settings: Json) -> bool:
    """Return whether transformers' own code runs the backbone class of a tower with these settings."""
    return settings.get("model_type") in ADAPTED


def _number(name: str, stages: tuple[str, ...]) -> int:
    if name not in stages:
        raise ValueError(f"config.json has out_features with {SHORT.repr(name)}; want {STEM} or stage1 to {stages[-1]}")
    return stages.index(name)


def _index(index: int, stages: tuple[str, ...]) -> int:
    if not -len(stages) <= index < len(stages):
        raise ValueError(f"config.json has out_indices with {index}; want numbers up to {len(stages) - 1}")
    return index % len(stages)
