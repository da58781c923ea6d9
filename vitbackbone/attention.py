"""Multi-head self-attention, everywhere or in windows, with rotary positions or a bias of relative ones.

Axes: `B` batch, `N` tokens, `D` width, `d` width of a head, `h w` patch grid.
"""

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.config import ViTConfig
from vitbackbone.position import relative_index, resample_line, resample_relative, rotary_table, rotate


class RelativeTable(nn.Module):
    """A learned bias per head for every difference of places and for CLS (Bao et al. 2021, BEiT)."""

    def __init__(self, config: ViTConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.resampling = config.resampling
        differences = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(differences + 3, config.num_heads), std=0.02))

    def forward(self, q: Float[Tensor, "B heads N d"], grid: tuple[int, int]) -> Float[Tensor, "1 heads N N"]:
        table = resample_relative(self.table, self.grid, grid, self.resampling)
        return rearrange(table[relative_index(grid, table.device)], "n m heads -> 1 heads n m")


class DecomposedTables(nn.Module):
    """A bias that depends on the query: its products with learned vectors for the difference of rows and for that of
    columns (Li et al. 2022, MViTv2; facebookresearch/segment-anything, modeling/image_encoder.py)."""

    def __init__(self, config: ViTConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        width = config.dim // config.num_heads
        self.rows = nn.Parameter(nn.init.trunc_normal_(torch.empty(2 * grid[0] - 1, width), std=0.02))
        self.columns = nn.Parameter(nn.init.trunc_normal_(torch.empty(2 * grid[1] - 1, width), std=0.02))

    def forward(self, q: Float[Tensor, "B heads N d"], grid: tuple[int, int]) -> Float[Tensor, "B heads N N"]:
        by_row, by_column = (_pairs(table, side) for table, side in zip((self.rows, self.columns), grid, strict=True))
        q = rearrange(q, "B heads (h w) d -> B heads h w d", h=grid[0])
        # Contiguous, or their sum is laid out as einsum left them, and copied once more.
        rows = einsum(q, by_row, "B heads h w d, h y d -> B heads h w y").contiguous()
        columns = einsum(q, by_column, "B heads h w d, w x d -> B heads h w x").contiguous()
        return rearrange(rows[..., None] + columns[..., None, :], "B heads h w y x -> B heads (h w) (y x)")


def _pairs(table: Float[Tensor, "M d"], side: int) -> Float[Tensor, "side side d"]:
    """The vector of each pair of rows, or columns."""
    places = torch.arange(side, device=table.device)
    return resample_line(table, side)[places[:, None] - places + side - 1]


RELATIVE: dict[str, type[RelativeTable] | type[DecomposedTables]] = {
    "table": RelativeTable,
    "decomposed": DecomposedTables,
}


class Attention(nn.Module):
    """Attention of all tokens to all. The forward uses torch's fused kernel; `weights` recomputes the map on request.

    `grid`: (h, w) that learned tables of relative positions are for.
    """

    def __init__(self, config: ViTConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        self.rotary = config.rotary
        self.qkv = nn.Linear(config.dim, 3 * config.dim, bias=config.qkv_bias == "qkv")
        self.q_bias = nn.Parameter(torch.zeros(config.dim)) if config.qkv_bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(config.dim)) if config.qkv_bias == "qv" else None
        relative = RELATIVE.get(config.relative_position)
        self.rel_pos = relative(config, grid) if relative else None
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        grid: tuple[int, int],
        mask: Bool[Tensor, "B #heads N N"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """`mask`: True where a token attends to another; each must attend to one at least."""
        q, k, v, bias = self._split(x, grid)
        if mask is not None:
            bias = mask if bias is None else bias.masked_fill(~mask, -torch.inf)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        return self.proj(rearrange(x, "B heads N d -> B N (heads d)"))

    def weights(self, x: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B heads N N"]:
        """softmax(q kᵀ / √d + bias): row i says how much token i takes from each token."""
        q, k, _, bias = self._split(x, grid)
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)  # scaled first: the product overflows in half precision
        return (scores if bias is None else scores + bias).softmax(dim=-1)

    def _split(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Queries, keys and values of each head, and what is added to their scores."""
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
            qkv = F.linear(x, self.qkv.weight, bias)
        else:
            qkv = self.qkv(x)  # called as a module, so that an adapter or a hook on it takes part
        q, k, v = rearrange(qkv, "B N (three heads d) -> three B heads N d", three=3, heads=self.num_heads)
        scores = None if self.rel_pos is None else self.rel_pos(q, grid)
        if self.rotary:
            table = rotary_table(self.rotary, q.shape[-1], grid, q.device)
            q, k = rotate(q, table, self.rotary), rotate(k, table, self.rotary)
        return q, k, v, scores


class WindowAttention(Attention):
    """Attention within square windows that do not overlap (Li et al. 2022, ViTDet). The grid is padded with zeros to
    whole windows, and the padding takes part, as upstream has it."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config, (config.window, config.window))
        self.window = config.window

    def forward(
        self,
        x: Float[Tensor, "B N D"],
        grid: tuple[int, int],
        mask: Bool[Tensor, "B #heads N N"] | None = None,
    ) -> Float[Tensor, "B N D"]:
        """Raises `ValueError` on a mask, which is of all tokens to all."""
        if mask is not None:
            raise ValueError("attention within windows takes no mask; take a backbone without windows")
        inside = (self.window, self.window)
        windows, rows = self._cut(x, grid)
        x = rearrange(
            super().forward(windows, inside), "(B y x) (h w) D -> B (y h) (x w) D", h=self.window, y=rows, B=len(x)
        )
        return rearrange(x[:, : grid[0], : grid[1]], "B h w D -> B (h w) D")

    def weights(self, x: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "B heads N N"]:
        """The maps of the windows as one over the image, 0 from window to window. A row of a window with padding lacks
        what the padding takes."""
        side = self.window
        windows, rows = self._cut(x, grid)
        each = super().weights(windows, (side, side))
        columns = len(each) // (len(x) * rows)
        where = torch.arange(rows * columns, device=x.device)
        whole = each.new_zeros(len(x), each.shape[1], rows * columns, side**2, rows * columns, side**2)
        whole[:, :, where, :, where, :] = rearrange(each, "(B n) heads q k -> n B heads q k", B=len(x))
        whole = rearrange(
            whole,
            "B heads (y x) (h w) (v u) (g f) -> B heads (y h) (x w) (v g) (u f)",
            **{"y": rows, "v": rows, "h": side, "g": side},
        )
        h, w = grid
        return rearrange(whole[:, :, :h, :w, :h, :w], "B heads h w g f -> B heads (h w) (g f)")

    def _cut(self, x: Float[Tensor, "B N D"], grid: tuple[int, int]) -> tuple[Float[Tensor, "M K D"], int]:
        """The windows of all images, one image after the other, row-major, and how many rows of them there are."""
        image = rearrange(x, "B (h w) D -> B h w D", h=grid[0])
        image = F.pad(image, (0, 0, 0, -grid[1] % self.window, 0, -grid[0] % self.window))
        windows = rearrange(image, "B (y h) (x w) D -> (B y x) (h w) D", h=self.window, w=self.window)
        return windows, image.shape[1] // self.window
