"""Reading `open_clip_config.json`, the configuration of the models that open_clip writes to the Hub."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from vitbackbone.checkpoints.huggingface import LARGEST, Depth, Epsilon, Heads, Length, Vocabulary, Width
from vitbackbone.checkpoints.text.open_clip_bert import FindConfig, read_bert_tower
from vitbackbone.files import SHORT, Record, check_record, read_json
from vitbackbone.model import Cleaning, MlpKind, TextConfig

CONFIG = "open_clip_config.json"
WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


class NormOptions(Record, extra="forbid"):
    eps: Epsilon = 1e-5


class ActivationOptions(Record, extra="forbid"):
    approximate: Literal["none", "tanh"] = "none"


class TokenizerOptions(Record, extra="forbid"):
    """The cleaning of a text. The default depends on the tokenizer."""

    clean: Literal["canonicalize", "lower", "whitespace"] | None = None
    strip_sep_token: bool = False


class TextTowerRecord(Record):
    """`text_cfg`, with the defaults of open_clip's `CLIPTextCfg`."""

    context_length: Length = 77
    vocab_size: Vocabulary = 49408
    hf_tokenizer_name: str | None = None
    tokenizer_kwargs: TokenizerOptions = Field(default_factory=TokenizerOptions)
    width: Width = 512
    heads: Heads = 8
    layers: Depth = 12
    mlp_ratio: Annotated[float, Field(gt=0, le=100)] = 4.0
    ls_init_value: float | None = None
    pad_id: int = 0
    eos_id: int = 2
    no_causal_mask: bool = False
    embed_cls: bool = False
    pool_type: Literal["argmax", "eos", "first", "last"] = "argmax"
    proj_bias: bool = False
    proj_type: Literal["linear", "none"] = "linear"
    act_kwargs: ActivationOptions | None = None
    norm_kwargs: NormOptions | None = None

    @model_validator(mode="after")
    def _fits(self) -> "TextTowerRecord":
        if self.width % self.heads:
            raise ValueError(f"width={self.width}, which heads={self.heads} does not divide")
        count = self.layers * self.width**2 * (4 + 2 * self.mlp_ratio) + self.vocab_size * self.width
        if count > LARGEST:
            raise ValueError(
                f"layers={self.layers}, width={self.width} and vocab_size={self.vocab_size}: {count:.0e} parameters"
            )
        return self


class _Model(Record):
    embed_dim: Width
    quick_gelu: bool = False
    custom_text: bool = False
    init_logit_bias: float | None = None
    text_cfg: dict[str, Any]
    vision_cfg: dict[str, Any]
    multimodal_cfg: dict[str, Any] | None = None


class OpenClip(Record):
    """`open_clip_config.json`."""

    model_cfg: _Model


# Settings of `text_cfg` that build another network than `TextTransformer`. All are off in the models of open_clip's
# list
UNKNOWN = (
    "final_ln_after_pool",
    "tokenizer_mode",
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
)


@dataclass(frozen=True)
class OpenClipText:
    """The text tower of an `open_clip_config.json`."""

    config: TextConfig
    layout: str  # the key of formats.FORMATS
    cleaning: Cleaning
    tokenizer: str | None  # the repository of a tokenizer of transformers; None is CLIP's
    strip_sep_token: bool
    length: int  # the most tokens of a text


def read_open_clip_text(file: Path, find_config: FindConfig) -> OpenClipText:
    """Return the text tower. Raises `ValueError` that names the file, and the key of a setting that is not known.

    `find_config`: see `read_bert_tower`.
    """
    model = read_json(file, OpenClip).model_cfg
    for name in UNKNOWN:
        if model.text_cfg.get(name):
            value = SHORT.repr(model.text_cfg[name])
            raise ValueError(f"{file} has text_cfg.{name}={value}, a text tower that is not known here")
    given = {key: value for key, value in model.text_cfg.items() if value is not None}
    settings = check_record(given, TextTowerRecord, str(file), "model_cfg.text_cfg")
    causal, bert = not settings.no_causal_mask, model.text_cfg.get("hf_model_name")
    tokenizer = settings.hf_tokenizer_name or bert
    plain: Cleaning = "whitespace" if tokenizer else "lower"
    cleaning, strip = settings.tokenizer_kwargs.clean or plain, settings.tokenizer_kwargs.strip_sep_token
    if bert:
        bias = model.init_logit_bias is not None
        config, layout = read_bert_tower(model.text_cfg, file, model.embed_dim, bias, find_config)
        length = min(settings.context_length, config.length)
        return OpenClipText(config, layout, cleaning, tokenizer, strip, length)
    config = TextConfig(
        vocab_size=settings.vocab_size,
        length=settings.context_length,
        dim=settings.width,
        depth=settings.layers,
        num_heads=settings.heads,
        mlp_dim=int(settings.width * settings.mlp_ratio),
        mlp=activation(model.quick_gelu, settings.act_kwargs),
        layer_scale=settings.ls_init_value is not None,
        norm_eps=settings.norm_kwargs.eps if settings.norm_kwargs else NormOptions().eps,
        causal=causal,
        cls=settings.embed_cls,
        pad_id=settings.pad_id,
        pool="last" if settings.embed_cls else settings.pool_type,
        eos_id=settings.eos_id,
        projection_dim=model.embed_dim if settings.proj_type == "linear" else 0,
        projection_bias=settings.proj_bias,
        logit_bias=model.init_logit_bias is not None,
    )
    return OpenClipText(
        config,
        "open_clip custom_text" if model.custom_text or model.multimodal_cfg is not None else "open_clip",
        cleaning,
        tokenizer,
        strip,
        config.length,
    )


def activation(quick: bool, options: ActivationOptions | None) -> MlpKind:
    """Return the activation of open_clip's own networks."""
    if quick:
        return "quick_gelu"
    return "gelu_tanh" if options is not None and options.approximate == "tanh" else "gelu"
