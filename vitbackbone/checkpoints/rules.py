"""The conversion engine: a table of rules turns checkpoint keys into parameters. It guesses and ignores nothing.

Keys are relative to the tower, the part of a checkpoint that the rules describe. `../` in front of a key means the
module that holds the tower: `../classifier.weight` is `classifier.weight` if the tower is under `vit.`.

Parameters are float32, whatever the precision of the file. A tensor becomes float32 before a rule computes with it,
because a sum in half precision would lose digits that the file holds.

A rule names source keys and target parameters. `{i}` stands for a block's number, and `{rest}` at the end for any rest.
A rule applies if the model has all its targets, so one table can serve a plain MLP and a gated one. If several rules
match a key, the one that takes the most keys of the checkpoint applies. For example, a CLS token may have a position
beside it or not. Every source key must match exactly one rule that applies, and every parameter must be filled exactly
once. Otherwise one error lists both sides. `revert` runs the same table backwards.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vitbackbone.checkpoints.faults import ConversionError, Faults
from vitbackbone.model import ViTConfig

__all__ = [
    "HEADS",
    "OUTSIDE",
    "Change",
    "ConversionError",
    "Rule",
    "Rules",
    "State",
    "beside",
    "bind",
    "both",
    "convert",
    "drop",
    "inside",
    "mask_token",
    "read_only",
    "rename",
    "revert",
    "together",
    "unused",
]

# Names to tensors. The type says `Any`, because a check of the values at run time would read files that are not needed
State = Mapping[str, Any]

# Targets under these prefixes belong to a classifier, whose size only the checkpoint knows. The prefix says what the
# layer reads: the backbone's own pooling, DeiT's distillation token, or CLS beside the mean of the patches.
HEADS = ("head.", "head_dist.", "head_concat.")
OUTSIDE = "../"  # prefix of the keys that are beside the tower
UNWRITTEN = (
    "mask_token",
)  # parameters that a format need not have a place for, because no plain feature depends on them
OPTIONAL = ("head.hidden.",)  # the tanh layer of the pretrained head, which fine-tuning removes


@dataclass(frozen=True)
class Change:
    """A computation between the sources and the targets of a rule.

    `there` takes one tensor per source and returns one per target. `back` is its inverse; None if the sources cannot be
    computed from the targets alone.
    """

    there: Callable[..., tuple[Tensor, ...]]
    back: Callable[..., tuple[Tensor, ...]] | None = None


@dataclass(frozen=True)
class Rule:
    """`sources` become `targets`. A rule without targets drops its sources: the checkpoint may hold them, unused.

    `via`: how the targets are computed; None copies the tensors. A function makes the change for a configuration, such
    as an order of channels in each head; `bind` calls it. A target with `{i}` and sources without it fill every
    block with the same tensor.
    `written`: False for a spelling that is read but that `revert` does not write.
    `blank`: the shape of the zeros that an exported checkpoint holds for a dropped source, because the class that loads
    it has a parameter there. A name in it is a size in `ViTConfig`.
    `optional`: whether the sources are dropped if the model lacks the targets.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    via: Change | Callable[[ViTConfig], Change] | None = None
    written: bool = True
    blank: tuple[int | str, ...] | None = None
    optional: bool = False


Rules = tuple[Rule, ...]


def bind(rules: Iterable[Rule], config: ViTConfig) -> Rules:
    """Return the same rules, with the changes that depend on the configuration."""
    return tuple(replace(rule, via=rule.via(config)) if callable(rule.via) else rule for rule in rules)


def rename(source: str, target: str) -> Rule:
    """Copy one tensor under another name."""
    return Rule((source,), (target,))


def drop(source: str) -> Rule:
    """Allow a key and ignore it."""
    return Rule((source,), ())


def unused(source: str, *shape: int | str) -> Rule:
    """Drop a parameter that no feature depends on, and write zeros of this shape at export."""
    return Rule((source,), (), blank=shape)


def mask_token(source: str, *shape: int | str) -> Rule:
    """Read the token that replaces masked patches, if the model has one. `shape`: in the checkpoint."""
    back = Change(lambda token: (token.reshape(1, 1, -1),), lambda token: (token.reshape(*shape[:-1], -1),))
    return Rule((source,), ("mask_token",), via=back, blank=shape, optional=True)


def both(source: str, target: str) -> Rules:
    """Rename the weight and the bias of a layer."""
    return rename(f"{source}.weight", f"{target}.weight"), rename(f"{source}.bias", f"{target}.bias")


def together(*layers: tuple[str, str]) -> Rules:
    """Rename layers from source to target. A checkpoint has all of them or none."""
    sources, targets = zip(*layers, strict=True)
    return tuple(
        Rule(tuple(f"{name}.{kind}" for name in sources), tuple(f"{name}.{kind}" for name in targets))
        for kind in ("weight", "bias")
    )


def inside(prefix: str, rules: Iterable[Rule]) -> Rules:
    """Return the same rules for a checkpoint whose keys have a prefix."""
    return tuple(replace(rule, sources=tuple(prefix + source for source in rule.sources)) for rule in rules)


def beside(rules: Iterable[Rule]) -> Rules:
    """Return the same rules for keys that are beside the tower, in the module that holds it."""
    return inside(OUTSIDE, rules)


def read_only(rules: Iterable[Rule]) -> Rules:
    """Return the same rules for another spelling of the format's keys, which is read but never written."""
    return tuple(replace(rule, written=False) for rule in rules)


# ---- from a checkpoint to a model ---------------------------------------------------------------------------------


def convert(state: State, rules: Iterable[Rule], expected: State) -> dict[str, Tensor]:
    """Return the parameters `expected` from a checkpoint's tensors, and the parameters of its heads (`HEADS`) if any.

    Raises one `ConversionError`. It lists the keys that no rule or several rules match, and the sources that a rule
    lacks. It also lists the parameters that are filled twice, not at all, or with another shape or dtype.
    """
    table, faults = tuple(rules), Faults()
    made: dict[str, Made] = {}
    for group in _match(state, table, expected, faults):
        for name, one in _apply(group, state, expected, faults):
            if name in made:
                faults.add(name, "filled twice", f", the second time by {', '.join(group.keys.values())}")
            made[name] = one
    _check_filled(made, table, expected, faults)
    for name, one in made.items():
        _check_fits(name, one, expected.get(name), faults)
    faults.raise_any("the checkpoint does not fit")
    return {name: one.tensor for name, one in made.items() if one.tensor is not None}


@dataclass(frozen=True)
class Group:
    """A rule for one block, with the keys that the checkpoint has for its sources."""

    rule: Rule
    block: str  # the block's number; "" for a rule without {i}
    keys: dict[int, str]  # position among the rule's sources -> key


class Made(NamedTuple):
    """A parameter made from a checkpoint: None if its computation failed, and the keys and shapes that it was computed
    from."""

    tensor: Tensor | None
    origin: str


def _match(state: State, table: Sequence[Rule], expected: State, faults: Faults) -> list[Group]:
    """Sort the keys of a checkpoint by rule and block. A key must match exactly one rule that applies."""
    sources = Templates((source, (n, part)) for n, rule in enumerate(table) for part, source in enumerate(rule.sources))
    groups: dict[tuple[int, str], Group] = {}
    for key, tensor in state.items():
        matches = list(sources.match(key))
        if matches and not tensor.numel():  # transformers saves the registers of a model that has none
            continue
        lacking = {n: _lacking(table[n], block, expected) for (n, _), block in matches}
        fitting = [(n, part, block) for (n, part), block in matches if lacking[n] is None or table[n].optional]
        if len(fitting) > 1:
            fitting = _widest(fitting, table, state)
        if len(fitting) == 1:
            n, part, block = fitting[0]
            groups.setdefault((n, block), Group(table[n], block, {})).keys[part] = key
        elif fitting:
            faults.add(key, "several rules match")
        elif matches:
            faults.add(key, "the model has no such parameter", f", {next(iter(lacking.values()))}")
        else:
            faults.add(key, "no rule of the format knows this key")
    return list(groups.values())


def _widest(fitting: list[tuple[int, int, str]], table: Sequence[Rule], state: State) -> list[tuple[int, int, str]]:
    """Return the rules that take the most keys, among the rules that find all of their keys."""
    whole = [row for row in fitting if all(source.replace("{i}", row[2]) in state for source in table[row[0]].sources)]
    most = max((len(table[n].sources) for n, _, _ in whole), default=0)
    return [row for row in whole if len(table[row[0]].sources) == most] or fitting


def _apply(group: Group, state: State, expected: State, faults: Faults) -> Iterator[tuple[str, Made]]:
    """Yield the parameters that a rule makes from its keys."""
    rule, keys = group.rule, group.keys
    if missing := [source for part, source in enumerate(rule.sources) if part not in keys]:
        for source in missing:
            faults.add(source.replace("{i}", group.block), "missing", f", though {keys[min(keys)]} is there")
        return
    if not rule.targets or (rule.optional and _lacking(rule, group.block, expected) is not None):
        return
    origin = ", ".join(f"{key} {tuple(state[key].shape)}" for key in keys.values())
    made = _compute(rule, [state[keys[part]] for part in range(len(rule.sources))], list(keys.values()), origin, faults)
    for place, target in enumerate(rule.targets):
        for copy, name in enumerate(_names(target, group.block, expected)):
            tensor = made[place] if made else None
            if tensor is not None:
                tensor = tensor.clone() if copy else tensor.contiguous()  # no two parameters share memory
            yield name, Made(tensor, origin)


def _compute(
    rule: Rule, given: list[Tensor], keys: list[str], origin: str, faults: Faults
) -> tuple[Tensor, ...] | None:
    """Return the tensors of a rule's targets in float32, or None after noting a fault."""
    odd = [(key, tensor) for key, tensor in zip(keys, given, strict=True) if not _is_plain(tensor)]
    for key, tensor in odd:
        faults.add(key, f"{_kind(tensor)} in the checkpoint; want plain numbers")
    if odd:
        return None
    floats = tuple(map(_as_float32, given))
    assert not callable(rule.via)  # the rules are bound
    try:
        return rule.via.there(*floats) if rule.via else floats
    except (RuntimeError, IndexError, ValueError) as error:
        faults.add(origin, "these shapes do not go together", f" ({error})")
        return None


def _check_filled(made: Mapping[str, Made], table: Sequence[Rule], expected: State, faults: Faults) -> None:
    """Note the parameters that nothing filled. A classifier must be there whole or not at all."""
    empty = expected.keys() - made.keys()
    if begun := tuple(head for head in HEADS if any(name.startswith(head) for name in made)):
        heads = {target for rule in table for target in rule.targets if target.startswith(begun)}
        empty |= {name for name in heads - made.keys() if not name.startswith(OPTIONAL)}
    for name in sorted(empty, key=lambda name: (name.startswith("blocks."), name)):  # blocks would hide the others
        detail = partial(_missing_sources, name, table, expected)
        faults.add(name, "the checkpoint does not fill this parameter", detail)


def _check_fits(name: str, made: Made, expected: Tensor | None, faults: Faults) -> None:
    """Note a parameter whose shape or dtype differs from the model's."""
    if made.tensor is None:
        return
    shape, dtype = tuple(made.tensor.shape), made.tensor.dtype
    if expected is not None and shape != tuple(expected.shape):
        theirs = f" {shape} in the checkpoint, {tuple(expected.shape)} in the model"
        faults.add(name, "shape", f"{theirs}; made of {made.origin}")
    wanted = torch.float32 if expected is None else expected.dtype
    if dtype.is_floating_point != wanted.is_floating_point:
        faults.add(name, f"{dtype} in the checkpoint, {wanted} in the model", f"; made of {made.origin}")


# ---- and back -----------------------------------------------------------------------------------------------------


def revert(state: State, rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Return the keys and tensors of a checkpoint format from a model's parameters: `convert` backwards.

    Raises `ConversionError` if a parameter has no place in the format, or more than one.
    """
    result: dict[str, Tensor] = {}
    used: dict[str, int] = dict.fromkeys(state, 0)
    faults = Faults()
    for rule in rules:
        if not rule.written:
            continue
        for block in _blocks(rule, state):
            names = [_names(target, block, state) for target in rule.targets]
            if _lacking(rule, block, state) is not None or not all(names):
                continue
            for name in (name for group in names for name in group):
                used[name] += 1
            if any(not torch.equal(state[group[0]], state[name]) for group in names for name in group):
                faults.add(rule.sources[0], "the blocks differ, and the format has one for all of them")
            given = tuple(state[group[0]] for group in names)
            assert not callable(rule.via)
            if rule.via is None:
                made = given
            elif rule.via.back is None:
                faults.add(rule.sources[0], "cannot be computed from the model's parameters alone")
                continue
            else:
                made = rule.via.back(*given)
            result |= {key.replace("{i}", block): t for key, t in zip(rule.sources, made, strict=True)}
    for name, count in used.items():
        if count != 1 and not (count == 0 and name in UNWRITTEN):
            faults.add(name, f"the format has {'more than one place' if count else 'no place'} for it")
    faults.raise_any("the model does not fit the format")
    return {key: tensor.contiguous() for key, tensor in result.items()}


def _blocks(rule: Rule, state: State) -> list[str]:
    """Return the blocks that a rule writes: their numbers, or "" once if it writes the same for all blocks."""
    patterns = [_pattern(target) for target in rule.targets]
    blocks = {match.groupdict().get("i", "") for p in patterns for key in state if (match := p.fullmatch(key))}
    return [""] if blocks and all("{i}" not in source for source in rule.sources) else sorted(blocks)


# ---- keys ---------------------------------------------------------------------------------------------------------


class Templates:
    """Templates of keys, each with a value. Looking up a key costs the same for a long table and a short one."""

    def __init__(self, rows: Iterable[tuple[str, tuple[int, int]]]) -> None:
        self._whole: dict[str, list[tuple[int, int]]] = defaultdict(list)
        self._blocks: dict[str, list[tuple[int, int]]] = defaultdict(list)  # with {i} in place of the number
        self._open: dict[str, list[tuple[int, int]]] = defaultdict(list)  # what stands before {rest}
        for template, value in rows:
            before, rest, _ = template.partition("{rest}")
            (self._open if rest else self._blocks if "{i}" in template else self._whole)[before].append(value)
        self._longest = max(map(len, self._blocks), default=0)

    def match(self, key: str) -> Iterator[tuple[tuple[int, int], str]]:
        """Yield the value of each template that a key matches, with the block's number or ""."""
        for value in self._whole.get(key, ()):
            yield value, ""
        for run in re.finditer(r"[0-9]+", key) if len(key) <= self._longest + MOST_DIGITS else ():
            for value in self._blocks.get(f"{key[: run.start()]}{{i}}{key[run.end() :]}", ()):
                yield value, run.group()
        for before, values in self._open.items():
            if key.startswith(before) and len(key) > len(before):
                yield from ((value, "") for value in values)


MOST_DIGITS = 20  # of a block's number


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.escape(template).replace(r"\{i\}", r"(?P<i>[0-9]+)"))


def _names(target: str, block: str, known: State) -> list[str]:
    """Return the names of the parameters that a target stands for."""
    if block or "{i}" not in target:
        return [target.replace("{i}", block)]
    return [name for name in known if _pattern(target).fullmatch(name)]


def _lacking(rule: Rule, block: str, known: State) -> str | None:
    """Return a parameter that the rule fills and the model does not have, or None."""
    for target in rule.targets:
        names = _names(target, block, known)
        if not names:
            return target
        for name in names:
            if name not in known and not name.startswith(HEADS):
                return name
    return None


def _missing_sources(name: str, table: Iterable[Rule], expected: State) -> str:
    """Say from which keys of the format a parameter would be made."""
    for rule in sorted(table, key=lambda rule: not rule.written):
        for target in rule.targets:
            match = _pattern(target).fullmatch(name)
            block = match.groupdict().get("i", "") if match else ""
            if match and _lacking(rule, block, expected) is None:
                return f"; {', '.join(rule.sources)} is missing".replace("{i}", block)
    return "; a key for it is missing"


# ---- numbers ------------------------------------------------------------------------------------------------------

# Narrower floats need the scales that a checkpoint keeps beside them
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
COUNTS = (torch.int16, torch.int32, torch.int64)  # narrower integers are quantised weights, or packed bits


def _is_plain(tensor: Tensor) -> bool:
    return tensor.dtype in (*FLOATS, *COUNTS) and tensor.layout == torch.strided


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {tensor.layout}".replace("torch.", "")


def _as_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.is_floating_point() else tensor
