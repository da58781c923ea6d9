"""Finding the vision tower: its settings in a `config.json`, which may be composite, and its keys among all keys.

A new family of transformers needs a reader of its settings, rules in keys relative to the tower, and one line in
`MODEL_TYPES` and in `FORMATS`. The reader gets the settings of its own `model_type`, wherever they are in the file.
Every prefix in front of the key of the patch embedding is a candidate; the numbers of blocks and the shapes decide.
A parameter beside the tower, such as a classifier or a projection, has a key that begins with `../`.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from torch import Tensor

from vitbackbone.checkpoints.faults import ConversionError
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.huggingface import MODEL_TYPES, ModelType
from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.radio import is_authors
from vitbackbone.checkpoints.huggingface.records import File, read_settings
from vitbackbone.checkpoints.rules import HEADS, OUTSIDE, Rule, Rules, State, Templates
from vitbackbone.checkpoints.trainers import AVERAGED, describe_taken, leave_out, merge_chunks, of_part, prefer
from vitbackbone.files import SHORT
from vitbackbone.networks import TimmConfig

COMMON_WORDS = {"", "model", "config", "encoder", "vision"}  # words that most settings and prefixes contain
DEEPEST = 8  # objects inside each other in a config.json
# a tower has one of these parameters
PATCHES = {"patch_embed.proj.weight", "model.patch_embed.proj.weight", "model.stem.0.weight"}


class NoTower(ValueError):
    """A `config.json` describes no tower that has a native configuration. `saved` is its contents."""

    def __init__(self, text: str, saved: Json) -> None:
        super().__init__(text)
        self.saved = saved


@dataclass(frozen=True)
class Part:
    """The settings of one tower in a `config.json`. `path` names the object that holds them; "" is the whole file."""

    path: str
    settings: Json
    model_type: ModelType

    @property
    def rules(self) -> Rules:
        """The rules for the tower's keys."""
        return FORMATS[self.model_type.layout]


def find_parts(saved: Json) -> list[Part]:
    """Return the towers that a `config.json` describes, in its order. Raises `NoTower` if it describes none
    that has a native configuration."""
    name = read_settings(saved, File).model_type
    parts = list(_parts(saved, "", DEEPEST))
    if not parts:
        text = f"config.json has model_type={SHORT.repr(name)}; want one of {', '.join(MODEL_TYPES)}"
        raise NoTower(text, saved)
    for part in parts:
        _check_native(part, saved)
    return parts


def _check_native(part: Part, saved: Json) -> None:
    """Raise `NoTower` if the ViT lacks a setting of the tower. Wrong settings are named once the tower is chosen."""
    try:
        part.model_type.read(part.settings)
    except NotNative as error:
        raise NoTower(str(error), saved) from error
    except ValueError:
        return


def _parts(settings: Json, path: str, deep: int) -> Iterator[Part]:
    name = "radio" if is_authors(settings) else settings.get("model_type")
    known = MODEL_TYPES.get(name) if isinstance(name, str) else None
    if known is not None and not isinstance(settings.get("backbone_config"), Mapping):
        yield Part(path, settings, known)
        return
    for key, value in settings.items():
        if isinstance(value, Mapping) and deep:
            yield from _parts(value, f"{path}.{key}".removeprefix("."), deep - 1)


@dataclass(frozen=True)
class Taken:
    """The tensors of a tower under keys relative to it, the rules for them, and a note on what else there was."""

    tensors: dict[str, Tensor]
    rules: Rules
    note: str
    warning: str = ""  # on what differs from the model that the file seems to hold

    def ending(self, depth: int, norm: bool, warning: str) -> "Taken":
        """Return what belongs to the first `depth` blocks alone. `norm`: whether the final norm does."""
        dropped = {key for key, block in _blocks(self.tensors, self.rules) if int(block) >= depth}
        if not norm:
            ends = Templates((source, (0, 0)) for rule in self.rules if _is_norm(rule) for source in rule.sources)
            dropped |= {key for key in self.tensors if any(ends.match(key))}
        tensors = {key: tensor for key, tensor in self.tensors.items() if key not in dropped}
        return replace(self, tensors=tensors, warning=warning)


def _is_norm(rule: Rule) -> bool:
    """Return whether a rule fills a norm after the last block."""
    return any(target.startswith(("norm.", "fc_norm.")) for target in rule.targets)


def choose(parts: Sequence[Part], state: State, tower: str | None, part: str | None) -> tuple[Part, Taken]:
    """Return the settings and the tensors of the tower in a checkpoint.

    `tower`: a prefix, or the name of an object in `config.json`, if there are several towers.
    `part`: a prefix, its beginning, or a word of it, if there are several copies of the tower.
    Raises `ValueError` that lists the towers if there are several, and `ConversionError` if there is none.
    """
    pairs = [(each, prefix) for each in parts for prefix in find_prefixes(state, each.rules)]
    if not pairs:
        raise _none((anchor for each in parts for anchor in _anchors(each.rules)), state)
    if len(pairs) > 1:
        pairs = [pair for pair in pairs if _fits(*pair, state)] or pairs
    pairs = _akin(pairs, by=1)
    by_path = _akin([pair for pair in pairs if tower is not None and tower == pair[0].path], by=0)
    every = _named([prefix for _, prefix in by_path or pairs], None if by_path else tower, part)
    prefix = _only(dict.fromkeys(prefer(every, AVERAGED)))
    settings = [each for each, its in by_path or pairs if its == prefix]
    networks = [each.model_type.read(each.settings) for each in settings]
    if any(network != networks[0] for network in networks):
        names = ", ".join(sorted(repr(each.path) for each in settings))
        raise ValueError(f"config.json has several settings for the tower {prefix!r}; choose one with tower=: {names}")
    return settings[0], _take(state, settings[0].rules, prefix, every)


def _akin(pairs: Sequence[tuple[Part, str]], by: int) -> list[tuple[Part, str]]:
    """Return the pairs of settings and prefix that have the most words in common: `image_model_config` belongs to
    `encoder.image_encoder`. The pairs of one prefix compete if `by` is 1, and the pairs of the same settings if 0."""

    def common(pair: tuple[Part, str]) -> int:
        words = (set(re.split(r"[._]", name)) - COMMON_WORDS for name in (pair[0].path, pair[1]))
        return len(set.intersection(*words))

    def rival(pair: tuple[Part, str]) -> str:
        return pair[1] if by else pair[0].path

    best: Counter[str] = Counter()
    for pair in pairs:
        best[rival(pair)] = max(best[rival(pair)], common(pair))
    return [pair for pair in pairs if common(pair) == best[rival(pair)]]


def take(state: State, rules: Rules, tower: str | None, part: str | None, must: bool) -> Taken:
    """Return the tensors of the tower in a checkpoint whose settings are known. Raises the errors of `choose`.

    `must`: raise `ConversionError` if no key is the patch embedding's. Otherwise the conversion explains what is
    missing.
    """
    prefixes = find_prefixes(state, rules)
    if not prefixes and must:
        raise _none(_anchors(rules), state)
    every = _named(prefixes or [""], tower, part)
    return _take(state, rules, _only(prefer(every)), every)


def _named(prefixes: Sequence[str], tower: str | None, part: str | None) -> list[str]:
    """Return the prefixes that the user's options name. Raises `ValueError` if they name none."""
    named = of_part(of_part(prefixes, tower), part)
    if not named:
        given = f"tower={tower!r}" if part is None else f"part={part!r}"
        raise ValueError(f"the checkpoint has no {given}; want one of {_names(prefixes)}")
    return named


def _take(state: State, rules: Rules, prefix: str, prefixes: Sequence[str]) -> Taken:
    tensors, unused = leave_out(merge_chunks(within(state, prefix, rules), rules), rules)
    above = re.sub(r"[^.]*\.$", "", prefix)
    used = {above + key.removeprefix(OUTSIDE) for key in tensors if key.startswith(OUTSIDE)}
    return Taken(tensors, rules, describe_taken(state.keys() - used, prefix, prefixes, unused))


def _only(prefixes: Collection[str]) -> str:
    if len(prefixes) > 1:
        raise ValueError(
            "the checkpoint has several vision towers; choose one with tower=, or a copy with part=: "
            + _names(prefixes)
        )
    return next(iter(prefixes))


def _none(anchors: Iterable[str], keys: Iterable[str]) -> ConversionError:
    wanted, some = " or ".join(sorted(set(anchors))), ", ".join(SHORT.repr(key) for key in islice(keys, 3))
    return ConversionError(
        f"the checkpoint does not fit:\n  {wanted}: missing under every prefix; the file has {some or 'nothing'}"
    )


def name_part(parts: Sequence[Part], tower: str | None) -> Part:
    """Return the settings of the only tower, or of the one that `tower` names, without looking at the weights."""
    named = [part for part in parts if tower in (None, part.path)]
    if len(named) != 1:
        names = ", ".join(repr(part.path) for part in parts)
        raise ValueError(f"config.json describes several vision towers; choose one with tower=: {names}")
    return named[0]


def _names(prefixes: Iterable[str]) -> str:
    return ", ".join(sorted({repr(prefix.rstrip(".")) for prefix in prefixes}))


def _fits(part: Part, prefix: str, state: State) -> bool:
    """Return whether a prefix has the blocks and the patch embedding that the settings describe."""
    config = part.model_type.read(part.settings)
    kernels = [state[prefix + anchor] for anchor in _anchors(part.rules) if prefix + anchor in state]
    if isinstance(config, TimmConfig):
        arguments = dict(config.arguments)
        width = arguments["dims"][0] if "dims" in arguments else arguments["embed_dim"]
        return all(len(kernel) == width for kernel in kernels)
    return count_blocks(state, prefix, part.rules) == config.depth and all(len(k) == config.dim for k in kernels)


def count_blocks(keys: Iterable[str], prefix: str, rules: Rules) -> int:
    """Return the number of blocks under a prefix."""
    inner = (key.removeprefix(prefix) for key in keys if key.startswith(prefix))
    return len({block for _, block in _blocks(inner, rules)})


def _blocks(keys: Iterable[str], rules: Rules) -> Iterator[tuple[str, str]]:
    """Yield each key of a block with the block's number."""
    filling = [rule for rule in rules if any(target.startswith("blocks.{i}.") for target in rule.targets)]
    blocks = Templates((source, (0, 0)) for rule in filling for source in rule.sources if "{i}" in source)
    yield from ((key, block) for key in keys for _, block in blocks.match(key))


def find_prefixes(keys: Iterable[str], rules: Rules) -> list[str]:
    """Return every prefix that stands in front of the patch embedding's key. It is empty, or ends with a dot."""
    anchors = _anchors(rules)
    found = (key.removesuffix(anchor) for key in keys for anchor in anchors if key.endswith(anchor))
    return sorted({prefix for prefix in found if not prefix or prefix.endswith(".")})


def _anchors(rules: Rules) -> set[str]:
    """Return the keys of the patch embedding; of a network without one, a key that no other network has."""
    named = {source for rule in rules if PATCHES & set(rule.targets) for source in rule.sources}
    others = (
        source
        for rule in rules
        if rule.targets and not rule.targets[0].startswith(HEADS)
        for source in rule.sources
        if not source.startswith(OUTSIDE)
    )
    return named or {max(others, key=len, default="")}


def within(state: State, prefix: str, rules: Rules) -> dict[str, Tensor]:
    """Return the tensors of a tower under keys relative to it, and those beside it that the rules name. No other tensor
    is read."""
    tower = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    if prefix:
        above = re.sub(r"[^.]*\.$", "", prefix)
        sources = (source for rule in rules for source in rule.sources if source.startswith(OUTSIDE))
        named = Templates((source.removeprefix(OUTSIDE), (0, 0)) for source in sources)
        for key in state:
            beside = key.removeprefix(above)
            if key.startswith(above) and not key.startswith(prefix) and any(named.match(beside)):
                tower[OUTSIDE + beside] = state[key]
    return tower
