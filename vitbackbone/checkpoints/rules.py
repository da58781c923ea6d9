"""The conversion engine: checkpoint keys to parameters by a table of rules, nothing guessed and nothing left over.

Parameters are float32, whatever precision the file has. Tensors become float32 before a rule computes with them: a sum
in half precision would lose digits that the file holds.

A rule names source keys and target parameters; `{i}` stands for a block's number, and a `{rest}` at the end for any
rest. A rule applies where the model has all its targets: one table can serve a plain MLP and a gated one. Every source
key must match exactly one rule that applies, and every parameter must be filled exactly once; otherwise one error lists
both sides. `revert` runs the same table backwards.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

State = Mapping[str, Tensor]

# What comes out under these is a classifier's, whose size only the checkpoint knows. The name says what a layer reads:
# the backbone's own pooling, DeiT's distillation token, or CLS beside the mean of the patches.
HEADS = ("head.", "head_dist.", "head_concat.")
OPTIONAL = ("head.hidden.",)  # the tanh layer of the head as pretrained, which fine-tuning takes away


@dataclass(frozen=True)
class Change:
    """What a rule does to tensors, one argument a source and one result a target, and how to undo it, where the result
    alone tells."""

    there: Callable[..., tuple[Tensor, ...]]
    back: Callable[..., tuple[Tensor, ...]] | None = None


@dataclass(frozen=True)
class Rule:
    """`sources` become `targets`. No targets: the checkpoint may hold these keys and they are dropped on purpose.

    Without `via` the tensors are taken as they are. A target with `{i}` whose sources have none goes to every block.
    `written`: False for a spelling that is read and that `revert` does not use.
    `blank`: the shape of the zeros that stand in an exported checkpoint for a source that no parameter becomes, since
    the class that loads it has a parameter there; a name is a size in `ViTConfig`.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    via: Change | None = None
    written: bool = True
    blank: tuple[int | str, ...] | None = None


Rules = tuple[Rule, ...]


def rename(source: str, target: str) -> Rule:
    return Rule((source,), (target,))


def drop(source: str) -> Rule:
    return Rule((source,), ())


def unused(source: str, *shape: int | str) -> Rule:
    """A parameter that no feature depends on: dropped, and written as zeros of this shape."""
    return Rule((source,), (), blank=shape)


def both(source: str, target: str) -> Rules:
    """The weight and the bias of a layer."""
    return rename(f"{source}.weight", f"{target}.weight"), rename(f"{source}.bias", f"{target}.bias")


def inside(prefix: str, rules: Iterable[Rule]) -> Rules:
    """The same rules for a checkpoint that keeps its keys under a prefix."""
    return tuple(replace(rule, sources=tuple(prefix + source for source in rule.sources)) for rule in rules)


def read_only(rules: Iterable[Rule]) -> Rules:
    """The same rules for another spelling of the format's keys, which is read and never written."""
    return tuple(replace(rule, written=False) for rule in rules)


class ConversionError(ValueError):
    """A checkpoint and a model that do not fit, with every key of either side that is in the way."""


def convert(state: State, rules: Iterable[Rule], expected: State) -> dict[str, Tensor]:
    """Return the parameters `expected` from a checkpoint's tensors, and those of its heads (`HEADS`) if it has any.

    Raises one `ConversionError`. It lists every key that no rule or more than one fits, every rule only some of whose
    sources are there, and every parameter that is filled twice, not at all, or with another shape or kind of numbers.
    """
    table = list(rules)
    patterns = [(n, part, _pattern(key)) for n, rule in enumerate(table) for part, key in enumerate(rule.sources)]
    found: dict[tuple[int, str], dict[int, str]] = {}  # (rule, block number) -> position in the rule -> source key
    trouble: list[str] = []
    for key, tensor in state.items():
        matches = [(n, part, match) for n, part, pattern in patterns if (match := pattern.fullmatch(key))]
        if matches and not tensor.numel():  # transformers saves the registers of a model that has none
            continue
        fitting = [
            (n, part, block)
            for n, part, match in matches
            if _lacking(table[n], block := match.groupdict().get("i", ""), expected) is None
        ]
        if len(fitting) == 1:
            n, part, block = fitting[0]
            found.setdefault((n, block), {})[part] = key
        elif fitting:
            trouble.append(f"{key}: several rules match")
        elif matches:
            n, _, match = matches[0]
            lacking = _lacking(table[n], match.groupdict().get("i", ""), expected)
            trouble.append(f"{key}: the model has no such parameter, {lacking}")
        else:
            trouble.append(f"{key}: no rule of the format knows this key")

    result: dict[str, Tensor] = {}
    origin: dict[str, str] = {}  # the keys that a parameter was made of, with their shapes
    for (n, block), keys in found.items():
        rule = table[n]
        missing = [source for part, source in enumerate(rule.sources) if part not in keys]
        if missing:
            there = keys[min(keys)]
            trouble += [f"{source.replace('{i}', block)}: missing, though {there} is there" for source in missing]
        elif rule.targets:
            names = [name for target in rule.targets for name in _names(target, block, expected)]
            if odd := [key for key in keys.values() if not _is_plain(state[key])]:
                trouble += [f"{key}: {_kind(state[key])} in the checkpoint; want plain numbers" for key in odd]
                result |= dict.fromkeys(names, UNKNOWN)
                continue
            given = tuple(_as_float32(state[keys[part]]) for part in range(len(rule.sources)))
            shapes = ", ".join(f"{key} {tuple(state[key].shape)}" for key in keys.values())
            try:
                changed = rule.via.there(*given) if rule.via else given
            except (RuntimeError, IndexError, ValueError) as error:
                trouble.append(f"{shapes}: these shapes do not go together ({error})")
                result |= dict.fromkeys(names, UNKNOWN)
                continue
            for target, tensor in zip(rule.targets, changed, strict=True):
                for copy, name in enumerate(_names(target, block, expected)):
                    if name in result:
                        trouble.append(f"{name}: filled twice, the second time by {', '.join(keys.values())}")
                    result[name] = tensor.clone() if copy else tensor.contiguous()  # no two share memory
                    origin[name] = shapes

    wanted = set(expected.keys() - result.keys())
    if any(name.startswith(HEADS) for name in result):  # a classifier is there whole or not at all
        targets = {target for rule in table for target in rule.targets if target.startswith(HEADS)}
        wanted |= {target for target in targets - result.keys() if not target.startswith(OPTIONAL)}
    for name in wanted:
        lacking = _sources(name, table, expected)
        trouble.append(f"{name}: the checkpoint does not fill this parameter; {lacking} is missing")
    for name, tensor in result.items():
        if tensor is UNKNOWN:
            continue
        if name in expected and tensor.shape != expected[name].shape:
            shapes = f"shape {tuple(tensor.shape)} in the checkpoint, {tuple(expected[name].shape)} in the model"
            trouble.append(f"{name}: {shapes}; made of {origin[name]}")
        wanted_dtype = expected[name].dtype if name in expected else torch.float32
        if tensor.is_floating_point() != wanted_dtype.is_floating_point:
            kinds = f"{tensor.dtype} in the checkpoint, {wanted_dtype} in the model"
            trouble.append(f"{name}: {kinds}; made of {origin[name]}")
    if trouble:
        raise ConversionError("the checkpoint does not fit:\n  " + "\n  ".join(sorted(trouble)))
    return result


def revert(state: State, rules: Iterable[Rule]) -> dict[str, Tensor]:
    """The keys and tensors of a checkpoint format from a model's parameters: `convert` backwards.

    Raises `ConversionError` where a parameter has no place in the format, or more than one.
    """
    result: dict[str, Tensor] = {}
    used: dict[str, int] = dict.fromkeys(state, 0)
    trouble: list[str] = []
    for rule in rules:
        if not rule.written:
            continue
        patterns = [_pattern(target) for target in rule.targets]
        blocks = {match.groupdict().get("i", "") for p in patterns for key in state if (match := p.fullmatch(key))}
        if blocks and all("{i}" not in source for source in rule.sources):
            blocks = {""}
        for block in sorted(blocks):
            names = [_names(target, block, state) for target in rule.targets]
            if _lacking(rule, block, state) is not None or not all(names):
                continue
            for name in (name for group in names for name in group):
                used[name] += 1
            if any(not torch.equal(state[group[0]], state[name]) for group in names for name in group):
                trouble.append(f"{rule.sources[0]}: the blocks differ, and the format has one for all of them")
            given = tuple(state[group[0]] for group in names)
            if rule.via is None:
                made = given
            elif rule.via.back is None:
                trouble.append(f"{rule.sources[0]}: cannot be told from the model's parameters alone")
                continue
            else:
                made = rule.via.back(*given)
            result |= {key.replace("{i}", block): t for key, t in zip(rule.sources, made, strict=True)}
    counts = {0: "no place", 2: "more than one place"}
    trouble += [f"{name}: the format has {counts[min(n, 2)]} for it" for name, n in used.items() if n != 1]
    if trouble:
        raise ConversionError("the model does not fit the format:\n  " + "\n  ".join(sorted(trouble)))
    return {key: tensor.contiguous() for key, tensor in result.items()}


# Floats that are numbers by themselves: narrower ones want the scales that were kept beside them
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _is_plain(tensor: Tensor) -> bool:
    kept = tensor.dtype in FLOATS or not (tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized)
    return kept and tensor.layout == torch.strided


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tensor.layout}".replace("torch.", "")


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor


def _sources(name: str, table: Iterable[Rule], expected: State) -> str:
    """The keys of the format that a parameter is made of."""
    for rule in sorted(table, key=lambda rule: not rule.written):
        for target in rule.targets:
            match = _pattern(target).fullmatch(name)
            block = match.groupdict().get("i", "") if match else ""
            if match and _lacking(rule, block, expected) is None:
                return ", ".join(source.replace("{i}", block) for source in rule.sources)
    return "a key for it"


UNKNOWN = torch.empty(0)  # in the place of a parameter that could not be made


def _names(target: str, block: str, known: State) -> list[str]:
    """The parameters that a target means."""
    if block or "{i}" not in target:
        return [target.replace("{i}", block)]
    return [name for name in known if _pattern(target).fullmatch(name)]


def _lacking(rule: Rule, block: str, known: State) -> str | None:
    """A parameter that the rule wants to fill and the model does not have."""
    for target in rule.targets:
        names = _names(target, block, known)
        if not names:
            return target
        for name in names:
            if name not in known and not name.startswith(HEADS):
                return name
    return None


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{rest\}", ".+"))
