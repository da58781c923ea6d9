"""Files that trainers write: a tower behind prefixes, copies of it, wrappers inside of keys, and modules beside it.

Keys are dotted: dicts inside each other in a torch file have joined names. So the copies of a network that a trainer
keeps, such as a teacher and a student, are towers behind several prefixes.
"""

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable

from torch import Tensor

from vitbackbone.checkpoints.faults import ConversionError
from vitbackbone.checkpoints.lazy import Renamed
from vitbackbone.checkpoints.rules import OUTSIDE, Rules, State, Templates

LOG = logging.getLogger("vitbackbone")

# Wrappers of modules that may stand anywhere in a key: torch.compile, FSDP, activation checkpointing
WRAPPERS = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")
# Blocks of chunks (DINOv2's trainer), and of stages (Hiera in transformers; other libraries number all its blocks)
CHUNKED = re.compile(r"(?:blocks\.([0-9]{1,4})|encoder\.stages\.([0-9]{1,4})\.layers)\.([0-9]{1,4})\.")
# The averaged copy of a network comes first, because it is the one that authors publish and evaluate
AVERAGED = (
    "state_dict_ema",
    "model_ema",
    "ema_state_dict",
    "ema_model",
    "ema_encoder",
    "ema",
    "target_encoder",
    "teacher",
)
PARTS = ("state_dict", "model", "encoder")
# Modules and buffers that no feature depends on: heads of pretraining, decoders, tables that are computed
UNUSED = re.compile(
    r"(mask_token|heads?|fc|classifier|(lm|cls|mim|dino|ibot|projection)_head|predictor|proj(ector|ection)|decoder\w*)(\.|$)"
    r"|(.*\.)?(rope\w*|rotary\w*|inv_freq|freqs\w*|relative_position_index|relative_coords_table|attn_mask|position_ids"
    r"|num_batches_tracked)(\.|$)"
)


def unwrap(state: State) -> State:
    """Return the tensors with the names of wrapping modules taken out of their keys. Raises `ConversionError` if two
    keys become one."""
    if not any(WRAPPERS.search(key) for key in state):
        return state
    plain = {key: WRAPPERS.sub("", key) for key in state}
    twice = [key for key, count in Counter(plain.values()).items() if count > 1]
    if twice:
        raise ConversionError(f"the checkpoint does not fit:\n  {twice[0]}: twice, with a wrapper's prefix and without")
    return Renamed(state, {new: old for old, new in plain.items()})


def of_part(prefixes: Iterable[str], part: str | None) -> list[str]:
    """Return the prefixes of the part of a checkpoint that a user names: a prefix, its beginning, or a word of it."""
    if part is None:
        return list(prefixes)
    named = part.rstrip(".")
    return [p for p in prefixes if f"{p}.".startswith(f"{named}.") or named in p.split(".") or p.rstrip(".") == named]


def prefer(prefixes: Collection[str], order: Collection[str] = (*AVERAGED, *PARTS)) -> list[str]:
    """Return the prefixes of the part that is loaded by default. An averaged copy of a network comes before the trained
    one, and `state_dict` before other names."""
    rank = {prefix: _rank(prefix, list(order)) for prefix in prefixes}
    return [prefix for prefix in prefixes if rank[prefix] == min(rank.values())]


def _rank(prefix: str, order: list[str]) -> int:
    return min((order.index(word) for word in prefix.split(".") if word in order), default=len(order))


def merge_chunks(state: State, rules: Rules) -> State:
    """Return the tensors with the blocks of chunks, `blocks.c.i`, or stages, `encoder.stages.c.layers.i`, numbered
    through. DINOv2's trainer counts `i` over all chunks; others count within a chunk or stage. A network keeps such
    keys if its own stages have them, as in EfficientNet."""
    keys = {key: match for key in state if (match := CHUNKED.match(key))}
    known = _known(rules)
    if not keys or any(key.startswith("blocks.") for key in state.keys() - keys.keys()) or any(map(known, keys)):
        return state
    places = {key: (int(match[1] or match[2]), int(match[3])) for key, match in keys.items()}
    blocks = sorted(set(places.values()))
    through = len({i for _, i in blocks}) == len(blocks)
    number = {block: block[1] if through else n for n, block in enumerate(blocks)}
    names = {key: key for key in state} | {
        f"blocks.{number[places[key]]}.{key[match.end() :]}": key for key, match in keys.items()
    }
    return Renamed(state, {new: old for new, old in names.items() if new not in keys})


def leave_out(state: State, rules: Rules) -> tuple[dict[str, Tensor], list[str]]:
    """Return the tensors without those that no rule knows and no feature depends on, and the keys of the latter."""
    known = _known(rules)
    unused = [key for key in state if UNUSED.match(key) and not known(key)]
    return {key: state[key] for key in state if key not in set(unused)}, unused


def _known(rules: Rules) -> Callable[[str], bool]:
    """Return a test whether some rule reads a key."""
    templates = Templates((source, (0, 0)) for rule in rules for source in rule.sources)
    return lambda key: any(True for _ in templates.match(key))


def describe_taken(keys: Collection[str], prefix: str, prefixes: Collection[str], unused: Collection[str]) -> str:
    """Say which keys of a checkpoint were taken and which were left out; "" if it is the network alone."""
    parts = []
    if prefix:
        others = _listed(repr(p) for p in prefixes if p != prefix)
        parts.append(f"took the keys behind {prefix!r}" + (f" rather than {others}" if others else ""))
    outside = Counter(_branch(key, prefix) for key in sorted(keys) if not key.startswith(prefix))
    left = [f"{name} ({count})" for name, count in outside.items()] + [key.removeprefix(OUTSIDE) for key in unused]
    if left:
        parts.append(f"left out {_listed(left)}")
    return "; ".join(parts)


def _branch(key: str, prefix: str) -> str:
    """Return the beginning of a key up to the first word that differs from a prefix."""
    words, ours = key.split("."), prefix.split(".")
    same = next((n for n, pair in enumerate(zip(words, ours, strict=False)) if pair[0] != pair[1]), len(ours))
    return ".".join(words[: same + 1])


def _listed(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
