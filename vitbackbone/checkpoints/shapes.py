"""Facts about a network that the keys and shapes of a checkpoint tell. They overrule its settings, which may be missing
or wrong.

The checkpoint decides whether a part exists: norms, poolings, LayerScale, biases, the gate of an MLP. A number in the
settings that contradicts the checkpoint is an error, because it is not known which of the two is damaged.
"""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import Any

from vitbackbone.checkpoints.faults import Faults
from vitbackbone.checkpoints.formats import CLASSES
from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.rules import Rules, State
from vitbackbone.files import SHORT
from vitbackbone.model import QkvBias, ViTConfig
from vitbackbone.networks import TimmConfig

REGISTERS = "num_register_tokens"  # the name of the setting
SUMMARY = "summary_idxs"  # C-RADIO's tensor of the tokens that are pooled
PLAIN_MLPS = ("gelu", "gelu_tanh", "quick_gelu")


def settle(
    config: ViTConfig, rules: Rules, tensors: State, blocks: int, settings: Json, architecture: str = ""
) -> ViTConfig:
    """Return the configuration with the parts that a checkpoint has.

    `blocks`: the number of blocks in the checkpoint. `settings`: the settings that a `config.json` states.
    `architecture`: the class that saved the weights. One of `CLASSES` has all its parts, so a missing one is a fault.
    Raises `ConversionError` if numbers contradict each other.
    """
    found = Parts(rules, tensors, blocks)
    whole = {target for rule in CLASSES.get(architecture, ()) for target in rule.targets}
    config = _ends(config, found, whole)
    config = replace(config, **_blocks(config, found))
    faults = Faults()
    if config.pool == "tokens" and SUMMARY in tensors:  # transformers reads them, too, whatever the settings say
        chosen = tuple(int(index) for index in tensors[SUMMARY].flatten().tolist())
        if not chosen or not all(0 <= index < config.num_prefix for index in chosen):
            faults.add(SUMMARY, f"{SHORT.repr(list(chosen))} in the weights; want tokens of {config.num_prefix}")
        else:
            config = replace(config, pool_tokens=chosen)
    if blocks != config.depth:
        faults.add("blocks", f"{config.depth} in the settings, {blocks} in the weights")
    registers = found.count("reg_token")
    if registers is not None and registers != config.num_registers:
        if settings.get(REGISTERS) is not None:
            faults.add(REGISTERS, f"{config.num_registers} in the settings, {registers} in the weights")
        config = replace(config, num_registers=registers)
    faults.raise_any("the checkpoint does not fit")
    return config


def settle_swin(config: TimmConfig, rules: Rules, tensors: State) -> TimmConfig:
    """Return the configuration of a Swin, or of another network with levels, without the final norm, if a checkpoint
    has none. Classes that hand the stages to a decoder have a norm for each stage that it reads."""
    found = Parts(rules, tensors)
    there = "model.norm.weight" in found or "model.head.norm.weight" in found
    return replace(config, final_norm=config.final_norm and there, map_norm=config.map_norm and there)


class Parts:
    """The parameters that a checkpoint fills by rules, whatever parameters a model has."""

    def __init__(self, rules: Rules, tensors: State, blocks: int = 1) -> None:
        self._rules, self._tensors, self._blocks = rules, tensors, range(max(blocks, 1))

    def __contains__(self, target: str) -> bool:
        return next(self._sources(target), None) is not None

    def shape(self, target: str) -> tuple[int, ...]:
        """Return the shape of a parameter that a rule copies, or () if there is none."""
        return next((tuple(self._tensors[source].shape) for (source,) in self._copies(target)), ())

    def count(self, target: str) -> int | None:
        """Return the number of tokens of a parameter (1, R, D) that a rule copies, or None if no rule copies one."""
        if not any(rule.targets == (target,) and len(rule.sources) == 1 for rule in self._rules):
            return None
        shape = self.shape(target)
        return shape[1] if len(shape) == 3 else 0

    def _sources(self, target: str) -> Iterator[tuple[str, ...]]:
        filling = [rule.sources for rule in self._rules if target in rule.targets]
        for i, names in product(self._blocks, filling):
            sources = tuple(name.replace("{i}", str(i)) for name in names)
            if all(source in self._tensors for source in sources):
                yield sources

    def _copies(self, target: str) -> Iterator[tuple[str, ...]]:
        yield from (sources for sources in self._sources(target) if len(sources) == 1)


def _ends(config: ViTConfig, found: Parts, whole: set[str]) -> ViTConfig:
    """Return the configuration with the norms, the pooling and the projection after the blocks that there are."""

    def has(target: str) -> bool:
        return target in found or target in whole

    fc_norm = config.fc_norm and has("fc_norm.weight")
    final_norm = (config.final_norm or config.fc_norm) and not fc_norm and has("norm.weight")
    pool = "mean" if config.pool == "map" and not has("attn_pool.latent") else config.pool
    width = (found.shape("projection.weight") or (0,))[0]
    return replace(config, fc_norm=fc_norm, final_norm=final_norm, pool=pool, projection_dim=width)


def _blocks(config: ViTConfig, found: Parts) -> dict[str, Any]:
    """Return the settings of the blocks that keys and shapes show."""
    fields: dict[str, Any] = {"layer_scale": config.layer_scale or "blocks.{i}.ls1.gamma" in found}
    wide, narrow = found.shape("blocks.{i}.mlp.fc1.weight"), found.shape("blocks.{i}.mlp.fc2.weight")
    gated = found.shape("blocks.{i}.mlp.w3.weight")
    if config.mlp in PLAIN_MLPS and len(wide) == len(narrow) == 2 and wide[0] == 2 * narrow[1]:
        fields |= {"mlp": "swiglu", "mlp_dim": narrow[1]}
    elif config.mlp in PLAIN_MLPS and not wide and len(gated) == 2:
        fields |= {"mlp": "swiglu", "mlp_dim": gated[1]}
    return fields | {"qkv_bias": _biases(config, found)}


def _biases(config: ViTConfig, found: Parts) -> QkvBias:
    if "blocks.{i}.attn.qkv.bias" in found:
        return "qkv"
    if "blocks.{i}.attn.q_bias" in found or "blocks.{i}.attn.v_bias" in found:
        return "qv"
    return "none" if "blocks.{i}.attn.qkv.weight" in found else config.qkv_bias
