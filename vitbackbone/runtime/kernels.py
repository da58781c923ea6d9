"""Linear layers and attention in faster kernels than torch's default ones, and their places in a ViT.
Parameters keep their names and their memory. The kernels multiply with a copy in their own layout.

oneDNN's packed linear layers are private operations of torch: `trouble` tests them against `F.linear` before use.

Axes: `B` batch, `N` tokens, `Q` queries, `D` width, `d` width of a head, `I O` width in and out.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.model import Block, ExpertMlp, LayerScale, Mlp

POST_OPS = {
    "gelu": "none",
    "gelu_tanh": "tanh",
}  # activations that oneDNN can apply to its output: our names to torch's
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}  # max |a - b| / max |b| of one linear


# ---- linear layers ------------------------------------------------------------------------------------------------


class FastLinear(nn.Linear):
    """A linear layer in another kernel. It takes no gradients and cannot change its device or precision.

    `gamma`: factors of a LayerScale after it, which are folded into the copy of the weights.
    """

    def __init__(self, linear: nn.Linear, gamma: Float[Tensor, " O"] | None = None) -> None:
        nn.Module.__init__(self)  # skips `nn.Linear.__init__`, which would make parameters
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.gamma = gamma
        self.version = _version(linear)

    def folded(self, dtype: torch.dtype) -> tuple[Float[Tensor, "O I"], Float[Tensor, " O"] | None]:
        """Return weight and bias with `gamma` folded in, in the kernel's precision."""
        weight, bias = self.weight.detach(), None if self.bias is None else self.bias.detach()
        if self.gamma is not None:
            weight, bias = weight * self.gamma[:, None], None if bias is None else bias * self.gamma
        return weight.to(dtype), None if bias is None else bias.to(dtype)

    def forward(self, x: Shaped[Tensor, "*B I"]) -> Shaped[Tensor, "*B O"]:
        if not torch.compiler.is_compiling():
            self.check(x)
        return self.multiply(x)

    def check(self, x: Tensor) -> None:
        """Raise `ValueError` if gradients are wanted or the weights have changed."""
        if torch.is_grad_enabled() and x.requires_grad:
            raise ValueError("an optimised backbone computes no gradients; call it under torch.no_grad()")
        if _version(self) != self.version:
            raise ValueError("the weights were changed since the backbone was optimised; optimise it again")

    def multiply(self, x: Shaped[Tensor, "*B I"]) -> Shaped[Tensor, "*B O"]:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "FastLinear":
        moved = fn(self.weight)
        if (moved.dtype, moved.device) != (self.weight.dtype, self.weight.device):
            raise ValueError(
                f"an optimised backbone stays {self.weight.dtype} on {self.weight.device}, not {moved.dtype} on "
                f"{moved.device}; move the plain one and optimise it there"
            )
        return cast(FastLinear, super()._apply(fn, recurse))

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("an optimised backbone cannot be copied or pickled; copy the plain one, then optimise the copy")


def _version(linear: nn.Linear) -> list[int]:
    """Return the versions of the parameters, which every in-place change increases."""
    return [0 if p is None or p.is_inference() else p._version for p in (linear.weight, linear.bias)]


class CastLinear(FastLinear):
    """A linear layer in torch's kernel of another precision: fast on a GPU, a reference for tests elsewhere."""

    def __init__(self, linear: nn.Linear, gamma: Float[Tensor, " O"] | None, dtype: torch.dtype) -> None:
        super().__init__(linear, gamma)
        self.copies = self.folded(dtype)

    def multiply(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        weight, bias = self.copies
        return F.linear(x.to(weight.dtype), weight, bias)


class GeluLinear(CastLinear):
    """A `CastLinear` with a GELU after it. A GPU's kernel applies the tanh form of the GELU as it stores its result.
    This saves two passes of the widest tensor through memory. The two forms differ by at most 5e-4, a quarter of
    bfloat16's rounding error at 1.

    `torch._addmm_activation` is a private operation of torch: `gelu_trouble` tests it before use.
    """

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear, None, dtype)

    def multiply(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        weight, bias = self.copies
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        # A custom operation, because a compiler would split the private one.
        apply = linear_gelu if torch.compiler.is_compiling() else _linear_gelu
        return apply(x.to(weight.dtype).flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])


def _linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch._addmm_activation(bias, x, weight.T, use_gelu=True)


linear_gelu = torch.library.custom_op("vitbackbone::linear_gelu", _linear_gelu, mutates_args=())


@linear_gelu.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])  # not `len`, which would fix the size


def gelu_trouble(dtype: torch.dtype, device: torch.device) -> str:
    """Return why the kernel on this device cannot apply the GELU; empty if it agrees with torch's own."""
    linear = nn.Linear(64, 96, device=device).requires_grad_(False)
    x = torch.randn(2, 37, 64, generator=torch.Generator().manual_seed(0)).to(device)
    want = F.gelu(linear(x))
    try:
        got = GeluLinear(linear, dtype)(x).float()
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        return f"torch has no linear with a GELU here ({str(error).splitlines()[0][:120]})"
    off = ((got - want).abs().max() / want.abs().max()).item()
    return "" if off <= TOLERANCE[dtype] else f"torch's linear with a GELU is off by {off:.1e} here"


class PackedLinear(FastLinear):
    """A linear layer in oneDNN's kernel. The weights are laid out once instead of at every call.

    `gelu`: the name in `POST_OPS` of a GELU for the output.
    """

    def __init__(
        self, linear: nn.Linear, gamma: Float[Tensor, " O"] | None, dtype: torch.dtype, gelu: str | None = None
    ) -> None:
        super().__init__(linear, gamma)
        weight, self.shift = self.folded(dtype)
        self.dtype = dtype
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
        self.post_op = ("none", "") if gelu is None else ("gelu", POST_OPS[gelu])

    def multiply(self, x: Float[Tensor, "*B I"]) -> Float[Tensor, "*B O"]:
        name, algorithm = self.post_op
        return torch.ops.mkldnn._linear_pointwise(x.to(self.dtype), self.packed, self.shift, name, [], algorithm)


def trouble(dtype: torch.dtype) -> str:
    """Return why oneDNN's packed linear layers cannot be used here; empty if they agree with `F.linear`."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(48, 80)
    with torch.no_grad():
        for tensor in (linear.weight, linear.bias):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
        x = torch.randn(2, 37, 48, generator=generator)
        plain = linear(x)
        wanted = {None: plain, "gelu": F.gelu(plain), "gelu_tanh": F.gelu(plain, approximate="tanh")}
        for gelu, want in wanted.items():
            try:
                got = PackedLinear(linear, None, dtype, gelu)(x).float()
            except (AttributeError, RuntimeError, TypeError) as error:  # no such operation, processor or argument
                return f"oneDNN has no packed {dtype} linears here ({str(error).splitlines()[0][:120]})"
            off = ((got - want).abs().max() / want.abs().max()).item()
            if not off <= TOLERANCE[dtype]:
                return f"oneDNN's packed {dtype} linears are off by {off:.1e} here"
    return ""


# ---- attention ----------------------------------------------------------------------------------------------------

QUERIES, HEADS = 256, 2  # size of one block of a long sequence


def attend_in_blocks(
    q: Float[Tensor, "B heads Q d"],
    k: Float[Tensor, "B heads N d"],
    v: Float[Tensor, "B heads N d"],
    bias: Tensor | None,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "B heads Q d"]:
    """Compute `attention.attend` as products of contiguous matrices. In bfloat16 on a CPU this is up to 1.7 times as
    fast as torch's fused kernel. Short images take all heads at once; long ones take blocks that fit the cache.

    `dtype`: the precision of the products; the default is the queries' own.
    """
    given = q.dtype
    q, k, v = (x.to(dtype or given).contiguous() for x in (q * q.shape[-1] ** -0.5, k, v))
    heads = q.shape[1] if q.shape[2] <= QUERIES else HEADS
    mixed = torch.empty_like(q)
    for image in range(len(q)):
        for h in range(0, q.shape[1], heads):
            some = slice(h, h + heads)
            for start in range(0, q.shape[2], QUERIES):
                rows = slice(start, start + QUERIES)
                scores = q[image, some, rows] @ k[image, some].transpose(-2, -1)
                if bias is not None:
                    part = bias.expand(*q.shape[:3], -1)[image, some, rows]
                    scores = scores.masked_fill(~part, -torch.inf) if part.dtype == torch.bool else scores + part
                mixed[image, some, rows] = scores.softmax(dim=-1).to(v.dtype) @ v[image, some]
    return mixed.to(given)


# ---- their places in a ViT ----------------------------------------------------------------------------------------

Make = Callable[[nn.Linear, Tensor | None], FastLinear]  # arguments: a linear layer, and the factors to fold into it
MakeWithGelu = Callable[..., FastLinear]  # arguments: a linear layer, and `gelu`, the GELU after it


class Folded(LayerScale):
    """A LayerScale whose factors are folded into the linear layer before it."""

    def __init__(self, scale: LayerScale) -> None:
        nn.Module.__init__(self)
        self.gamma = scale.gamma

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        return x


def places(block: Block) -> list[tuple[nn.Module, str, str | None]]:
    """List the linear layers of a block: module, name in it, and name of the LayerScale right after it."""
    ls1, ls2 = (
        name if isinstance(norm, nn.Identity) else None for name, norm in (("ls1", block.post1), ("ls2", block.post2))
    )
    found: list[tuple[nn.Module, str, str | None]] = [(block.attn, "qkv", None), (block.attn, "proj", ls1)]
    if isinstance(block.mlp, ExpertMlp):  # its tensors hold many layers
        return found
    first, last = ("fc1", "fc2") if isinstance(block.mlp, Mlp) else ("w12", "w3")
    return [*found, (block.mlp, first, None), (block.mlp, last, ls2)]


def replace_linears(block: Block, make: Make) -> None:
    """Replace the plain linear layers of a block by what `make` makes of them. Adapters and other modules stay."""
    for part, name, scale in places(block):
        linear = getattr(part, name)
        if type(linear) is not nn.Linear:
            continue
        factors = getattr(block, scale) if scale else None
        if scale and isinstance(factors, LayerScale):
            setattr(part, name, make(linear, factors.gamma.detach()))
            setattr(block, scale, Folded(factors))
        else:
            setattr(part, name, make(linear, None))


def same(x: Tensor) -> Tensor:
    """Return x: the activation of an MLP whose first linear layer applies it already."""
    return x


def fuse_gelu(mlp: Mlp, first: FastLinear) -> None:
    """Give an MLP a first linear layer that applies the activation itself."""
    mlp.fc1 = first
    mlp.activation = same
