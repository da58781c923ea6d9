"""Converting the text part of a `config.json` to the configuration of a text transformer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any

from pydantic import Field, model_validator

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.records import LARGEST, Depth, Epsilon, File, Heads, Width, read_settings
from vitbackbone.checkpoints.huggingface.shared import gate
from vitbackbone.files import SHORT, Record
from vitbackbone.model import Cleaning, MlpKind, TextConfig

Vocabulary = Annotated[int, Field(ge=1, le=1 << 23)]
Length = Annotated[int, Field(ge=1, le=1 << 16)]

ACTIVATIONS: dict[str, MlpKind] = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


class TextNetwork(Record):
    """The settings that all text towers share, with the defaults of CLIP."""

    vocab_size: Vocabulary = 49408
    hidden_size: Width = 512
    intermediate_size: Width = 2048
    num_hidden_layers: Depth = 12
    num_attention_heads: Heads = 8
    max_position_embeddings: Length = 77
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5
    eos_token_id: int | None = 49407
    projection_dim: Width = 512
    projection_size: Width | None = None

    @model_validator(mode="after")
    def _fits(self) -> "TextNetwork":
        width, heads = self.hidden_size, self.num_attention_heads
        if width % heads:
            raise ValueError(f"hidden_size={width}, which num_attention_heads={heads} does not divide")
        per_block = width * (4 * width + 3 * self.intermediate_size)
        if (count := self.num_hidden_layers * per_block + self.vocab_size * width) > LARGEST:
            raise ValueError(
                f"num_hidden_layers={self.num_hidden_layers}, hidden_size={width}, intermediate_size="
                f"{self.intermediate_size} and vocab_size={self.vocab_size}, a network of {count:.0e} parameters"
            )
        return self


class SiglipText(TextNetwork):
    """The text tower of SigLIP."""

    vocab_size: Vocabulary = 32000
    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_attention_heads: Heads = 12
    max_position_embeddings: Length = 64
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6


class Tipsv2Text(SiglipText):
    """The text tower of TIPSv2."""

    hidden_act: str = "relu"
    layer_norm_eps: Epsilon = 1e-5
    scale_sqrt_depth: bool = True


class Aimv2Text(TextNetwork):
    """The text tower of AIMv2."""

    hidden_size: Width = 768
    num_attention_heads: Heads = 6
    hidden_act: str = "silu"
    rms_norm_eps: Epsilon = 1e-5
    qkv_bias: bool = False
    mlp_bias: bool = False


class BertText(TextNetwork):
    """The text tower of Chinese-CLIP, which is BERT."""

    vocab_size: Vocabulary = 30522
    hidden_size: Width = 768
    intermediate_size: Width = 3072
    num_attention_heads: Heads = 12
    max_position_embeddings: Length = 512
    hidden_act: str = "gelu"
    layer_norm_eps: Epsilon = 1e-12


class AltText(BertText):
    """The text tower of AltCLIP, which is XLM-R with a norm and a linear layer on its first token."""

    vocab_size: Vocabulary = 250002
    hidden_size: Width = 1024
    num_hidden_layers: Depth = 24
    num_attention_heads: Heads = 16
    intermediate_size: Width = 4096
    max_position_embeddings: Annotated[int, Field(ge=3, le=1 << 16)] = 514
    layer_norm_eps: Epsilon = 1e-5
    project_dim: Width = 768


class Whole(Record):
    """The settings that belong to neither tower."""

    projection_dim: Width = 512
    max_logit_scale: Annotated[float, Field(ge=1)] = 100.0
    temperature_init_value: Annotated[float, Field(gt=0)] = 0.005065968260169029


class AltWhole(Record):
    """The settings of AltCLIP that belong to neither tower."""

    projection_dim: Width = 768


def _shared(part: "Part", gated: bool = False) -> dict[str, Any]:
    """Return the fields that all towers read alike. Only a whole model has the scale of the logits."""
    settings = part.settings
    if not gated and settings.hidden_act not in ACTIVATIONS:
        raise ValueError(
            f"config.json has hidden_act={SHORT.repr(settings.hidden_act)} in the text tower; want one of "
            f"{', '.join(ACTIVATIONS)}"
        )
    return {
        "vocab_size": settings.vocab_size,
        "length": settings.max_position_embeddings,
        "dim": settings.hidden_size,
        "depth": settings.num_hidden_layers,
        "num_heads": settings.num_attention_heads,
        "mlp_dim": settings.intermediate_size,
        "mlp": gate(settings.hidden_act) if gated else ACTIVATIONS[settings.hidden_act],
        "norm_eps": settings.layer_norm_eps,
        "scale": "exp" if part.whole else "none",
    }


BERT = {"branch_norm": "sum", "embed_norm": True, "causal": False, "mask_padding": True}
LEGACY_EOS = 2  # CLIP's configs had it before 2023 for every vocabulary; the end token then has the highest id


def _clip(config: Json, part: "Part") -> TextConfig:
    legacy = part.settings.eos_token_id == LEGACY_EOS
    return _contrastive(config, part, pool="argmax" if legacy else "eos")


def _xclip(config: Json, part: "Part") -> TextConfig:
    """Return X-CLIP's tower. Its logits have no scale here, because upstream adds to each text what the video shows."""
    return replace(_contrastive(config, part, pool="argmax"), scale="none")


def _metaclip_2(config: Json, part: "Part") -> TextConfig:
    return _contrastive(config, part, pool="eos")


def _contrastive(config: Json, part: "Part", **fields: Any) -> TextConfig:
    """Return a causal tower that is read at its end token and projected (Radford et al. 2021)."""
    settings, gated = part.settings, isinstance(part.settings, Aimv2Text)
    eos = settings.eos_token_id
    if eos is None:
        raise ValueError("config.json has no eos_token_id in the text tower, which takes its vector from the end token")
    width = read_settings(config, Whole).projection_dim if part.whole else settings.projection_dim
    plain = part.architecture.endswith("TextModel")
    return TextConfig(
        **{**_shared(part, gated), **fields},
        eos_id=eos,
        projection_dim=0 if plain else width,
    )


def _aimv2(config: Json, part: "Part") -> TextConfig:
    settings = part.settings
    assert isinstance(settings, Aimv2Text)
    return _contrastive(
        config,
        part,
        pool="eos",
        qkv_bias=settings.qkv_bias,
        proj_bias=settings.qkv_bias,
        mlp_bias=settings.mlp_bias,
        norm="rms",
        norm_eps=settings.rms_norm_eps,
        largest_scale=read_settings(config, Whole).max_logit_scale,
    )


def _siglip(config: Json, part: "Part") -> TextConfig:
    return TextConfig(
        **_shared(part),
        causal=False,
        pool="last",
        projection_dim=part.settings.projection_size or part.settings.hidden_size,
        projection_bias=True,
        logit_bias=part.whole,
    )


def _bert(part: "Part", **fields: Any) -> TextConfig:
    """Return BERT, read at its first token (Devlin et al. 2019)."""
    return TextConfig(**{**_shared(part), **BERT, **fields}, pool="first")


def bert_fields(settings: "BertText") -> dict[str, Any]:
    """Return the fields of a BERT in a whole model, without its length and what reads its tokens."""
    shared = {key: value for key, value in _shared(Part(settings, "", whole=True)).items() if key != "length"}
    return {**shared, **BERT}


def _chinese_clip(config: Json, part: "Part") -> TextConfig:
    width = read_settings(config, Whole).projection_dim if part.whole else 0
    return _bert(part, final_norm=False, projection_dim=width)


def _altclip(config: Json, part: "Part") -> TextConfig:
    settings = part.settings
    assert isinstance(settings, AltText)
    width = read_settings(config, AltWhole).projection_dim if part.whole else settings.project_dim
    # the first two positions of the table belong to padding
    length = settings.max_position_embeddings - 2
    return _bert(part, length=length, projection_dim=width, projection_bias=True)


def _tipsv2(config: Json, part: "Part") -> TextConfig:
    assert isinstance(part.settings, Tipsv2Text)
    scale = {"scale": "inverse"} if part.whole else {}
    return TextConfig(
        **{**_shared(part), **scale},
        causal=False,
        mask_padding=True,
        position="sinusoidal",
        scale_tokens=part.settings.scale_sqrt_depth,
        pool="mean",
        projection_dim=0,
    )


@dataclass(frozen=True)
class Part:
    """The text part of a `config.json`: its settings, and whether the model around it has an image tower."""

    settings: TextNetwork
    architecture: str
    whole: bool


@dataclass(frozen=True)
class TextType:
    """A `model_type` of transformers with a text tower: how to read it, and how its texts become tokens.

    `tokenizer`: the class of the tokenizer, if `tokenizer_config.json` names none.
    `whole`: whether texts are padded to the full length; otherwise to the longest of a batch.
    """

    schema: type[TextNetwork]
    read: Callable[[Json, Part], TextConfig]
    tokenizer: str = "CLIPTokenizer"
    whole: bool = False


_CLIP = TextType(TextNetwork, _clip)
_XCLIP = TextType(TextNetwork, _xclip)
_METACLIP_2 = TextType(TextNetwork, _metaclip_2, "XLMRobertaTokenizer")
_SIGLIP = TextType(SiglipText, _siglip, "SiglipTokenizer", whole=True)
_SIGLIP_2 = TextType(SiglipText, _siglip, "Siglip2Tokenizer", whole=True)
_AIMV2 = TextType(Aimv2Text, _aimv2)
_TIPSV2 = TextType(Tipsv2Text, _tipsv2, "Tipsv2Tokenizer", whole=True)
_CHINESE_CLIP = TextType(BertText, _chinese_clip, "BertTokenizer")
_ALTCLIP = TextType(AltText, _altclip, "XLMRobertaTokenizer")
TEXT_TYPES: dict[str, TextType] = {
    "chinese_clip": _CHINESE_CLIP,
    "chinese_clip_text_model": _CHINESE_CLIP,
    "altclip": _ALTCLIP,
    "altclip_text_model": _ALTCLIP,
    "clip": _CLIP,
    "clip_text_model": _CLIP,
    "xclip": _XCLIP,
    "xclip_text_model": _XCLIP,
    "metaclip_2": _METACLIP_2,
    "metaclip_2_text_model": _METACLIP_2,
    "siglip": _SIGLIP,
    "siglip_text_model": _SIGLIP,
    "siglip2": _SIGLIP_2,
    "siglip2_text_model": _SIGLIP_2,
    "aimv2": _AIMV2,
    "aimv2_text_model": _AIMV2,
    "tipsv2": _TIPSV2,
    "tipsv2_text_model": _TIPSV2,
}

# What the classes of tokenizers do to a text before `tokenizer.json` does, and on which side they pad by default
CLEANING: dict[str, Cleaning] = {"SiglipTokenizer": "siglip"}
LEFT = ("Siglip2Tokenizer", "GemmaTokenizer", "GemmaTokenizerFast")
LOWERED = (*LEFT, "Tipsv2Tokenizer")  # SigLIP 2 and TIPSv2 were trained on lower case
PAD_TOKENS = {
    "CLIPTokenizer": "<|endoftext|>",
    "CLIPTokenizerFast": "<|endoftext|>",
    "SiglipTokenizer": "</s>",
    "BertTokenizer": "[PAD]",
    "BertTokenizerFast": "[PAD]",
}  # any other pads with "<pad>"


def text_type(config: Json) -> TextType:
    """Return the row of a `config.json`. Raises `ValueError` if the model has no text tower that is known here."""
    name = read_settings(config, File).model_type
    if name not in TEXT_TYPES:
        raise ValueError(
            f"config.json has model_type={SHORT.repr(name)}, a model without a text tower that is known here; want one "
            f"of {', '.join(TEXT_TYPES)}"
        )
    return TEXT_TYPES[name]


def read_text(config: Json) -> tuple[TextConfig, str]:
    """Return the configuration of the text tower, and its key layout. Raises `ValueError` that names the key."""
    row, architectures = text_type(config), read_settings(config, File).architectures
    if len(architectures) != 1:
        raise ValueError(
            f"config.json has architectures={SHORT.repr(list(architectures))}; want the one class that saved the "
            "weights"
        )
    architecture = architectures[0]
    alone = "TextModel" in architecture
    under = "" if alone else _key(config)
    settings = config if alone else config.get(under) or {}
    if not isinstance(settings, Mapping):
        raise ValueError(f"config.json has {under}={SHORT.repr(settings)}; want an object")
    part = Part(read_settings(settings, row.schema, under), architecture, whole=not alone)
    return row.read(config, part), architecture


def read_temperature(config: Json) -> float:
    """Return the temperature of the logits at the start of training."""
    return read_settings(config, Whole).temperature_init_value


def _key(config: Json) -> str:
    """Return the key of the text tower's settings. Where CLIP's old files have both, transformers reads the second."""
    return "text_config_dict" if config.get("text_config_dict") is not None else "text_config"
