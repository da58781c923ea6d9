"""C-RADIO (NVIDIA): several CLS tokens, and a large table of positions that is cropped from a square.

There are two kinds of `config.json`: transformers' own, and the authors' (NVlabs/RADIO, radio/hf_model.py), which holds
the arguments of their training.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from vitbackbone.checkpoints.huggingface.fields import Json, NotNative
from vitbackbone.checkpoints.huggingface.records import Epsilon, Network, Ratio, Side, Tokens, Width, read_settings
from vitbackbone.checkpoints.huggingface.shared import shared_fields
from vitbackbone.files import SHORT, Record
from vitbackbone.images import Preprocess
from vitbackbone.model import Resampling, ViTConfig

RADIO_RESAMPLING = Resampling("bilinear", fit="square")
# The network normalises by itself; see `formats.radio`
RADIO_EVAL = Preprocess((512, 512), 1.0, "squash", "bicubic", (0, 0, 0), (1, 1, 1), crop_rounding="down")


class Radio(Network):
    """C-RADIO. The mean and std of its input are read from the weights."""

    hidden_size: Width = 1280
    num_hidden_layers: Annotated[int, Field(ge=1, le=1000)] = 32
    num_attention_heads: Annotated[int, Field(ge=1, le=1000)] = 16
    layer_norm_eps: Epsilon = 1e-6
    mlp_ratio: Ratio = 4.0
    use_swiglu_ffn: bool = False
    max_img_size: Side = 2048
    num_cls_tokens: Annotated[int, Field(ge=1, le=1000)] = 3
    num_registers: Tokens = 7
    summary_idxs: tuple[Annotated[int, Field(ge=0, le=1000)], ...] = (0, 1)
    final_norm: bool = False  # transformers has none


class Teacher(Record):
    """A teacher of C-RADIO. Teachers of one name share a CLS token."""

    name: str
    use_summary: bool = True


class Arguments(Record):
    """The arguments of the authors' training that shape the network."""

    model: str
    teachers: Annotated[tuple[Teacher, ...], Field(min_length=1, max_length=1000)]
    cpe_max_size: Side
    cls_token_per_teacher: bool = True
    register_multiple: Tokens | None = None
    cpe_num_registers: Tokens | None = None
    model_norm: bool = False
    in_chans: Annotated[int, Field(ge=1, le=1000)] | None = None
    model_kwargs: dict[str, Any] = Field(default_factory=dict)


class Authors(Record):
    """The authors' `config.json`."""

    args: Arguments
    patch_size: Annotated[int, Field(ge=1, le=1 << 14)]
    feature_normalizer_config: Any = None


AUTHORS = {"args", "patch_size"}
#    timm's and the authors' names: width, depth, heads, width of the MLP (timm; NVlabs/RADIO, extra_timm_models.py)
SIZES: dict[str, tuple[int, int, int, int]] = {
    "vit_tiny_patch14_224": (192, 12, 3, 768),
    "vit_small_patch14_224": (384, 12, 6, 1536),
    "vit_small_patch16_224": (384, 12, 6, 1536),
    "vit_base_patch14_224": (768, 12, 12, 3072),
    "vit_base_patch16_224": (768, 12, 12, 3072),
    "vit_base_patch16_v2_224": (768, 12, 12, 3072),
    "vit_large_patch14_224": (1024, 24, 16, 4096),
    "vit_large_patch16_224": (1024, 24, 16, 4096),
    "vit_large_patch16_v2_224": (1024, 24, 16, 4096),
    "vit_so400m_patch16_224": (1152, 27, 16, 4304),
    "vit_so400m_v2_patch16_224": (1152, 27, 16, 4320),
    "vit_huge_patch14_224": (1280, 32, 16, 5120),
    "vit_huge_patch16_224": (1280, 32, 16, 5120),
    "vit_giant_patch16_224": (1536, 40, 24, 6144),
    "vit_bigG_patch14_224": (1664, 48, 16, 6656),
}
# Arguments of timm's constructor under the names that they have in `Radio`
KWARGS = {"embed_dim": "hidden_size", "depth": "num_hidden_layers", "num_heads": "num_attention_heads"}


def is_authors(config: Json) -> bool:
    """Return whether a `config.json` is the authors' own. It has no settings of transformers, and may have no type."""
    own = config.keys() >= AUTHORS and isinstance(config["args"], Mapping) and "teachers" in config["args"]
    return own and "hidden_size" not in config


def _from_authors(config: Json) -> dict[str, Any]:
    """Return the authors' settings under transformers' names."""
    settings = read_settings(config, Authors)
    arguments = settings.args
    if arguments.model not in SIZES:
        raise ValueError(f"config.json has args.model={SHORT.repr(arguments.model)}; want one of {', '.join(SIZES)}")
    if settings.feature_normalizer_config is not None:
        raise ValueError("config.json has feature_normalizer_config; want a C-RADIO without normalised features")
    own = arguments.model_kwargs
    if unknown := sorted(own.keys() - KWARGS.keys() - {"mlp_ratio", "weight_init", "init_values"}):
        raise ValueError(f"config.json has args.model_kwargs.{unknown[0]}; want one of {', '.join(KWARGS)}, mlp_ratio")
    width, depth, heads, mlp = SIZES[arguments.model]
    found = {"hidden_size": width, "num_hidden_layers": depth, "num_attention_heads": heads, "mlp_ratio": mlp / width}
    found |= {KWARGS.get(key, key): value for key, value in own.items() if key in {*KWARGS, "mlp_ratio"}}
    tokens = len({teacher.name for teacher in arguments.teachers}) if arguments.cls_token_per_teacher else 1
    multiple = arguments.register_multiple
    registers = arguments.cpe_num_registers or (multiple - tokens % multiple if multiple else 0)
    summary = [i for i, teacher in enumerate(arguments.teachers) if teacher.use_summary] if tokens > 1 else [0]
    return {
        **found,
        "patch_size": settings.patch_size,
        "max_img_size": round(arguments.cpe_max_size / settings.patch_size) * settings.patch_size,
        "num_channels": arguments.in_chans or 3,
        "num_cls_tokens": tokens,
        "num_registers": registers,
        "summary_idxs": summary,
        "final_norm": arguments.model_norm,
    }


def read_radio(config: Json) -> ViTConfig:
    """Return the configuration of a `radio`. Raises `ValueError` on a summary of tokens that are not CLS tokens."""
    settings = read_settings(_from_authors(config) if is_authors(config) else config, Radio)
    if not settings.summary_idxs or max(settings.summary_idxs) >= settings.num_cls_tokens:
        raise ValueError(
            f"config.json has summary_idxs={list(settings.summary_idxs)} with num_cls_tokens="
            f"{settings.num_cls_tokens}; want indices of CLS tokens"
        )
    if settings.use_swiglu_ffn:
        raise NotNative("config.json has use_swiglu_ffn=True; no C-RADIO has it, and only False is supported")
    side = settings.max_img_size // settings.patch_size[0]
    return ViTConfig(
        **{
            **shared_fields(settings),
            "mlp_dim": int(settings.hidden_size * settings.mlp_ratio),
            "resampling": RADIO_RESAMPLING,
        },
        position_grid=(side, side),
        num_registers=settings.num_cls_tokens + settings.num_registers - 1,
        final_norm=settings.final_norm,
        pool="tokens",
        pool_tokens=settings.summary_idxs,
    )
