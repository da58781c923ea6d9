"""Loading the text tower of an image-text model: from a directory, the Hub, or a file."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vitbackbone.checkpoints import dinotxt, open_clip
from vitbackbone.checkpoints.formats.text import TEXT
from vitbackbone.checkpoints.hub import WeightsUnavailable, download_if_there
from vitbackbone.checkpoints.huggingface import (
    CLEANING,
    LEFT,
    LOWERED,
    PAD_TOKENS,
    TEXT_TYPES,
    read_temperature,
    read_text,
    text_type,
)
from vitbackbone.checkpoints.lazy import Renamed
from vitbackbone.checkpoints.rules import ConversionError, Rules, State, convert
from vitbackbone.checkpoints.shards import read_directory
from vitbackbone.checkpoints.tensor_files import read_weights
from vitbackbone.checkpoints.text.radio import find_teacher
from vitbackbone.checkpoints.text.tokenizer_files import (
    ALONE,
    Find,
    cleaned_before,
    lowered,
    read_tokenizer,
    read_tokenizer_settings,
)
from vitbackbone.checkpoints.trainers import prefer, unwrap
from vitbackbone.checkpoints.zoo import ADAPTED, OPENAI_TEXT, TEXT_REPOSITORIES, ZOO
from vitbackbone.contract import float32_default
from vitbackbone.files import did_you_mean, read_json
from vitbackbone.model import Cleaning, Padding, TextConfig, TextTokenizer, TextTower, TextTransformer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Place = str | PathLike[str]
CONFIG = "config.json"


def load_text(
    name: Place, weights: Place | None = None, *, tokenizer: Place | None = None, adaptor: str | None = None
) -> TextTower:
    """Load the text tower that belongs to an image tower, in eval mode, float32, on the CPU.

    `text = load_text(name)` takes texts: `text(["a photo of a cat"])` returns (B, P), in the space of
    `load_backbone(name)(images).pooled`.

    `name`: a directory as transformers or open_clip writes it, `"hf:OWNER/REPOSITORY"`, or the name of a CLIP, SigLIP
    or dino.txt of `list_backbones()`. `@REVISION` after a name of the Hub pins a commit or tag.
    `weights`: a file in the format of that name, or `"random"` for an untrained model. A trainer's file may have the
    model behind a prefix.
    `tokenizer`: a directory with another tokenizer, or one of its files: `tokenizer.json`, open_clip's
    `bpe_simple_vocab_16e6.txt.gz`, or a sentencepiece model.
    `adaptor`: the name of a teacher of the C-RADIO `name`, such as `"siglip2-g"`: the text tower comes from the
    teacher's repository, and belongs to `load_backbone(name, adaptor=adaptor)`. `weights` and `tokenizer` are of that
    repository.

    Texts are cleaned, cut and padded as upstream does. A batch of CLIP is padded to its longest text, one of SigLIP or
    open_clip to the full length. SigLIP attends to padding, unless `model_input_names` of `tokenizer_config.json`
    lists `attention_mask`.

    Raises `ValueError` on an unknown name, a model without a text tower, or a malformed file, and `OSError` if a file
    cannot be read. Raises `WeightsUnavailable` if a file cannot be downloaded, `ConversionError` if the weights do not
    fill the tower exactly, and `ImportError` without the extra `text`.
    """
    with torch.inference_mode(False), float32_default(), _without_network(str(name)):
        if adaptor is not None:
            return _of_teacher(str(name), adaptor, weights, tokenizer)
        source = _source(str(name))
        own = _given(Path(tokenizer)) if tokenizer is not None else None
        config, layout, tokens, extra = _read(source, own)
        if weights == "random":
            return TextTower(TextTransformer(config), tokens, str(name)).eval()
        state = read_weights(weights) if weights is not None else source.weights()
        try:
            given = unwrap(state)
            needed = _needed(given, TEXT[layout])
            if layout == dinotxt.LAYOUT:
                config, extra = dinotxt.settle_text(config, given, needed)
            transformer = _fill(config, layout, {**extra, **needed})
        except ConversionError as error:
            raise ConversionError(f"{source.name}: {error}") from error
        return TextTower(transformer, tokens, str(name)).eval()


def _of_teacher(name: str, adaptor: str, weights: Place | None, tokenizer: Place | None) -> TextTower:
    """Return the text tower of a teacher of C-RADIO."""
    file = _source(name).find(CONFIG)
    if file is None:
        raise ValueError(f"adaptor={adaptor!r}: {name} has no {CONFIG}; want a C-RADIO of the authors")
    repository, cleaning = find_teacher(file, adaptor)
    text = load_text(f"hf:{repository}", weights, tokenizer=tokenizer)
    text.tokenizer.cleaning = cleaning or text.tokenizer.cleaning
    return text


@contextmanager
def _without_network(name: str) -> Iterator[None]:
    """Say how to load a text tower without a network."""
    try:
        yield
    except WeightsUnavailable as error:
        raise WeightsUnavailable(
            f"no text tower for {name!r}: {error.__cause__ or error}\nWithout a network: load_text(DIR) takes a "
            "directory downloaded by hand, with its configuration, its weights and its tokenizer"
        ) from error


def _needed(state: State, rules: Rules) -> dict[str, Tensor]:
    """Return the tensors that are not dropped with a whole part, such as the image tower. No other one is read.

    A trainer's file may have the model behind a prefix; of several copies, the averaged one is taken.
    """
    anchors = [source for rule in rules if rule.targets == ("token_embed.weight",) for source in rule.sources]
    prefixes = {
        key.removesuffix(anchor) for key in state for anchor in anchors if key == anchor or key.endswith(f".{anchor}")
    }
    if prefixes and "" not in prefixes:
        prefix = min(prefer(sorted(prefixes)), key=len)
        state = Renamed(state, {key.removeprefix(prefix): key for key in state if key.startswith(prefix)})
    ends = "{rest}"
    parts = tuple(
        source.removesuffix(ends)
        for rule in rules
        for source in rule.sources
        if not rule.targets and source.endswith(ends)
    )
    return {key: state[key] for key in state if not (parts and key.startswith(parts))}


def _fill(config: TextConfig, layout: str, state: Mapping[str, Tensor]) -> TextTransformer:
    with torch.device("meta"):
        transformer = TextTransformer(config)
    transformer.load_state_dict(convert(state, TEXT[layout], transformer.state_dict()), assign=True)
    return transformer


# ---- sources ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """The place of a checkpoint's files."""

    name: str
    find: Find
    weights: Callable[[], State]


def _source(name: str) -> _Source:
    wanted = "a directory, 'hf:OWNER/REPOSITORY', or the name of a CLIP or SigLIP"
    if not name:
        raise ValueError(f"the name is empty; want {wanted}")
    if Path(name).is_dir():
        return _files(name, lambda file: path if os.path.lexists(path := Path(name) / file) else None)
    known, _, revision = name.partition("@")
    if known in dinotxt.TOWERS:
        return _Source(known, lambda file: None, lambda: _by_hand(known))
    repository = known.removeprefix("hf:") if known.startswith("hf:") else TEXT_REPOSITORIES.get(known)
    if repository is None and known in ZOO and ZOO[known].on_hub and not ZOO[known].format.startswith("timm"):
        repository = ZOO[known].source
    if repository is not None:
        return _files(known, lambda file: download_if_there(known, repository, file, revision or None))
    if known in OPENAI_TEXT:
        return _Source(known, lambda file: None, lambda: _by_hand(known))
    if known in ZOO or known in ADAPTED or known.startswith("timm:"):
        raise ValueError(f"{name!r} is an image tower, and no text tower is known for it; want {wanted}")
    hint = did_you_mean(known, [*TEXT_REPOSITORIES, *OPENAI_TEXT]) or "."
    raise ValueError(f"unknown text tower {name!r}{hint} Want {wanted}")


def _files(name: str, find: Find) -> _Source:
    def weights() -> State:
        found = next(filter(None, map(find, open_clip.WEIGHTS)), None) if _is_open_clip(find) else None
        return read_weights(found) if found else read_directory(name, find)

    return _Source(name, find, weights)


def _by_hand(name: str) -> State:
    if name in dinotxt.TOWERS:
        raise ValueError(f"the text tower of {name} is not on the Hub; give weights=PATH, the authors' dino.txt file")
    raise ValueError(f"the weights of {name} are not on the Hub; give weights=PATH, from {ZOO[name].source}")


def _given(path: Path) -> Find:
    """Return the files of a tokenizer that the caller names."""
    if path.is_dir():
        return lambda file: found if os.path.lexists(found := path / file) else None
    if not path.is_file():
        raise FileNotFoundError(f"no tokenizer at {path}")
    if path.name not in ALONE:
        raise ValueError(f"tokenizer={path}; want a directory, or a file named {' or '.join(ALONE)}")
    return lambda file: path if file == path.name else None


def _is_open_clip(find: Find) -> bool:
    """Return whether the files are open_clip's. timm's repositories have a `config.json` of timm beside them."""
    config = find(CONFIG)
    if config is not None and read_json(config, dict).get("model_type") in TEXT_TYPES:
        return False
    return find(open_clip.CONFIG) is not None


# ---- configurations and tokenizers --------------------------------------------------------------------------------

_Read = tuple[TextConfig, str, TextTokenizer, dict[str, Tensor]]


def _read(source: _Source, given: Find | None) -> _Read:
    """Return the configuration, the key layout, the tokenizer, and tensors that the weights may lack."""
    if source.name in dinotxt.TOWERS:
        config = dinotxt.CONFIG
        return config, dinotxt.LAYOUT, _clip_tokenizer(config, given or source.find, source.name, "lower"), {}
    if source.name in OPENAI_TEXT:
        config = OPENAI_TEXT[source.name]
        return config, "open_clip", _clip_tokenizer(config, given or source.find, source.name, "lower"), {}
    return (_read_open_clip if _is_open_clip(source.find) else _read_transformers)(source, given)


def _read_transformers(source: _Source, given: Find | None) -> _Read:
    file = source.find(CONFIG)
    if file is None:
        raise ValueError(
            f"{source.name} has no {CONFIG} and no {open_clip.CONFIG}; want a directory of transformers or open_clip"
        )
    saved: dict[str, Any] = read_json(file, dict)
    try:
        row = text_type(saved)
        config, layout = read_text(saved)
    except ValueError as error:
        raise ValueError(f"{file}: {str(error).removeprefix(f'{CONFIG} ')}") from error
    if layout not in TEXT:
        raise ValueError(f"{file}: the architecture {layout!r} has no text tower, or its key layout is not known here")
    find = given or source.find
    settings = read_tokenizer_settings(find)
    kind = settings.tokenizer_class or row.tokenizer
    backend = read_tokenizer(find, source.name, kind)
    masked = config.mask_padding or "attention_mask" in (settings.model_input_names or ())
    config = replace(config, mask_padding=masked)
    tokens = TextTokenizer(
        lowered(backend) if kind in LOWERED and settings.do_lower_case is not False else backend,
        _length(config, settings.model_max_length),
        _padding(backend, settings.pad_token or PAD_TOKENS.get(kind, "<pad>"), _side(settings, kind), row.whole),
        CLEANING.get(kind, "none"),
    )
    # The published weights of TIPSv2 lack the temperature, which transformers then takes from the config
    start = {"temperature": torch.tensor(read_temperature(saved))} if config.scale == "inverse" else {}
    return config, layout, tokens, start


def _read_open_clip(source: _Source, given: Find | None) -> _Read:
    file = source.find(open_clip.CONFIG)
    assert file is not None
    read = open_clip.read_open_clip_text(file, _find_config)
    find = given or source.find
    if read.tokenizer is None:
        return read.config, read.layout, _clip_tokenizer(read.config, find, source.name, read.cleaning), {}
    settings = read_tokenizer_settings(find)
    backend = read_tokenizer(find, source.name, settings.tokenizer_class or "")
    side = _side(settings, settings.tokenizer_class or "")
    tokens = TextTokenizer(
        backend,
        read.length,
        _padding(backend, settings.pad_token or "<pad>", side, True),
        read.cleaning,
        backend.token_to_id(settings.sep_token or "</s>") if read.strip_sep_token else None,
        by_id=read.config.mask_padding,
    )
    return read.config, read.layout, tokens, {}


def _find_config(name: str) -> Path | None:
    """Return the `config.json` of a directory or a repository, or None if it has none."""
    if Path(name).is_dir():
        return file if (file := Path(name) / CONFIG).is_file() else None
    return download_if_there(f"hf:{name}", name, CONFIG, None)


def _clip_tokenizer(config: TextConfig, find: Find, where: str, cleaning: Cleaning) -> TextTokenizer:
    """Return the tokenizer of OpenAI and open_clip: CLIP's words, padded to the full length with zeros."""
    backend = cleaned_before(read_tokenizer(find, where))
    return TextTokenizer(backend, config.length, Padding(0, "!", whole=True), cleaning)


def _length(config: TextConfig, longest: float | None) -> int:
    return config.length if longest is None else int(min(config.length, longest))


def _side(settings: Any, kind: str) -> Any:
    return settings.padding_side or ("left" if kind in LEFT else "right")


def _padding(backend: "Tokenizer", token: str, side: Any, whole: bool) -> Padding:
    """Return the padding. Raises `ValueError` if the vocabulary has no such token."""
    found = backend.token_to_id(token)
    if found is None:
        raise ValueError(f"the tokenizer lacks its padding token {token!r}; download it again")
    return Padding(found, token, side, whole)
