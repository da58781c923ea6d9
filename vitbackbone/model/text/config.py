"""The configuration of a text transformer."""

import math
from dataclasses import dataclass
from typing import Literal

from vitbackbone.model.config import BranchNorm, MlpKind, NormKind, ViTConfig, check_kinds

TextPosition = Literal["learned", "sinusoidal"]
TextPool = Literal["eos", "argmax", "last", "first", "mean"]
Scale = Literal["exp", "inverse", "none"]


@dataclass(frozen=True)
class TextConfig:
    """The configuration of a `TextTransformer`. The defaults are the text tower of CLIP ViT-B/32 (Radford et al. 2021).

    Raises `ValueError` on unknown values, and on values that contradict each other.
    """

    vocab_size: int = 49408
    length: int = 77  # the most tokens of a text
    dim: int = 512
    depth: int = 12
    num_heads: int = 8
    mlp_dim: int = 2048
    mlp: MlpKind = "quick_gelu"
    qkv_bias: bool = True  # whether queries, keys and values have a bias
    proj_bias: bool = True  # whether the projection after attention has a bias
    mlp_bias: bool = True  # whether the linear layers of the MLP have biases
    layer_scale: bool = False  # whether residual branches have a learned factor per channel
    norm: NormKind = "layer"
    norm_eps: float = 1e-5
    branch_norm: BranchNorm = "before"  # norms of a block; see `ViTConfig`
    embed_norm: bool = False  # whether a norm precedes the first block (BERT)
    final_norm: bool = True  # whether a norm follows the last block
    causal: bool = True  # whether a token attends to no later token
    # Whether a learned token follows the padding, and padding is left out one token late (CoCa)
    cls: bool = False
    pad_id: int = 0  # cls=True: the token that padding consists of
    mask_padding: bool = False  # whether padding is left out of attention and of the mean
    position: TextPosition = "learned"
    scale_tokens: bool = False  # whether the vectors of tokens are multiplied by the square root of their width
    # The token that becomes the text's vector: the first `eos_id`, the first token with the highest id, the last, the
    # first; or the mean of the tokens.
    pool: TextPool = "eos"
    eos_id: int = 49407
    pooler: bool = False  # whether a linear layer with tanh follows pooling (BERT)
    projection_hidden: int = 0  # width of a hidden layer of the projection, with GELU after it; 0: none
    projection_dim: int = 512  # width of a linear layer after pooling; 0: none
    projection_bias: bool = False
    # How the learned number scales cosines: its exponential, its inverse (a temperature), or there is none.
    scale: Scale = "exp"
    largest_scale: float = math.inf  # the scale is clamped to [1, this] if it is finite (AIMv2)
    logit_bias: bool = False  # whether a learned bias is added; such models were trained with a sigmoid loss (SigLIP)

    def __post_init__(self) -> None:
        def wrong(text: str) -> ValueError:
            return ValueError(f"TextConfig: {text}")

        kinds = {"mlp": MlpKind, "position": TextPosition, "pool": TextPool, "scale": Scale, "branch_norm": BranchNorm}
        check_kinds(self, kinds)
        for name in ("vocab_size", "length"):
            if getattr(self, name) < 1:
                raise wrong(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.projection_dim < 0:
            raise wrong(f"projection_dim must be 0 or more, got {self.projection_dim}")
        if (self.projection_bias or self.projection_hidden) and not self.projection_dim:
            raise wrong("projection_bias and projection_hidden need projection_dim")
        if self.projection_hidden < 0:
            raise wrong(f"projection_hidden must be 0 or more, got {self.projection_hidden}")
        if self.position == "sinusoidal" and (self.dim % 2 or self.dim < 4):
            raise wrong(f"position='sinusoidal' needs an even dim of at least 4, got {self.dim}")
        if self.pool == "eos" and not 0 <= self.eos_id < self.vocab_size:
            raise wrong(f"pool='eos' needs eos_id below vocab_size={self.vocab_size}, got {self.eos_id}")
        if self.cls and (self.pool != "last" or self.mask_padding or self.position != "learned"):
            raise wrong("cls=True needs pool='last', position='learned' and mask_padding=False")
        if self.logit_bias and self.scale == "none":
            raise wrong("logit_bias=True needs a scale")
        _ = self.blocks

    @property
    def out_dim(self) -> int:
        """The width of a text's vector."""
        return self.projection_dim or self.dim

    @property
    def blocks(self) -> ViTConfig:
        """The settings of the blocks, which are the blocks of a `ViT`. Raises `ValueError` as `ViTConfig` does."""
        return ViTConfig(
            dim=self.dim,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            mlp=self.mlp,
            qkv_bias="qkv" if self.qkv_bias else "none",
            proj_bias=self.proj_bias,
            mlp_bias=self.mlp_bias,
            layer_scale=self.layer_scale,
            norm=self.norm,
            norm_eps=self.norm_eps,
            branch_norm=self.branch_norm,
            position="none",
            cls=False,
            pool="mean",
        )
