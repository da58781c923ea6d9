"""The conversion engine: checkpoint keys to parameters by a table of rules, nothing guessed and nothing left over.

A rule names source keys and target parameters; `{i}` stands for a block's number. Every source key must match exactly
one rule, and every parameter must be filled exactly once; otherwise one error lists both sides.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

State = Mapping[str, Tensor]

HEADS = ("head.", "head_dist.")  # what comes out under these is a classifier's, whose size only the checkpoint knows


@dataclass(frozen=True)
class Rule:
    """`sources` become `targets`. No targets: the checkpoint may hold these keys and they are dropped on purpose.

    `via` takes one tensor a source and returns one a target; without it the tensors are taken as they are.
    """

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    via: Callable[..., tuple[Tensor, ...]] | None = None


def rename(source: str, target: str) -> Rule:
    return Rule((source,), (target,))


def drop(source: str) -> Rule:
    return Rule((source,), ())


def both(source: str, target: str) -> tuple[Rule, Rule]:
    """The weight and the bias of a layer."""
    return rename(f"{source}.weight", f"{target}.weight"), rename(f"{source}.bias", f"{target}.bias")


class ConversionError(ValueError):
    """A checkpoint and a model that do not fit, with every key of either side that is in the way."""


def convert(state: State, rules: Iterable[Rule], expected: State) -> dict[str, Tensor]:
    """The parameters `expected` from a checkpoint's tensors, and those of its heads (`HEADS`) if it has any.

    Raises one `ConversionError` that lists every key that no rule or more than one matches, every rule only some of
    whose sources are there, and every parameter that is filled twice, not at all, with another shape, or that the
    model does not have.
    """
    table = list(rules)
    patterns = [(n, part, _pattern(key)) for n, rule in enumerate(table) for part, key in enumerate(rule.sources)]
    found: dict[tuple[int, str], dict[int, str]] = {}  # (rule, block number) -> position in the rule -> source key
    trouble: list[str] = []
    for key in state:
        matches = [(n, part, match) for n, part, pattern in patterns if (match := pattern.fullmatch(key))]
        if len(matches) != 1:
            trouble.append(f"{key}: {'no rule of the format knows this key' if not matches else 'several rules match'}")
            continue
        n, part, match = matches[0]
        found.setdefault((n, match.groupdict().get("i", "")), {})[part] = key

    result: dict[str, Tensor] = {}
    for (n, block), keys in found.items():
        rule = table[n]
        missing = [source for part, source in enumerate(rule.sources) if part not in keys]
        if missing:
            there = keys[min(keys)]
            trouble += [f"{source.replace('{i}', block)}: missing, though {there} is there" for source in missing]
        elif rule.targets:
            given = tuple(state[keys[part]] for part in range(len(rule.sources)))
            for target, tensor in zip(rule.targets, rule.via(*given) if rule.via else given, strict=True):
                name = target.replace("{i}", block)
                if name in result:
                    trouble.append(f"{name}: filled twice, the second time by {', '.join(keys.values())}")
                result[name] = tensor

    trouble += [f"{name}: the checkpoint does not fill this parameter" for name in expected.keys() - result.keys()]
    for name, tensor in result.items():
        if name in expected and tensor.shape != expected[name].shape:
            shapes = f"shape {tuple(tensor.shape)} in the checkpoint, {tuple(expected[name].shape)} in the model"
            trouble.append(f"{name}: {shapes}")
        elif name not in expected and not name.startswith(HEADS):
            trouble.append(f"{name}: the model has no such parameter")
    if trouble:
        raise ConversionError("the checkpoint does not fit:\n  " + "\n  ".join(sorted(trouble)))
    return result


def _pattern(template: str) -> re.Pattern[str]:
    before, found, after = template.partition("{i}")
    return re.compile(re.escape(before) + (r"(?P<i>\d+)" + re.escape(after) if found else ""))
