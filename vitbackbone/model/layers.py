"""The block of a Vision Transformer, and its parts except attention.

Axes: `B` batch, `N` tokens, `T` tokens of a row (see `packing.py`), `Q` tokens that are returned, `D` width.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.model.attention import SelfAttention, WindowAttention
from vitbackbone.model.clipped import make_linear
from vitbackbone.model.config import ViTConfig
from vitbackbone.model.experts import ExpertMlp
from vitbackbone.model.norms import norm_or_identity, plain_norm
from vitbackbone.model.packing import Layout
from vitbackbone.model.sinks import SinkAttention


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Return x * sigmoid(1.702 x), the activation of OpenAI's CLIP (openai/CLIP, clip/model.py)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": quick_gelu,
    "relu": F.relu,
}
GATES: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": ACTIVATIONS["gelu"],
    "geglu_tanh": ACTIVATIONS["gelu_tanh"],
}


class Mlp(nn.Module):
    """An MLP of two linear layers with an activation between them."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.fc1 = make_linear(config, config.dim, [config.mlp_dim], config.mlp_bias)
        self.activation = ACTIVATIONS[config.mlp]
        self.fc2 = make_linear(config, config.mlp_dim, [config.dim], config.mlp_bias)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return self.fc2(self.activation(self.fc1(x)))


class GatedMlp(nn.Module):
    """A gated MLP: activation(gate) * value, then a linear layer (Shazeer 2020).

    `w12` computes gate and value in one product (facebookresearch/dinov2, layers/swiglu_ffn.py). EVA-02 normalises
    activation(gate) * value.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.w12 = make_linear(config, config.dim, [config.mlp_dim] * 2, config.mlp_bias)
        self.activation = GATES[config.mlp]
        self.norm = norm_or_identity(config.mlp_norm, config, config.mlp_dim)
        self.w3 = make_linear(config, config.mlp_dim, [config.dim], config.mlp_bias)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(self.norm(self.activation(gate) * value))


def mlp(config: ViTConfig) -> Mlp | GatedMlp | ExpertMlp:
    """Build the MLP of a configuration, or its experts."""
    if config.experts is not None:
        return ExpertMlp(config, config.experts, GATES[config.mlp])
    return GatedMlp(config) if config.mlp in GATES else Mlp(config)


class LayerScale(nn.Module):
    """A learned factor per channel on a residual branch (Touvron et al. 2021, CaiT)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), 1e-5))

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return x * self.gamma


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016).

    In training, each image drops the residual branch with probability `rate`. Kept branches are scaled by
    1 / (1 - rate), so that the expectation does not change.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Float[Tensor, "B T D"], lengths: Sequence[int]) -> Float[Tensor, "B T D"]:
        """Drop and scale. `lengths`: the number of tokens of each image of a row."""
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        kept = x.new_empty(len(x), len(lengths), 1).bernoulli_(keep)
        if len(lengths) > 1:
            kept = kept.repeat_interleave(torch.tensor(lengths, device=x.device), dim=1)
        return x * kept / keep

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def attention_settings(config: ViTConfig, index: int) -> ViTConfig:
    """Return the configuration of a block's attention, which differs between blocks if an image is one of `views`."""
    views, rotary = config.views, config.rotary
    if views is None or rotary is None:
        return config
    if index < views.start:
        return replace(config, rotary=None, views=None)
    turned = replace(rotary, coordinates="same") if index % 2 else rotary
    return replace(config, rotary=turned, qk_norm="head", norm_eps=views.norm_eps, views=None)


class Block(nn.Module):
    """An encoder block: attention and then an MLP, each with its own norms and residual connection.

    There is a norm before each (Vision Transformer), after each (EVA-CLIP's largest), both (Gemma 4), or after each sum
    with the residual (BERT).
    """

    def __init__(self, config: ViTConfig, index: int) -> None:
        super().__init__()

        def scale() -> nn.Module:
            return LayerScale(config.dim) if config.layer_scale else nn.Identity()

        everywhere = not config.window or index in config.global_blocks
        before, after = config.branch_norm in ("before", "both"), config.branch_norm in ("after", "both")
        plain = config.branch_norm == "plain"
        self.norm1 = plain_norm(config.dim) if plain else norm_or_identity(before, config)
        own = attention_settings(config, index)
        whole = SinkAttention if config.sinks else SelfAttention
        self.attn = whole(own, config.grid) if everywhere else WindowAttention(config)
        begins = config.views is not None and index == config.views.start
        self.camera = nn.Parameter(torch.randn(1, 1, config.dim) * 0.02) if begins else None  # it replaces CLS
        self.post1 = norm_or_identity(after, config)
        self.ls1 = scale()
        self.sum1 = norm_or_identity(config.branch_norm == "sum", config)
        self.norm2 = plain_norm(config.dim) if plain else norm_or_identity(before, config)
        self.mlp = mlp(config)
        self.post2 = norm_or_identity(after, config)
        self.ls2 = scale()
        self.sum2 = norm_or_identity(config.branch_norm == "sum", config)
        self.drop_path = DropPath(config.drop_path * index / max(config.depth - 1, 1))
        self.waits = config.num_prefix > 0 and not everywhere  # prefix tokens take no part

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        layout: Layout,
        mask: Bool[Tensor, "B #heads T T"] | None = None,
        prefix: bool = False,
    ) -> Float[Tensor, "B Q D"]:
        """Return the tokens after the block.

        `layout`: the images of each row of tokens.
        `mask`: True where a token attends to another. Raises `ValueError` if attention stays within windows, or if the
        images have different sizes.
        `prefix`: return only the prefix tokens. They attend to all tokens, and the rest of the block runs for them
        alone.
        """
        held: list[Tensor] = []
        if self.camera is not None:
            x = self._with_camera(x, layout)
        if self.waits:
            if prefix:
                return layout.prefix(x)
            held, x = self._hold(x, layout)
        lengths = layout.lengths(x.shape[1], prefix) if self.training else ()
        stream = layout.prefix(x) if prefix else x
        # The output of attention has no name, so that its memory is free during the MLP.
        x = stream + self.drop_path(self.ls1(self.post1(self.attn(self.norm1(x), layout, mask, prefix))), lengths)
        x = self.sum1(x)
        x = self.sum2(x + self.drop_path(self.ls2(self.post2(self.mlp(self.norm2(x)))), lengths))
        return self._rejoin(held, x, layout) if held else x

    def _with_camera(self, x: Float[Tensor, "B T D"], layout: Layout) -> Float[Tensor, "B T D"]:
        """Put the token of the camera in place of each image's CLS token."""
        assert self.camera is not None
        parts = [part for _, part in layout.split(x)]
        camera = self.camera.type_as(x)
        return layout.join([torch.cat([camera.expand(len(part), -1, -1), part[:, 1:]], dim=1) for part in parts])

    def _hold(self, x: Float[Tensor, "B T D"], layout: Layout) -> tuple[list[Tensor], Float[Tensor, "B N D"]]:
        """Return the prefix tokens of each batch of equal grids, and the row without them."""
        count, parts = layout.num_prefix(x.shape[1]), [part for _, part in layout.split(x)]
        return [part[:, :count] for part in parts], layout.join([part[:, count:] for part in parts])

    def _rejoin(self, held: list[Tensor], x: Float[Tensor, "B N D"], layout: Layout) -> Float[Tensor, "B T D"]:
        """Undo `_hold`."""
        parts = zip(held, layout.split(x), strict=True)
        return layout.join([torch.cat([ahead, part], dim=1) for ahead, (_, part) in parts])
