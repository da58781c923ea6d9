"""Text towers of transformers within open_clip's models: RoBERTa, XLM-RoBERTa and BERT (open_clip, hf_model.py)."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from vitbackbone.checkpoints.huggingface.text import BertText, bert_fields
from vitbackbone.files import SHORT, Record, check_record, read_json
from vitbackbone.model import TextConfig

CONFIG = "config.json"
FindConfig = Callable[[str], Path | None]  # the `config.json` of a repository, or None
FIRST = {"bert": 0, "roberta": 2, "xlm-roberta": 2}  # the position of a text's first token in the table
LAYOUTS = {"bert": "open_clip bert", "roberta": "open_clip roberta", "xlm-roberta": "open_clip roberta"}


class BertTower(Record):
    """The settings of `text_cfg` that belong to a text tower of transformers."""

    hf_model_name: Annotated[str, Field(min_length=1, max_length=1000)]
    hf_proj_type: Literal["linear", "mlp"] | None = "mlp"
    hf_pooler_type: Literal["mean_pooler", "cls_pooler", "cls_last_hidden_state_pooler"] | None = "mean_pooler"


class BertConfig(BertText):
    """`config.json` of a BERT or a RoBERTa, with the defaults of transformers."""

    model_type: Literal["bert", "roberta", "xlm-roberta"] = "bert"
    pad_token_id: Annotated[int, Field(ge=0)] | None = None
    position_embedding_type: Literal["absolute"] = "absolute"
    is_decoder: Literal[False] = False


_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_ROBERTA = {"model_type": "roberta", "vocab_size": 50265, "max_position_embeddings": 514, "layer_norm_eps": 1e-5}
_XLM = {**_ROBERTA, "model_type": "xlm-roberta", "vocab_size": 250002}
# The networks of open_clip's list, whose repositories need no network then
KNOWN: dict[str, dict[str, Any]] = {
    "roberta-base": _ROBERTA,
    "roberta-large": {**_ROBERTA, **_LARGE},
    "xlm-roberta-base": _XLM,
    "xlm-roberta-large": {**_XLM, **_LARGE},
}


def read_bert_tower(
    text_cfg: dict[str, Any], file: Path, width: int, bias: bool, find: FindConfig
) -> tuple[TextConfig, str]:
    """Return the configuration of a text tower of transformers, and its key layout.

    `file`: `open_clip_config.json`, for errors. `width`: the width of the vectors. `bias`: whether the logits have one.
    `find`: finds the `config.json` of a repository or directory that is not in `KNOWN`.
    Raises `ValueError` on another network, or settings that are not known.
    """
    tower = check_record(text_cfg, BertTower, str(file), "model_cfg.text_cfg")
    settings = _settings(tower.hf_model_name, file, find)
    first, kind = FIRST[settings.model_type], tower.hf_proj_type
    if settings.pad_token_id not in (None, first // 2):
        raise ValueError(f"{file}: {tower.hf_model_name} has pad_token_id={settings.pad_token_id}; want {first // 2}")
    if kind is None and width != settings.hidden_size:
        raise ValueError(
            f"{file} has text_cfg.hf_proj_type=null with vectors of {width} numbers and a text tower of width "
            f"{settings.hidden_size}; want 'linear' or 'mlp'"
        )
    by_token = tower.hf_pooler_type is not None and tower.hf_pooler_type.startswith("cls")
    config = TextConfig(
        **bert_fields(settings),
        length=settings.max_position_embeddings - first,
        final_norm=False,
        pool="first" if by_token else "mean",
        pooler=tower.hf_pooler_type == "cls_pooler",
        projection_hidden=(settings.hidden_size + width) // 2 if kind == "mlp" else 0,
        projection_dim=0 if kind is None else width,
        logit_bias=bias,
    )
    return config, LAYOUTS[settings.model_type]


def _settings(name: str, file: Path, find: FindConfig) -> BertConfig:
    """Return the settings of the network that `text_cfg.hf_model_name` names."""
    known = KNOWN.get(name.removeprefix("FacebookAI/"))
    if known is not None:
        return BertConfig.model_validate(known)
    found = find(name)
    if found is None:
        raise ValueError(f"{file} has text_cfg.hf_model_name={SHORT.repr(name)}, which has no {CONFIG}")
    saved = read_json(found, dict)
    if saved.get("model_type") not in FIRST:
        raise ValueError(
            f"{file} has text_cfg.hf_model_name={SHORT.repr(name)}, a {SHORT.repr(saved.get('model_type'))}, which is "
            f"not known here; want one of {', '.join(FIRST)}"
        )
    return check_record({key: value for key, value in saved.items() if value is not None}, BertConfig, str(found))
