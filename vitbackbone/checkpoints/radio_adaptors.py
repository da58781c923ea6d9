"""Reading C-RADIO's adaptors from the authors' directories (NVlabs/RADIO, radio/hf_model.py and hf_hub.py).

The networks of an adaptor are under `adaptors.NAME.` beside the network, and `config.json` says which token they read.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.records import read_settings
from vitbackbone.checkpoints.rules import ConversionError, State
from vitbackbone.files import SHORT, Record
from vitbackbone.model import ViT
from vitbackbone.networks import AdaptorBackbone, AdaptorConfig, AdaptorMlp

PLACE = "adaptors."
ATTENDED = "blocks.0.mlp.fc1.weight"  # a network for patches that begins with blocks of a Vision Transformer
SUMMARY, PATCHES = "head_mlp", "feat_mlp"


class Upsampled(Record):
    """The settings of an adaptor's network for patches."""

    upsample_factor: Annotated[int, Field(ge=1, le=64)] = 1


class Adaptor(Record):
    """The settings of an adaptor that its tensors do not show."""

    head_idx: Annotated[int, Field(ge=0, le=1000)] = 0
    feature: Upsampled = Upsampled()


class Adapted(Record):
    """The settings of all adaptors, by their names."""

    adaptor_configs: dict[str, Adaptor] = Field(default_factory=dict)


def adaptor_names(state: State) -> list[str]:
    """Return the names of the adaptors in a checkpoint."""
    rests = (key.partition(f".{PLACE}")[2] or key.partition(PLACE)[2] for key in state)
    return sorted({rest.partition(".")[0] for rest in rests if f".{SUMMARY}." in rest or f".{PATCHES}." in rest})


def attach_adaptor(backbone: ViT, adaptor: str, settings: Json, state: State, name: str) -> AdaptorBackbone:
    """Return a backbone of the adaptor's features.

    `settings`: the settings of `config.json`. `name`: the name of the result.
    Raises `ValueError` if the checkpoint has no such adaptor, and `ConversionError` if it does not fit.
    """
    names = adaptor_names(state)
    if adaptor not in names:
        has = f"want one of {', '.join(map(SHORT.repr, names))}" if names else "the checkpoint has no adaptors"
        raise ValueError(f"adaptor={adaptor!r}; {has}")
    known = read_settings(settings, Adapted).adaptor_configs.get(adaptor)
    if known is None:
        raise ValueError(f"config.json has no adaptor_configs[{adaptor!r}], which says the token that it reads")
    whole = f"{PLACE}{adaptor}."
    inside = {key.partition(whole)[2]: state[key] for key in state if key.startswith(whole) or f".{whole}" in key}
    parts = {part: _behind(inside, f"{part}.") for part in (SUMMARY, PATCHES)}
    shapes = {part: _shape(tensors, f"{whole}{part}") for part, tensors in parts.items()}
    token = 0 if _tokens(settings) == 1 else known.head_idx
    config = AdaptorConfig(adaptor, token, shapes[SUMMARY], shapes[PATCHES], known.feature.upsample_factor)
    with torch.device("meta"):
        made = AdaptorBackbone(backbone, config, name)
    for part, network in ((SUMMARY, made.summary), (PATCHES, made.patches)):
        tensors = {key: tensor.float() for key, tensor in parts[part].items()}
        _check(tensors, network.state_dict(), f"{whole}{part}")
        network.load_state_dict(tensors, assign=True)
    return made.eval()


def _tokens(settings: Json) -> int:
    """Return the number of CLS tokens: one for each teacher, or one for all."""
    arguments = settings.get("args")
    each = not isinstance(arguments, Mapping) or bool(arguments.get("cls_token_per_teacher", True))
    return 2 if each else 1


def _behind(tensors: State, prefix: str) -> State:
    return {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}


def _shape(tensors: State, place: str) -> AdaptorMlp:
    """Return the shape of a network from its tensors. Raises `ConversionError` if they are of no kind that is known."""
    if ATTENDED in tensors:
        behind = _shape(_behind(tensors, "mlp."), f"{place}.mlp")
        blocks = {key.split(".")[1] for key in tensors if key.startswith("blocks.")}
        return replace(behind, version="attn", blocks=len(blocks), mlp_dim=len(tensors[ATTENDED]))
    version, last = ("v2", "final.2.weight") if "final.2.weight" in tensors else ("v1", "fc2.weight")
    if not all(name in tensors and tensors[name].ndim == 2 for name in ("fc1.weight", last)):
        some = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise ConversionError(f"the checkpoint does not fit:\n  {place}: want fc1 and fc2 or final.2; it has {some}")
    inner = {
        int(word) for word in (key.split(".")[1] for key in tensors if key.startswith("blocks.")) if word.isdecimal()
    }
    if version == "v1":
        inner = {each for each in range(0, 3000, 3) if f"inner.{each}.weight" in tensors}
    hidden, inputs = tensors["fc1.weight"].shape
    return AdaptorMlp("v2" if version == "v2" else "v1", inputs, hidden, tensors[last].shape[0], len(inner))


def _check(given: State, wanted: State, place: str) -> None:
    """Raise `ConversionError` that names the first tensor that is missing, unknown or of another shape."""
    for key in sorted(given.keys() | wanted.keys()):
        shapes = [tuple(each[key].shape) if key in each else "missing" for each in (given, wanted)]
        if shapes[0] != shapes[1]:
            text = f"{place}.{key}: {shapes[0]} in the checkpoint, {shapes[1]} in the model"
            raise ConversionError(f"the checkpoint does not fit:\n  {text}")
