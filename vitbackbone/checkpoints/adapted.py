"""Weights of the adapter over transformers: the image encoder's tensors out of a checkpoint of the whole model.

transformers' own table says how the names on disk become names of the model. Only the encoder's tensors are read.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vitbackbone.checkpoints.rules import ConversionError
from vitbackbone.images import Preprocess
from vitbackbone.networks.transformers import TransformersBackbone, TransformersConfig, build_tower
from vitbackbone.networks.transformers_parts import private

Read = Callable[[list[str]], Mapping[str, Tensor]]


def load_adapted(
    config: TransformersConfig, preprocess: Preprocess | None, name: str, names: Iterable[str], read: Read
) -> tuple[TransformersBackbone, list[str]]:
    """Return the image encoder of a checkpoint in the adapter, and the names of the tensors that were dropped.

    `names`: of all tensors of the checkpoint. `read`: returns the tensors of some names.
    Raises `ConversionError` unless the checkpoint fills every parameter of the encoder exactly once.
    """
    model, tower = build_tower(config)
    names = list(names)
    used = fill(model, tower, names, read)
    encoder = model.get_submodule(tower)
    backbone = TransformersBackbone(replace(config, tower=tower), preprocess, name, encoder)
    return backbone.eval(), sorted(set(names) - used)


def fill(model: Any, tower: str, names: list[str], read: Read) -> set[str]:
    """Fill the parameters at the path `tower` of a model on the meta device, and return the names that were used."""
    state = model.state_dict()
    inside = {key for key in state if not tower or key.startswith(f"{tower}.")}
    mapping = private("conversion_mapping", "get_model_conversion_mapping")(model)
    targets = _renamed(model, names, state, mapping)
    chosen = [name for name in names if targets[name] in inside]
    if {targets[name] for name in chosen} != inside and (direct := _by_suffix(tower, inside, names)):
        chosen, mapping = list(direct), []
        tensors = {direct[name]: tensor for name, tensor in read(chosen).items()}
    else:
        tensors = dict(read(chosen))
        strange = [name for name in names if targets[name] not in state and _is_in(targets[name], tower, inside)]
        if strange:
            raise ConversionError(_misfit("tensors that the encoder lacks", strange))
    options = private("modeling_utils", "LoadStateDictConfig")(weight_mapping=mapping, dtype=torch.float32)
    info, _ = private("core_model_loading", "convert_and_load_state_dict_in_model")(model, tensors, options)
    _check(model.get_submodule(tower), tower, info, inside)
    return set(chosen)


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
