"""The settings that each `model_type` of transformers keeps in `config.json`, as records with checked fields.

The defaults equal transformers' configuration classes, because older files leave out default values.
Bounds are far above every published model. They keep a damaged or hostile file from building a network that no machine
can hold.
"""

from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from vitbackbone.files import Record, check_record

NAME = "config.json"
LARGEST = 10**11  # parameters of a network; ViT-22B has 2.2 * 10**10


def _as_pair(value: Any) -> Any:
    return (value, value) if isinstance(value, int) else tuple(value) if isinstance(value, list) else value


Side = Annotated[int, Field(ge=1, le=1 << 14)]
Pair = Annotated[tuple[Side, Side], BeforeValidator(_as_pair)]  # a number means both
Width = Annotated[int, Field(ge=1, le=1 << 17)]
Depth = Annotated[int, Field(ge=1, le=1000)]
Heads = Annotated[int, Field(ge=1, le=1000)]
Tokens = Annotated[int, Field(ge=0, le=1000)]
Window = Annotated[int, Field(ge=1, le=128)]
Ratio = Annotated[float, Field(gt=0, le=100)]
Epsilon = Annotated[float, Field(gt=0, le=1)]


class File(Record):
    """The settings of every `config.json`."""

    model_type: str = ""
    architectures: tuple[str, ...] = ()
    id2label: dict[str, str] = Field(default_factory=dict)


class Network(Record):
    """The settings that all model types share, with the defaults of ViT."""

    image_size: Pair = (224, 224)
    patch_size: Pair = (16, 16)
    num_channels: Annotated[int, Field(ge=1, le=1000)] = 3
    hidden_size: Width = 768
    num_hidden_layers: Depth = 12
    num_attention_heads: Heads = 12
    intermediate_size: Width = 3072
    hidden_act: str = "gelu"
    qkv_bias: bool = True
    layer_norm_eps: Epsilon = 1e-12

    @model_validator(mode="after")
    def _fits(self) -> "Network":
        patch, width, heads = self.patch_size, self.hidden_size, self.num_attention_heads
        if patch[0] != patch[1]:
            raise ValueError(f"patch_size={list(patch)}; only square patches are supported")
        if min(self.image_size) < patch[0]:
            raise ValueError(f"image_size={list(self.image_size)}, which is smaller than patch_size={patch[0]}")
        if width % heads:
            raise ValueError(f"hidden_size={width}, which num_attention_heads={heads} does not divide")
        grid = [side // patch[0] for side in self.image_size]
        per_block = width * (4 * width + 3 * max(self.intermediate_size, 4 * width))
        embedding = (grid[0] * grid[1] + self.num_channels * patch[0] ** 2) * width
        if (count := self.num_hidden_layers * per_block + embedding) > LARGEST:
            raise ValueError(
                f"num_hidden_layers={self.num_hidden_layers}, hidden_size={width}, intermediate_size="
                f"{self.intermediate_size}, image_size={list(self.image_size)} and patch_size={patch[0]}, a network of "
                f"{count:.0e} parameters"
            )
        return self


class Square(Network):
    """A network that transformers builds only for square images."""

    @model_validator(mode="after")
    def _is_square(self) -> "Square":
        if self.image_size[0] != self.image_size[1]:
            raise ValueError(f"image_size={list(self.image_size)}; transformers builds this model only for squares")
        return self


class Dinov2(Network):
    """DINOv2, with registers or not."""

    layer_norm_eps: Epsilon = 1e-6
    mlp_ratio: Ratio = 4
    use_swiglu_ffn: bool = False
    num_register_tokens: Tokens = 4  # where the model type has them


class Dinov3(Network):
    """DINOv3."""

    hidden_size: Width = 384
    num_attention_heads: Heads = 6
    intermediate_size: Width = 1536
    layer_norm_eps: Epsilon = 1e-5
    query_bias: bool = True
    key_bias: bool = False
    value_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    use_gated_mlp: bool = False
    num_register_tokens: Tokens = 0
    rope_theta: Annotated[float, Field(gt=0)] = 100.0

    @model_validator(mode="after")
    def _turns(self) -> "Dinov3":
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} and num_attention_heads={self.num_attention_heads}; rotary positions "
                "need heads of a width that 4 divides"
            )
        return self


class Mae(Network):
    """MAE."""

    @model_validator(mode="after")
    def _waves(self) -> "Mae":
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size={self.hidden_size}; sine and cosine positions need a multiple of 4")
        return self


class Beit(Network):
    """BEiT."""

    use_absolute_position_embeddings: bool = False
    use_relative_position_bias: bool = False
    use_shared_relative_position_bias: bool = False
    use_mean_pooling: bool = True
    layer_scale_init_value: Annotated[float, Field(ge=0)] = 0.1


class Clip(Square):
    """The vision tower of CLIP."""

    patch_size: Pair = (32, 32)
    hidden_act: str = "quick_gelu"
    layer_norm_eps: Epsilon = 1e-5


class Projected(Record):
    """The settings of CLIP that belong to neither tower."""

    projection_dim: Width = 512


class Siglip(Square):
    """The vision tower of SigLIP."""

    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: Epsilon = 1e-6
    vision_use_head: bool = True


class Sam(Square):
    """The image encoder of SAM."""

    image_size: Pair = (1024, 1024)
    layer_norm_eps: Epsilon = 1e-6
    mlp_ratio: Ratio = 4.0
    mlp_dim: Width | None = None
    use_abs_pos: bool = True
    use_rel_pos: bool = True
    window_size: Annotated[int, Field(ge=0, le=1 << 14)] = 14
    global_attn_indexes: tuple[Annotated[int, Field(ge=0)], ...] = (2, 5, 8, 11)
    output_channels: Width = 256

    @model_validator(mode="after")
    def _blocks(self) -> "Sam":
        if any(index >= self.num_hidden_layers for index in self.global_attn_indexes):
            raise ValueError(
                f"global_attn_indexes={list(self.global_attn_indexes)}, beyond num_hidden_layers="
                f"{self.num_hidden_layers}"
            )
        if self.global_attn_indexes and not self.window_size:
            raise ValueError(f"window_size=0 with global_attn_indexes={list(self.global_attn_indexes)}")
        return self


class Swin(Record):
    """Swin, and Swin V2 with its `pretrained_window_sizes`."""

    image_size: Pair = (224, 224)
    patch_size: Pair = (4, 4)
    embed_dim: Annotated[int, Field(ge=1, le=1 << 12)] = 96
    depths: Annotated[tuple[Depth, ...], Field(min_length=1, max_length=4)] = (2, 2, 6, 2)
    num_heads: tuple[Heads, ...] = (3, 6, 12, 24)
    window_size: Window = 7
    pretrained_window_sizes: tuple[Annotated[int, Field(ge=0, le=128)], ...] = (0, 0, 0, 0)
    mlp_ratio: Ratio = 4.0
    qkv_bias: bool = True

    @model_validator(mode="after")
    def _fits(self) -> "Swin":
        if self.patch_size[0] != self.patch_size[1]:
            raise ValueError(f"patch_size={list(self.patch_size)}; only square patches are supported")
        if min(self.image_size) < self.patch_size[0]:
            raise ValueError(
                f"image_size={list(self.image_size)}, which is smaller than patch_size={self.patch_size[0]}"
            )
        stages = len(self.depths)
        for key in ("num_heads", "pretrained_window_sizes"):
            if len(getattr(self, key)) < stages:
                raise ValueError(f"{key}={list(getattr(self, key))} for the {stages} stages of depths")
        for stage, heads in enumerate(self.num_heads[:stages]):
            if self.embed_dim * 2**stage % heads:
                raise ValueError(
                    f"embed_dim={self.embed_dim} and num_heads={list(self.num_heads)}: the heads of stage {stage} do "
                    f"not divide its width, {self.embed_dim * 2**stage}"
                )
        return self


Read = TypeVar("Read", bound=Record)


def read_settings(config: Any, schema: type[Read], under: str = "") -> Read:
    """Check the settings of a `config.json`, or of the part under its key `under`. Null means the default, as for
    transformers. Raises `ValueError` that names every wrong key."""
    if isinstance(config, Mapping):
        config = {key: value for key, value in config.items() if value is not None}
    return check_record(config, schema, NAME, under)


def read_tower(config: Mapping[str, Any], schema: type[Read]) -> Read:
    """Check the settings of a vision tower, which are under `vision_config` or at the top level."""
    tower = config.get("vision_config")
    return read_settings(config, schema) if tower is None else read_settings(tower, schema, "vision_config")
