"""Reading the feature pyramid of SAM 2, which is beside its hierarchy (transformers, `Sam2VisionNeck`)."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.records import read_settings
from vitbackbone.checkpoints.rules import ConversionError, State
from vitbackbone.contract import BackboneModule
from vitbackbone.files import Record
from vitbackbone.networks import FpnBackbone, FpnConfig

PYRAMID = "fpn"  # the name that `adaptor=` takes
KEYS = re.compile(r"(?:.*\.)?neck\.convs\.([0-9]{1,3})\.(weight|bias)")
HOLDER = "backbone_config"  # the settings of a pyramid are next to the settings of its hierarchy


class Pyramid(Record):
    """The settings of a pyramid, with the defaults of transformers."""

    fpn_kernel_size: int = 1
    fpn_stride: int = 1
    fpn_padding: int = 0
    fpn_top_down_levels: tuple[Annotated[int, Field(ge=0, le=100)], ...] = (2, 3)
    num_feature_levels: Annotated[int, Field(ge=1, le=100)] = 3


def has_pyramid(state: State) -> bool:
    """Return whether a checkpoint has a pyramid beside a hierarchy."""
    return any(KEYS.fullmatch(key) for key in state)


def attach_pyramid(backbone: BackboneModule, settings: Json, state: State, name: str) -> FpnBackbone:
    """Return a backbone whose layers are the maps of the pyramid.

    `settings`: the settings of `config.json`. `name`: the name of the result.
    Raises `ValueError` on settings that are not known, and `ConversionError` if the tensors do not fit.
    """
    own = read_settings(next(holders(settings), settings), Pyramid)
    if (own.fpn_kernel_size, own.fpn_stride, own.fpn_padding) != (1, 1, 0):
        raise ValueError("config.json has an fpn_kernel_size, fpn_stride or fpn_padding; want 1, 1 and 0")
    found = {match.group(1, 2): state[key] for key in state if (match := KEYS.fullmatch(key))}
    last = backbone.spec.depth - 1  # the checkpoint has the coarsest level first
    given = {f"laterals.{last - int(n)}.{kind}": tensor.float() for (n, kind), tensor in found.items()}
    width = len(next(iter(given.values()), ()))
    config = FpnConfig(width, own.num_feature_levels, own.fpn_top_down_levels)
    with torch.device("meta"):
        made = FpnBackbone(backbone, config, name)
    wanted = {f"laterals.{key}": tensor.shape for key, tensor in made.laterals.state_dict().items()}
    if wrong := sorted(
        key for key in given.keys() | wanted.keys() if key not in given or given[key].shape != wanted.get(key)
    ):
        raise ConversionError(f"the checkpoint does not fit:\n  neck.convs: {wrong[0]} is missing or of another shape")
    made.laterals.load_state_dict({key.removeprefix("laterals."): tensor for key, tensor in given.items()}, assign=True)
    return made.eval()


def holders(settings: Mapping[str, Any], deep: int = 8) -> Iterator[Json]:
    """Yield the objects within the settings that hold the settings of a hierarchy."""
    if isinstance(settings.get(HOLDER), Mapping):
        yield settings
    for value in settings.values():
        if isinstance(value, Mapping) and deep:
            yield from holders(value, deep - 1)
