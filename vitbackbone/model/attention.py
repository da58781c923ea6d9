"""Multi-head self-attention over the image or in windows, with rotary positions or a bias of relative positions.

Axes: `B` batch, `N` tokens, `T` tokens of a row (see `packing.py`), `D` width, `d` width of a head, `h w` patch grid.
"""

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.contract import copied
from vitbackbone.model.clipped import make_linear
from vitbackbone.model.config import ViTConfig
from vitbackbone.model.norms import norm_or_identity, plain_norm
from vitbackbone.model.packing import Layout
from vitbackbone.model.positions.relative import relative_index, resample_line, resample_relative
from vitbackbone.model.positions.rotary import rotary_row, rotary_row_with_cls, rotate
from vitbackbone.model.varlen import attend_varlen, takes


class RelativeTable(nn.Module):
    """A learned bias per head for each difference of positions, and for CLS (Bao et al. 2021, BEiT)."""

    def __init__(self, config: ViTConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.grid = grid
        self.resampling = config.resampling
        differences = (2 * grid[0] - 1) * (2 * grid[1] - 1)
        self.table = nn.Parameter(nn.init.trunc_normal_(torch.empty(differences + 3, config.num_heads), std=0.02))

    def forward(self, q: Float[Tensor, "B heads Q d"], grid: tuple[int, int]) -> Float[Tensor, "1 heads Q N"]:
        """Return the bias of the first Q tokens. `q`: their queries."""
        return self.bias(grid, q.shape[2])

    def bias(self, grid: tuple[int, int], queries: int | None = None) -> Float[Tensor, "1 heads Q N"]:
        """Return the bias of the first `queries` tokens, or of all tokens if it is None."""
        table = resample_relative(self.table, self.grid, grid, self.resampling)
        index = relative_index(grid, table.device)[:queries]
        return rearrange(F.embedding(index, table), "q n heads -> 1 heads q n")


class DecomposedTables(nn.Module):
    """A bias that depends on the query: its products with learned vectors for each difference of rows and of columns.

    Li et al. 2022, MViTv2; facebookresearch/segment-anything, modeling/image_encoder.py.
    """

    def __init__(self, config: ViTConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        width = config.head_width
        self.rows = nn.Parameter(nn.init.trunc_normal_(torch.empty(2 * grid[0] - 1, width), std=0.02))
        self.columns = nn.Parameter(nn.init.trunc_normal_(torch.empty(2 * grid[1] - 1, width), std=0.02))

    def forward(self, q: Float[Tensor, "B heads N d"], grid: tuple[int, int]) -> Float[Tensor, "B heads N N"]:
        by_row, by_column = (pairs.type_as(q) for pairs in self.pairs(grid))
        (batch, heads, _, d), (h, w) = q.shape, grid
        q = q.unflatten(2, grid)  # B heads h w d
        asking = copied(q.permute(2, 0, 1, 3, 4)).view(h, batch * heads * w, d)
        rows = copied(torch.bmm(asking, by_row.mT).view(h, batch, heads, w, h).permute(1, 2, 0, 3, 4))
        asking = copied(q.permute(3, 0, 1, 2, 4)).view(w, batch * heads * h, d)
        columns = copied(torch.bmm(asking, by_column.mT).view(w, batch, heads, h, w).permute(1, 2, 3, 0, 4))
        return (rows[..., None] + columns[..., None, :]).view(batch, heads, h * w, h * w)

    def pairs(self, grid: tuple[int, int]) -> tuple[Float[Tensor, "h h d"], Float[Tensor, "w w d"]]:
        """Return the vector of each pair of rows, and of each pair of columns."""
        height, width = grid
        return _pairs(self.rows, height), _pairs(self.columns, width)


def _pairs(table: Float[Tensor, "M d"], side: int) -> Float[Tensor, "side side d"]:
    """Return the vector of each pair of positions on one axis."""
    places = torch.arange(side, device=table.device)
    return resample_line(table, side)[places[:, None] - places + side - 1]


RELATIVE: dict[str, type[RelativeTable] | type[DecomposedTables]] = {
    "table": RelativeTable,
    "decomposed": DecomposedTables,
}


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def attend(
    q: Float[Tensor, "B heads Q d"],
    k: Float[Tensor, "B heads N d"],
    v: Float[Tensor, "B heads N d"],
    bias: Float[Tensor, "#B #heads #Q N"] | Bool[Tensor, "#B #heads #Q N"] | None,
) -> Float[Tensor, "B heads Q d"]:
    """Attend within images of equal token counts, with torch's fused kernel. A boolean bias is a mask."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias)


def attend_jagged(
    q: Float[Tensor, "1 heads T d"],
    k: Float[Tensor, "1 heads T d"],
    v: Float[Tensor, "1 heads T d"],
    lengths: Sequence[int],
) -> Float[Tensor, "1 heads T d"]:
    """Attend within each image of a row, in one kernel for all images.

    `lengths`: the number of tokens of each image. On a GPU, one kernel avoids the launch time of many small ones. On a
    CPU, `attend` image by image is four times as fast.
    """
    if takes(q):
        return attend_varlen(q, k, v, lengths)
    ends = torch.tensor([0, *accumulate(lengths)], device=q.device)

    def jagged(x: Tensor) -> Tensor:
        tokens = rearrange(x, "1 heads T d -> T heads d").contiguous()
        shortest, longest = min(lengths), max(lengths)
        return torch.nested.nested_tensor_from_jagged(tokens, ends, min_seqlen=shortest, max_seqlen=longest).transpose(
            1, 2
        )

    mixed = F.scaled_dot_product_attention(jagged(q), jagged(k), jagged(v)).transpose(1, 2)
    return rearrange(mixed.values(), "T heads d -> 1 heads T d")


def _side_by_side(mixed: Float[Tensor, "B heads Q d"]) -> Float[Tensor, "B Q D"]:
    """Return the outputs of all heads in one row for each token."""
    rows = mixed.transpose(1, 2)
    if torch.compiler.is_exporting():
        rows = copied(rows)  # exporters expand attention with a bias to operations with another memory layout
    return rows.flatten(2)


class SelfAttention(nn.Module):
    """Attention among all tokens of an image. The forward uses torch's fused kernel; `weights` recomputes the map.

    `grid`: (h, w) of learned tables of relative positions.
    """

    attend: Attend  # the kernel, which `optimize` may replace

    def __init__(self, config: ViTConfig, grid: tuple[int, int]) -> None:
        super().__init__()
        self.width = config.head_width
        self.rotary = config.rotary
        inner, shared = config.num_heads * self.width, config.kv_heads * self.width
        self.widths = (inner, shared, shared)  # widths of queries, keys and values
        self.repeats = inner // shared  # heads of queries for each head of keys and values
        self.qkv = make_linear(config, config.dim, self.widths, config.qkv_bias == "qkv")
        self.q_bias = nn.Parameter(torch.zeros(inner)) if config.qkv_bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(inner)) if config.qkv_bias == "qv" else None
        self.qk_norm = config.qk_norm
        normed = [self.width] * 2 if config.qk_norm == "head" else [inner, shared]
        self.q_norm, self.k_norm = (norm_or_identity(config.qk_norm != "none", config, width) for width in normed)
        if config.qk_norm == "plain":
            self.q_norm, self.k_norm = plain_norm(self.width), plain_norm(self.width)
        self.v_eps = config.norm_eps if config.v_norm else None
        turned = config.rotary is not None and config.rotary.cls_angles
        self.cls_angles = nn.Parameter(torch.zeros(self.width // 2)) if turned else None
        relative = RELATIVE.get(config.relative_position)
        self.rel_pos = relative(config, grid) if relative else None
        self.norm = norm_or_identity(config.attn_norm, config, inner)
        self.proj = make_linear(config, inner, [config.dim], config.proj_bias)
        self.attend = attend

    def forward(
        self,
        x: Float[Tensor, "B T D"],
        layout: Layout,
        mask: Bool[Tensor, "B #heads T T"] | None = None,
        prefix: bool = False,
    ) -> Float[Tensor, "B Q D"]:
        """Return the output of attention for each token.

        `mask`: True where a token attends to another; each token must attend to at least one. Raises `ValueError` if
        the images have different sizes.
        `prefix`: return the output of only the prefix tokens. `qkv` still runs once for all tokens, so that modules
        that replace or adapt it keep working.
        """
        if mask is not None:
            self._check_mask(layout)
        rows = x.shape[0]
        x, inside, mask = self._enter(x, layout, mask)
        plain, k, v = self._split(x)  # relative positions use queries without rotary positions
        q, k = self._turn(plain, k, inside)
        if q.is_cuda and len(inside.grids) > 1 and self.is_plain and not prefix:
            mixed = attend_jagged(q, k, v, inside.lengths(x.shape[1]))
            return self.proj(self.norm(rearrange(mixed, "B heads T d -> B T (heads d)")))
        count = inside.num_prefix(x.shape[1]) if prefix else None
        each = []
        for (grid, asking), (_, queries), (_, keys), (_, values) in zip(
            *(inside.split(part) for part in (plain, q, k, v)), strict=True
        ):
            # A bias is as large as the map. No name holds it, so that it is freed after the call.
            asking, queries = asking[:, :, :count], queries[:, :, :count]
            mixed = self.attend(*self._terms(queries, keys, values, self._bias(asking, grid, mask)))
            each.append(_side_by_side(mixed))
        return self._leave(self.proj(self.norm(inside.join(each))), layout, rows)

    @property
    def is_plain(self) -> bool:
        """Whether only queries and keys enter the softmax."""
        return self.rel_pos is None

    def _terms(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Return what the kernel takes."""
        return q, k, v, bias

    def _bias(self, plain: Tensor, grid: tuple[int, int], mask: Tensor | None) -> Tensor | None:
        """Return what is added to the logits, or the mask alone. `plain`: the queries without rotary positions."""
        if self.rel_pos is None:
            return mask
        bias = self.rel_pos(plain, grid)
        return bias if mask is None else bias.masked_fill(~mask, -torch.inf)

    def _check_mask(self, layout: Layout) -> None:
        if len(layout.grids) > 1:
            raise ValueError(
                "a mask covers the tokens of one image size, and these images have several; call once per size"
            )

    def _enter(
        self, x: Float[Tensor, "B T D"], layout: Layout, mask: Tensor | None
    ) -> tuple[Float[Tensor, "M K D"], Layout, Tensor | None]:
        """Return the tokens that attend to each other, their layout, and the mask of their pairs."""
        return x, layout, mask

    def _leave(self, x: Float[Tensor, "M K D"], layout: Layout, rows: int) -> Float[Tensor, "B T D"]:
        """Undo `_enter`. `rows`: the number of rows of the result."""
        return x

    def weights(
        self, x: Float[Tensor, "B N D"], grid: tuple[int, int], steps: int | None = None
    ) -> Float[Tensor, "B heads N N"]:
        """Return softmax(q kᵀ / √d + bias). Row i holds the weights of all tokens in token i.

        `steps`: the number of time steps of clips; None for images.
        """
        return self._scores(x, grid, steps).softmax(dim=-1)

    def _scores(
        self, x: Float[Tensor, "B N D"], grid: tuple[int, int], steps: int | None = None
    ) -> Float[Tensor, "B heads N N"]:
        """Return q kᵀ / √d + bias."""
        q, k, _ = self._split(x)
        bias = None if self.rel_pos is None else self.rel_pos(q, grid)
        q, k = self._turn(q, k, Layout((grid,), steps or 1))
        # scaled first, because the product overflows in half precision
        scores = q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)
        return scores if bias is None else scores + bias

    def _split(self, x: Float[Tensor, "B T D"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of each head, (B, heads, T, d)."""
        qkv = self.qkv(x)  # called as a module, so that adapters, hooks and faster kernels apply
        if self.q_bias is not None and self.v_bias is not None:
            qkv = qkv + torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]).type_as(qkv)
        q, k, v = qkv.split(self.widths, dim=2)
        if self.qk_norm == "full":
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (part.unflatten(2, (-1, self.width)).transpose(1, 2) for part in (q, k, v))
        if self.qk_norm in ("head", "plain"):
            q, k = self.q_norm(q), self.k_norm(k)
        if self.v_eps is not None:
            v = F.rms_norm(v, (self.width,), eps=self.v_eps)
        if self.repeats > 1:
            k, v = (part.repeat_interleave(self.repeats, dim=1) for part in (k, v))
        return q, k, v

    def _turn(self, q: Tensor, k: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        """Rotate queries and keys by their rotary positions."""
        if self.rotary is None:
            return q, k
        if self.cls_angles is not None:
            table = rotary_row_with_cls(self.rotary, self.cls_angles, layout)
        else:
            table = rotary_row(self.rotary, self.width, layout, layout.num_prefix(q.shape[2]), q.device)
        return rotate(q, table, self.rotary), rotate(k, table, self.rotary)


class WindowAttention(SelfAttention):
    """Attention within square windows that do not overlap (Li et al. 2022, ViTDet).

    The grid is padded with zeros to whole windows. With `window_edge="pad"`, tokens attend to the padding too, as in
    SAM. With `"cut"` they do not, so that windows over the edge are smaller (Qwen2.5-VL).
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__(config, (config.window, config.window))
        self.window = config.window
        self.cuts = config.window_edge == "cut"

    def _check_mask(self, layout: Layout) -> None:
        raise ValueError("attention within windows takes no mask; use a backbone without windows")

    def _enter(
        self, x: Float[Tensor, "B T D"], layout: Layout, mask: Tensor | None
    ) -> tuple[Float[Tensor, "M K D"], Layout, Bool[Tensor, "M 1 1 K"] | None]:
        """Return the windows of all images, image by image, row-major, and which of their tokens are not padding."""
        parts = layout.split(x)
        cut = [self._cut(part, grid) for grid, part in parts]
        inside = Layout(((self.window, self.window),))
        if self.cuts:
            mask = torch.cat([self.filled(grid, x.device).repeat(part.shape[0], 1, 1, 1) for grid, part in parts])
        return (cut[0] if len(cut) == 1 else torch.cat(cut)), inside, mask

    def _leave(self, x: Float[Tensor, "M K D"], layout: Layout, rows: int) -> Float[Tensor, "B T D"]:
        """Return the images that were cut into these windows."""
        if len(layout.grids) == 1:
            return self._uncut(x, layout.grids[0], rows)
        parts = x.split([count * math.prod(self._windows(grid)) for grid, count in layout.groups])
        return layout.join([self._uncut(part, *group) for part, group in zip(parts, layout.groups, strict=True)])

    def weights(
        self, x: Float[Tensor, "B N D"], grid: tuple[int, int], steps: int | None = None
    ) -> Float[Tensor, "B heads N N"]:
        """Return the maps of all windows as one map over the image, 0 between different windows.

        Rows of a window with padding sum to less than 1, because the weights of the padding are left out. A prefix
        token keeps its own value.
        """
        if ahead := Layout((grid,)).num_prefix(x.shape[1]):
            behind = self.weights(x[:, ahead:], grid)
            whole = torch.eye(x.shape[1], device=x.device, dtype=behind.dtype).repeat(*behind.shape[:2], 1, 1)
            whole[:, :, ahead:, ahead:] = behind
            return whole
        side = self.window
        rows, columns = self._windows(grid)
        scores = self._scores(self._cut(x, grid), (side, side))
        if self.cuts:
            scores = scores.masked_fill(~self.filled(grid, x.device).repeat(x.shape[0], 1, 1, 1), -torch.inf)
        each = scores.softmax(dim=-1)
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

    def _windows(self, grid: tuple[int, int]) -> tuple[int, int]:
        """Return the number of rows and columns of windows of an image."""
        return (grid[0] - 1) // self.window + 1, (grid[1] - 1) // self.window + 1

    def filled(self, grid: tuple[int, int], device: torch.device) -> Bool[Tensor, "n 1 1 K"]:
        """Return which tokens of each window of an image are not padding."""
        side, (rows, columns) = self.window, self._windows(grid)
        down, across = (
            torch.arange(count * side, device=device).view(count, side) < length
            for count, length in zip((rows, columns), grid, strict=True)
        )
        filled = down[:, None, :, None] & across[None, :, None, :]  # rows columns side side
        return filled.reshape(rows * columns, 1, 1, side**2)

    def _cut(self, x: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Float[Tensor, "M K D"]:
        """Return the windows of images with one grid."""
        (h, w), (rows, columns) = grid, self._windows(grid)
        side, count, dim = self.window, x.shape[0], x.shape[2]
        image = F.pad(x.unflatten(1, grid), (0, 0, 0, columns * side - w, 0, rows * side - h))
        windows = copied(image.reshape(count, rows, side, columns, side, dim).transpose(2, 3))
        return windows.view(count * rows * columns, side**2, dim)

    def _uncut(self, windows: Float[Tensor, "M K D"], grid: tuple[int, int], count: int) -> Float[Tensor, "B N D"]:
        """Return the `count` images with one grid that were cut into these windows."""
        (h, w), (rows, columns), side, dim = grid, self._windows(grid), self.window, windows.shape[2]
        image = copied(windows.view(count, rows, columns, side, side, dim).transpose(2, 3))
        image = image.view(count, rows * side, columns * side, dim)
        # A negative pad crops. Tracers know the size of its result, but not the size of a slice.
        return copied(F.pad(image, (0, 0, 0, w - columns * side, 0, h - rows * side))).view(count, h * w, dim)
