"""The text transformer: token ids to one vector for each text.

    ids (B, N) -> vectors of the vocabulary + positions -> blocks -> norm -> one token or their mean -> projection

The blocks are those of the `ViT`. What differs between CLIP, SigLIP, MetaCLIP 2, TIPSv2 and others is in `TextConfig`.

Axes: `B` texts, `N` tokens of the longest text, `D` width, `P` width of the projection.
"""

import math
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vitbackbone.contract import float32_default
from vitbackbone.model.layers import Block
from vitbackbone.model.norms import norm_or_identity
from vitbackbone.model.packing import Layout
from vitbackbone.model.text.config import TextConfig


class TextTransformer(nn.Module):
    """A transformer over token ids, with the learned scale and bias of its image-text logits."""

    @float32_default()
    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embed = nn.Embedding(config.vocab_size, config.dim)
        table = torch.randn(config.length + int(config.cls), config.dim) * 0.01
        self.pos_embed = nn.Parameter(table) if config.position == "learned" else None
        self.cls_token = nn.Parameter(torch.randn(config.dim) * 0.01) if config.cls else None
        blocks = config.blocks
        self.blocks = nn.ModuleList(Block(blocks, index) for index in range(config.depth))
        self.embed_norm = norm_or_identity(config.embed_norm, blocks)
        self.norm = norm_or_identity(config.final_norm, blocks)
        self.pooler = nn.Sequential(nn.Linear(config.dim, config.dim), nn.Tanh()) if config.pooler else nn.Identity()
        self.projection = _projection(config)
        self.logit_scale = nn.Parameter(torch.tensor(START[config.scale])) if config.scale != "none" else None
        self.logit_bias = nn.Parameter(torch.zeros(())) if config.logit_bias else None

    def forward(self, ids: Int[Tensor, "B N"], mask: Bool[Tensor, "B N"] | None = None) -> Float[Tensor, "B P"]:
        """Return the vector of each text.

        `mask`: False where a token is padding. Only a model with `mask_padding` needs it.
        Raises `ValueError` on ids outside the vocabulary, on more tokens than there are positions, and on a missing
        mask.
        """
        config = self.config
        self._check(ids, mask)
        place = self._place(ids)
        if config.causal and place is not None:  # no later token changes the one that is read
            ids = ids[:, : int(place.max()) + 1]
        x = self.token_embed(ids)
        if self.cls_token is not None:
            x = torch.cat([x, self.cls_token.expand(len(x), 1, -1)], dim=1)
        count = x.shape[1]
        if config.scale_tokens:
            x = x * math.sqrt(config.dim)
        x = self.embed_norm(x + self._positions()[:count].to(x))
        layout, seen = Layout(((1, count),)), self._seen(ids, mask)
        for block in self.blocks:
            x = cast(Block, block)(x, layout, seen)
        return self.projection(self.pooler(self._pool(self.norm(x), place, mask)))

    def scaled(self, cosines: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Return the logits of cosines of images and texts. Raises `ValueError` if the model has no scale."""
        if self.logit_scale is None:
            raise ValueError(
                "this checkpoint is a text tower without the scale of its logits; load the whole model, or compare "
                "normalised vectors by their cosine"
            )
        if self.config.scale == "inverse":
            scale = 1 / self.logit_scale
        elif math.isfinite(self.config.largest_scale):
            scale = self.logit_scale.clamp(0.0, math.log(self.config.largest_scale)).exp()
        else:
            scale = self.logit_scale.exp()
        logits = cosines * scale
        return logits if self.logit_bias is None else logits + self.logit_bias

    def _check(self, ids: Tensor, mask: Tensor | None) -> None:
        config, (texts, count) = self.config, ids.shape
        if not 1 <= count <= config.length:
            raise ValueError(f"{count} tokens in a text; want 1 to {config.length}")
        if texts and not 0 <= int(ids.min()) <= int(ids.max()) < config.vocab_size:
            raise ValueError(f"token ids from {int(ids.min())} to {int(ids.max())}; want 0 to {config.vocab_size - 1}")
        if config.mask_padding and mask is None:
            raise ValueError("this model ignores padding; pass a mask that is False where a token is padding")

    def _positions(self) -> Float[Tensor, "M D"]:
        return self.pos_embed if self.pos_embed is not None else sinusoids(self.config.length, self.config.dim)

    def _place(self, ids: Int[Tensor, "B N"]) -> Int[Tensor, " B"] | None:
        """Return the index of the token that is read, or None if it does not depend on the ids."""
        if self.config.pool == "eos":
            return (ids == self.config.eos_id).int().argmax(dim=1)
        return ids.argmax(dim=1) if self.config.pool == "argmax" else None

    def _seen(self, ids: Int[Tensor, "B N"], mask: Tensor | None) -> Bool[Tensor, "B 1 M M"] | None:
        """Return True where a token attends to another, or None if every token attends to all."""
        batch, count = ids.shape
        if self.config.cls:
            # open_clip, transformer.py, `_build_additive_mask`: each token is left out if the one before it is padding
            mask, count = torch.cat([ids.new_ones(batch, 1).bool(), ids != self.config.pad_id], dim=1), count + 1
        masks = self.config.mask_padding or self.config.cls
        seen = torch.ones(count, count, dtype=torch.bool, device=ids.device)
        if self.config.causal:
            seen = seen.tril()
        elif mask is None or not masks:
            return None
        seen = seen.expand(batch, 1, -1, -1)
        if masks and mask is not None:
            seen = seen & mask[:, None, None, :count]
        return seen

    def _pool(
        self, x: Float[Tensor, "B N D"], place: Int[Tensor, " B"] | None, mask: Tensor | None
    ) -> Float[Tensor, "B D"]:
        if place is not None:
            return x[torch.arange(len(x), device=x.device), place]
        if self.config.pool == "mean":
            if not self.config.mask_padding or mask is None:
                return x.mean(dim=1)
            weights = mask[..., None].to(x)
            return (x * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)  # an empty text is all padding
        return x[:, -1] if self.config.pool == "last" else x[:, 0]


def _projection(config: TextConfig) -> nn.Module:
    width, hidden, bias = config.projection_dim, config.projection_hidden, config.projection_bias
    if not width:
        return nn.Identity()
    if not hidden:
        return nn.Linear(config.dim, width, bias=bias)
    layers = nn.Linear(config.dim, hidden, bias=bias), nn.Linear(hidden, width, bias=bias)
    return nn.Sequential(layers[0], nn.GELU(), layers[1])


# The learned number at the start of training: CLIP's, TIPSv2's
START = {"exp": 2.6592, "inverse": 0.005}


def sinusoids(length: int, dim: int) -> Float[Tensor, "N D"]:
    """Return fixed positions: all sines, then all cosines, of wavelengths from 2π to 2π * 10^4, both ends included.

    google-deepmind/tips, and tensor2tensor before it; Vaswani et al. 2017 leave the last wavelength out.
    """
    rates = torch.exp(torch.arange(dim // 2).float() * (-math.log(10000) / (dim // 2 - 1)))
    angles = torch.arange(length).float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
