"""The table of routes: each row of `ROUTES` has a name, a precision, an engine, a device and a builder.

A builder takes the backbone and a sample, and returns a backbone with the same contract for inference. It raises
`Unavailable` if it cannot. `choice.py` picks the route.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitbackbone.contract import BackboneModule, Engine, Features, Images, Precision, Runtime, evaluating
from vitbackbone.model import Block, Mlp, ViT
from vitbackbone.runtime.cuda_graphs import Recordings
from vitbackbone.runtime.int8 import MakeKernel, int8_trouble, onednn, quantize, watching
from vitbackbone.runtime.kernels import (
    POST_OPS,
    CastLinear,
    FastLinear,
    GeluLinear,
    Make,
    MakeWithGelu,
    PackedLinear,
    attend_in_blocks,
    fuse_gelu,
    gelu_trouble,
    places,
    replace_linears,
    trouble,
)

COMPILED = 64  # graphs of a block, for sizes and layouts; beyond this number torch runs blocks uncompiled


class Unavailable(Exception):
    """The reason why a route cannot be taken."""


Build = Callable[[BackboneModule, Images], BackboneModule]  # takes a sample too; raises `Unavailable`


@dataclass(frozen=True)
class Route:
    """One way to compute the features of a backbone."""

    name: str
    precision: Precision
    engine: Engine
    device: Literal["cpu", "cuda"]
    build: Build

    @property
    def runtime(self) -> Runtime:
        return Runtime(self.precision, self.engine, self.name)

    def __str__(self) -> str:
        return f"{self.precision} by {self.name}"


def share(backbone: BackboneModule) -> BackboneModule:
    """Return a frozen copy whose parameters share the memory of the original and take no gradients."""
    with torch.inference_mode(False):  # inference tensors cannot be used outside inference mode
        parameters = {id(p): nn.Parameter(p.detach(), requires_grad=False) for p in backbone.parameters()}
    shared = copy.deepcopy(backbone, {**parameters, **{id(b): b for b in backbone.buffers()}})
    shared.frozen = True
    for vit in _vits(shared):
        if vit.pos_embed is not None:
            vit.pos_embed.keep()
    return shared.eval()


def plain(backbone: BackboneModule, images: Images) -> BackboneModule:
    """Return a copy that computes as the original does."""
    return share(backbone)


def packed(backbone: BackboneModule, images: Images, dtype: torch.dtype = torch.float32) -> BackboneModule:
    """Use oneDNN's packed linear layers. Below float32, attention is written as matrix products."""
    if why := trouble(dtype):
        raise Unavailable(why)
    # Without AVX-512, oneDNN's GELU is slower than torch's.
    fuses = dtype != torch.float32 or torch.backends.cpu.get_cpu_capability() == "AVX512"
    with_gelu = partial(PackedLinear, gamma=None, dtype=dtype) if fuses else None
    fast = _with_linears(backbone, partial(PackedLinear, dtype=dtype), dtype, with_gelu)
    for block in _blocks(fast) if dtype != torch.float32 else ():
        block.attn.attend = attend_in_blocks
    return fast


def unpacked(backbone: BackboneModule, images: Images, dtype: torch.dtype) -> BackboneModule:
    """Use torch's own linear layers in another precision."""
    return _with_linears(backbone, partial(CastLinear, dtype=dtype), dtype)


def bfloat16(backbone: BackboneModule, images: Images) -> BackboneModule:
    """Use torch's own linear layers in bfloat16. The first one of an MLP applies the GELU too."""
    device = images.device if isinstance(images, Tensor) else images[0].device
    fuses = not gelu_trouble(torch.bfloat16, device)

    def with_gelu(linear: nn.Linear, gelu: str) -> FastLinear:
        return GeluLinear(linear, torch.bfloat16)

    make = partial(CastLinear, dtype=torch.bfloat16)
    return _with_linears(backbone, make, torch.bfloat16, with_gelu if fuses else None)


def compiled(
    backbone: BackboneModule, images: Images, build: Build, compiler: str | Callable[..., Any] = "inductor"
) -> BackboneModule:
    """Compile the blocks of what `build` makes: once for the first size, and once more for all other sizes."""
    fast = build(backbone, images)
    if any(vit.config.window or vit.config.relative_position != "none" for vit in _vits(fast)):
        raise Unavailable("windows and relative positions would be compiled for every size again")
    # Older torch has one limit for the whole process, which this package must not change.
    limit = {"recompile_limit": COMPILED} if "recompile_limit" in signature(torch.compile).parameters else {}
    for block in _blocks(fast):
        block.compile(backend=compiler, **limit)
    try:
        run(fast, images)
    except RuntimeError as error:  # such as no compiler for the GPU
        raise Unavailable(f"torch cannot compile it here ({' '.join(str(error).split())[:160]})") from error
    return fast


def recorded(backbone: BackboneModule, images: Images, build: Build) -> BackboneModule:
    """Record what `build` makes as CUDA graphs for small batches."""
    fast = build(backbone, images)
    if not isinstance(fast, ViT):
        raise Unavailable(f"a {type(backbone).__name__} is not recorded")
    if fast.config.relative_position != "none":
        raise Unavailable("tables of relative positions are computed on the CPU, which a CUDA graph cannot record")
    fast.engine = Recordings()
    try:
        for _ in range(2):  # the second is recorded
            run(fast, images)
    except RuntimeError as error:
        raise Unavailable(f"it cannot be recorded here ({' '.join(str(error).split())[:160]})") from error
    return fast


def run(backbone: BackboneModule, images: Images) -> Features:
    """Return the features, computed in eval mode and without gradients."""
    with evaluating(backbone):
        return backbone(images)


def _with_linears(
    backbone: BackboneModule, make: Make, dtype: torch.dtype, with_gelu: MakeWithGelu | None = None
) -> BackboneModule:
    """Replace the linear layers of the blocks by what `make` makes of them.

    `with_gelu` makes the first layer of an MLP with a GELU. In float32, linear layers outside blocks are replaced too,
    also in timm's networks. Below float32, the residual stream, the norms and everything outside blocks stay float32,
    which halves the error at the same speed.
    """
    fast = share(backbone)
    vits = _vits(fast)
    if dtype != torch.float32:
        _need(vits, backbone)
        _check_linears(fast)
    with torch.inference_mode(False), torch.no_grad():
        for vit in vits:
            gelu = vit.config.mlp if vit.config.mlp in POST_OPS else None
            for block in _blocks(vit):
                if gelu and with_gelu and isinstance(block.mlp, Mlp) and type(block.mlp.fc1) is nn.Linear:
                    fuse_gelu(block.mlp, with_gelu(block.mlp.fc1, gelu=gelu))
                replace_linears(block, make)
        for module in list(fast.modules()) if dtype == torch.float32 else ():
            for name, linear in module.named_children():
                if type(linear) is nn.Linear:
                    setattr(module, name, make(linear, None))
    return fast


def _check_linears(backbone: BackboneModule) -> None:
    """Raise `Unavailable` if a linear layer of a block is of another kind, such as an adapter or a clipped one."""
    kinds = {type(getattr(part, name)) for block in _blocks(backbone) for part, name, _ in places(block)}
    if strange := sorted(kind.__name__ for kind in kinds - {nn.Linear}):
        raise Unavailable(f"it has {', '.join(strange)} for a linear layer; merge adapters into it")


def _vits(backbone: BackboneModule) -> list[ViT]:
    """Return the ViTs in a backbone, itself included."""
    return [module for module in backbone.modules() if isinstance(module, ViT)]


def _need(vits: list[ViT], backbone: BackboneModule) -> None:
    if not vits:
        raise Unavailable(f"a {type(backbone).__name__} is run only in float32")


def _blocks(backbone: BackboneModule) -> list[Block]:
    return [module for module in backbone.modules() if isinstance(module, Block)]


def int8(
    backbone: BackboneModule, images: Images, make: MakeKernel = onednn, attention: torch.dtype = torch.float32
) -> BackboneModule:
    """Use 8-bit linear layers in the blocks, calibrated on the images. Everything else stays float32, except the
    products of attention if `attention` names another precision."""
    if make is onednn and (why := int8_trouble()):
        raise Unavailable(why)
    fast = share(backbone)
    vits = _vits(fast)
    _need(vits, backbone)
    if any(vit.config.clipped for vit in vits):
        _check_linears(fast)
    with watching(_blocks(fast)) as seen:
        run(fast, images)
    with torch.inference_mode(False), torch.no_grad():
        for vit in vits:
            for block in _blocks(vit):
                quantize(block, seen, vit.config.mlp, make)
                if attention != torch.float32:
                    block.attn.attend = partial(attend_in_blocks, dtype=attention)
    return fast


def openvino(
    backbone: BackboneModule, images: Images, precision: Precision, rest: Literal["fp32", "bf16"] = "fp32"
) -> BackboneModule:
    """Run the ViT in OpenVINO. `rest` is the precision of everything but 8-bit linear layers."""
    from vitbackbone.runtime.openvino import OpenVinoBackbone

    if not isinstance(backbone, ViT):
        raise Unavailable(f"a {type(backbone).__name__} is run only by torch")
    try:
        return OpenVinoBackbone(backbone, precision, images, rest)
    except (ImportError, ValueError) as error:
        raise Unavailable(str(error)) from error


# The plainest route of a device comes first; a later one must be faster by `GAIN` (see `choice.py`).
ROUTES = (
    Route("torch as it is", "fp32", "native", "cpu", plain),
    Route("oneDNN's packed linears", "fp32", "native", "cpu", packed),
    Route("oneDNN's packed linears", "bf16", "native", "cpu", partial(packed, dtype=torch.bfloat16)),
    Route("oneDNN's 8-bit linears", "int8", "native", "cpu", int8),
    Route(
        "oneDNN's 8-bit linears, attention in bfloat16",
        "int8",
        "native",
        "cpu",
        partial(int8, attention=torch.bfloat16),
    ),
    Route("OpenVINO", "fp32", "openvino", "cpu", partial(openvino, precision="fp32")),
    Route("OpenVINO", "bf16", "openvino", "cpu", partial(openvino, precision="bf16")),
    Route("OpenVINO", "int8", "openvino", "cpu", partial(openvino, precision="int8")),
    Route(
        "OpenVINO, all else in bfloat16",
        "int8",
        "openvino",
        "cpu",
        partial(openvino, precision="int8", rest="bf16"),
    ),
    Route("torch as it is", "fp32", "native", "cuda", plain),
    Route("torch in CUDA graphs", "fp32", "native", "cuda", partial(recorded, build=plain)),
    Route("torch's bfloat16", "bf16", "native", "cuda", bfloat16),
    Route("torch's bfloat16, compiled", "bf16", "native", "cuda", partial(compiled, build=bfloat16)),
    Route(
        "torch's bfloat16, compiled, in CUDA graphs",
        "bf16",
        "native",
        "cuda",
        partial(recorded, build=partial(compiled, build=bfloat16)),
    ),
)
