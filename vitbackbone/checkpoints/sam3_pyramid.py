"""Reading the feature pyramid of SAM 3, which is beside its encoder (transformers, `Sam3VisionNeck`)."""

import logging
import re
from typing import Annotated

import torch
from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.records import read_settings
from vitbackbone.checkpoints.rules import ConversionError, State
from vitbackbone.checkpoints.sam2_pyramid import holders
from vitbackbone.contract import BackboneModule
from vitbackbone.files import Record
from vitbackbone.networks import ScaledFpnBackbone, ScaledFpnConfig

LOG = logging.getLogger("vitbackbone")
KEYS = re.compile(
    r"((?:.*\.)?neck\.fpn_layers\.)([0-9]{1,3})\.((?:scale_layers\.[0-9]{1,3}|proj1|proj2)\.(?:weight|bias))"
)


class ScaledPyramid(Record):
    """The settings of a pyramid, with the defaults of transformers."""

    scale_factors: tuple[Annotated[float, Field(gt=0, le=64)], ...] = (4.0, 2.0, 1.0, 0.5)


def has_scaled_pyramid(state: State) -> bool:
    """Return whether a checkpoint has a pyramid of one map at several scales."""
    return any(KEYS.fullmatch(key) for key in state)


def attach_scaled_pyramid(backbone: BackboneModule, settings: Json, state: State, name: str) -> ScaledFpnBackbone:
    """Return a backbone whose layers are the maps of the pyramid.

    A map whose patches are not a whole number of pixels is left out, and a line of the log says so. `settings`: the
    settings of `config.json`. `name`: the name of the result.
    Raises `ValueError` on settings that are not known, and `ConversionError` if the tensors do not fit.
    """
    factors = read_settings(next(holders(settings), settings), ScaledPyramid).scale_factors
    stride = backbone.spec.stride
    kept = sorted((i for i, factor in enumerate(factors) if stride % factor == 0), key=lambda i: -factors[i])
    if left := [f"{stride / factor:g}" for i, factor in enumerate(factors) if i not in kept]:
        LOG.warning("%s: left out the map of %s pixels a patch, which is not a whole number", name, ", ".join(left))
    found = [(match.groups(), tensor) for key, tensor in state.items() if (match := KEYS.fullmatch(key))]
    if len(places := sorted({place for (place, _, _), _ in found})) > 1:
        raise ConversionError(f"the checkpoint does not fit:\n  it has {len(places)} pyramids: {', '.join(places)}")
    given = {f"{kept.index(int(i))}.{rest}": t.float() for (_, i, rest), t in found if int(i) in kept}
    width = next((len(tensor) for key, tensor in given.items() if key.endswith("proj2.weight")), 1)
    config = ScaledFpnConfig(width, tuple(factors[i] for i in kept))
    with torch.device("meta"):
        made = ScaledFpnBackbone(backbone, config, name)
    wanted = {key: tensor.shape for key, tensor in made.fpn_layers.state_dict().items()}
    wrong = [key for key in sorted(given.keys() | wanted) if key not in given or given[key].shape != wanted.get(key)]
    if wrong:
        raise ConversionError(
            f"the checkpoint does not fit:\n  neck.fpn_layers: {wrong[0]} is missing or of another shape"
        )
    made.fpn_layers.load_state_dict(given, assign=True)
    return made.eval()
