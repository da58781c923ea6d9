"""Attention within each image of a row by torch's variable-length kernel, on GPUs where torch has it.

Axes: `T` tokens of a row (see `packing.py`), `d` width of a head.
"""

from collections.abc import Sequence
from itertools import accumulate

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # an older torch; `attend_jagged` has another way
    varlen_attn = None  # type: ignore[assignment]

PRECISIONS = (torch.float16, torch.bfloat16)  # FlashAttention has no float32
WIDEST, MULTIPLE = 256, 8  # channels of a head that FlashAttention takes
CAPABILITY = (8, 0)  # compute capability of the first GPUs it runs on


def takes(q: Tensor) -> bool:
    """Return whether torch's variable-length kernel can attend with these queries."""
    if varlen_attn is None or not q.is_cuda or q.dtype not in PRECISIONS:
        return False
    fits = q.shape[-1] <= WIDEST and q.shape[-1] % MULTIPLE == 0
    return fits and torch.version.hip is None and torch.cuda.get_device_capability(q.device) >= CAPABILITY


def attend_varlen(
    q: Float[Tensor, "1 heads T d"],
    k: Float[Tensor, "1 heads T d"],
    v: Float[Tensor, "1 heads T d"],
    lengths: Sequence[int],
) -> Float[Tensor, "1 heads T d"]:
    """Attend within each image of a row; `lengths` are the tokens of each image."""
    ends = torch.tensor([0, *accumulate(lengths)], device=q.device, dtype=torch.int32)
    rows, longest = [rearrange(x, "1 heads T d -> T heads d").contiguous() for x in (q, k, v)], max(lengths)
    mixed = varlen_attn(rows[0], rows[1], rows[2], ends, ends, longest, longest)
    assert isinstance(mixed, Tensor)  # a tuple only if more was asked for
    return rearrange(mixed, "T heads d -> 1 heads T d")
