"""The conversion engine: checkpoint keys to parameters by a table of rules, nothing guessed and nothing left over.

A rule names source keys and target parameters; `{i}` stands for a block's number. Every source key must match exactly
one rule, and every parameter must be filled exactly once; otherwise one error lists both sides.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Rule:
    """`sources` become `targets`. No targets: the checkpoint may hold these keys and they are dropped on purpose.

    `via` takes one tensor a source and returns one a target; without it the tensors are taken as they are.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    via: Callable[..., tuple[Tensor, ...]] | None = None

    def apply(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return self.via(*tensors) if self.via else tensors


def rename(source: str, target: str) -> Rule:
    return Rule((source,), (target,))


def drop(source: str) -> Rule:
    return Rule((source,), ())


def both(source: str, target: str) -> tuple[Rule, Rule]:
    """The weight and the bias of a layer."""
    return rename(f"{source}.weight", f"{target}.weight"), rename(f"{source}.bias", f"{target}.bias")


class ConversionError(ValueError):
    """A checkpoint and a model that do not fit, with every key of either side that is in the way."""


def convert(state: State, rules: Iterable[Rule]) -> dict[str, Tensor]:
    """Parameters from a checkpoint's tensors.

    Raises `ConversionError` on a key that no rule or more than one matches, on a rule only some of whose sources are
    there, and on a parameter filled twice.
    """
    table = list(rules)
    patterns = [(rule, part, _pattern(source)) for rule in table for part, source in enumerate(rule.sources)]
    found: dict[tuple[int, str], dict[int, str]] = {}  # (rule, block number) -> position in the rule -> source key
    trouble: list[str] = []
    for key in state:
        matches = [(rule, part, m) for rule, part, pattern in patterns if (m := pattern.fullmatch(key))]
        if len(matches) != 1:
            trouble.append(f"{key}: {'no rule knows this key' if not matches else 'several rules match'}")
            continue
        rule, part, match = matches[0]
        found.setdefault((table.index(rule), match.groupdict().get("i", "")), {})[part] = key

    result: dict[str, Tensor] = {}
    for (index, block), keys in found.items():
        rule = table[index]
        missing = [rule.sources[part] for part in range(len(rule.sources)) if part not in keys]
        if missing:
            there = keys[min(keys)]
            trouble += [f"{source.replace('{i}', block)}: missing, though {there} is there" for source in missing]
            continue
        tensors = rule.apply(tuple(state[keys[part]] for part in range(len(rule.sources)))) if rule.targets else ()
        for target, tensor in zip(rule.targets, tensors, strict=True):
            name = target.replace("{i}", block)
            if name in result:
                trouble.append(f"{name}: filled twice, the second time by {', '.join(keys.values())}")
            result[name] = tensor
    if trouble:
        raise ConversionError("the checkpoint does not fit its format:\n  " + "\n  ".join(sorted(trouble)))
    return result


def check_filled(parameters: State, expected: State) -> None:
    """Raises `ConversionError` unless `parameters` fill `expected` exactly, names and shapes; lists both sides."""
    trouble = [f"{name}: the checkpoint does not fill this parameter" for name in expected.keys() - parameters.keys()]
    trouble += [f"{name}: the model has no such parameter" for name in parameters.keys() - expected.keys()]
    for name in parameters.keys() & expected.keys():
        given, wanted = tuple(parameters[name].shape), tuple(expected[name].shape)
        if given != wanted:
            trouble.append(f"{name}: shape {given} in the checkpoint, {wanted} in the model")
    if trouble:
        raise ConversionError("the checkpoint does not fit the model:\n  " + "\n  ".join(sorted(trouble)))


def _pattern(template: str) -> re.Pattern[str]:
    before, found, after = template.partition("{i}")
    return re.compile(re.escape(before) + (r"(?P<i>\d+)" + re.escape(after) if found else ""))
