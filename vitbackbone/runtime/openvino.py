"""A ViT that OpenVINO runs on the CPU, behind the same contract (extra `openvino`).

Axes: `B` rows (see `packing.py`), `D` width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal, NoReturn, cast, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vitbackbone.contract import Asked, Geometry, Images, Precision, Runtime, Wanted, one_value
from vitbackbone.model import Block, Grid, Layout, Mask, Tokens, ViT
from vitbackbone.runtime.int8 import InputScaling, Int8Weights, Seen, reference, rounded, watching
from vitbackbone.runtime.openvino_tables import tables

if TYPE_CHECKING:
    import openvino as ov

HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16"}  # OpenVINO's names
ROUTE_NAMES: dict[Precision, str] = {
    "fp32": "OpenVINO",
    "bf16": "OpenVINO, all else in bfloat16",
}  # by the precision of everything but the 8-bit layers
KEPT = 6  # compiled graphs; each has the weights of its blocks once more, laid out for the CPU
COMPILING = Lock()


class OpenVinoBackbone(ViT):
    """A ViT with the same weights, `spec` and `preprocess`, whose tokens OpenVINO computes. torch does the pooling.

    One graph serves all batches and sizes of images. The size of `sample` has two more graphs: one for all batches, one
    for single images. A graph is compiled when a set of layers is first requested. This takes up to a second, and fixes
    `torch.get_num_threads()` threads. The last six graphs are kept in memory. No graph is kept on disk, because reading
    it back takes longer than compiling it.

    The parameters are a float32 copy on the CPU. Parameters and features take no gradients, and images that need
    gradients are refused. torch recomputes `attention`.

    `precision`: `"fp32"` equals the plain backbone to about 1e-6. `"bf16"` needs a CPU with instructions for it. In
    `"int8"` the linear layers of the blocks multiply 8-bit integers.
    `sample`: a batch as the backbone takes it. It calibrates 8 bits. If its images have one size, images of that size
    run up to a tenth faster than others.
    `rest`: the precision of everything else with `"int8"`, `"fp32"` or `"bf16"`.

    Raises `ImportError` if OpenVINO is not installed. Raises `ValueError` if the backbone is not a plain ViT in float32
    on the CPU. The same holds for a precision that is unknown or that this CPU lacks, and for int8 without a sample.
    """

    frozen = True

    def __init__(
        self,
        backbone: ViT,
        precision: Precision = "fp32",
        sample: Images | None = None,
        rest: Literal["fp32", "bf16"] = "fp32",
    ) -> None:
        if not isinstance(backbone, ViT):
            raise ValueError(
                f"backbone is a {type(backbone).__name__}; want a ViT, because OpenVinoBackbone runs nothing else"
            )
        if precision not in get_args(Precision):
            raise ValueError(f"precision={precision!r}; want one of {', '.join(get_args(Precision))}")
        if rest not in HINTS:
            raise ValueError(f"rest={rest!r}; want one of {', '.join(HINTS)}")
        if backbone.config.tubelet or backbone.config.channel_groups:
            what = "takes clips" if backbone.config.tubelet else "has patches for each group of channels"
            raise ValueError(f"{backbone.spec.name} {what}, which have no graph here")
        if backbone.config.views:
            raise ValueError(f"{backbone.spec.name} is made for several views of a scene, which have no graph here")
        if backbone.config.sinks or backbone.config.experts:
            raise ValueError(f"{backbone.spec.name} has sinks or experts, which have no graph here")
        if precision == "int8" and sample is None:
            raise ValueError("precision='int8' needs calibration: give a batch of typical images as `sample`")
        if precision == "int8" and backbone.config.clipped:
            raise ValueError("precision='int8': the backbone clamps its linear layers, which have no 8-bit kernel here")
        hint = HINTS[rest if precision == "int8" else precision]
        capabilities = _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if hint == HINTS["bf16"] and "BF16" not in capabilities:  # OpenVINO would silently run float32
            raise ValueError("bf16: this CPU has no instructions for bfloat16; use 'fp32'")
        if precision == "int8" and (why := _int8_trouble()):
            raise ValueError(f"precision='int8': {why}; use precision='fp32'")
        with torch.device("meta"):
            super().__init__(backbone.config, backbone.preprocess, backbone.spec.name)
        state = {key: value.detach().clone() for key, value in backbone.state_dict().items()}
        if state.keys() != self.state_dict().keys():
            strange = ", ".join(sorted(state.keys() ^ self.state_dict().keys())[:4])
            raise ValueError(f"the backbone has other parameters than a plain ViT ({strange}); merge adapters into it")
        super().load_state_dict(state, assign=True)
        self.requires_grad_(False).eval()
        if self.pos_embed is not None:
            self.pos_embed.keep()
        self._check_parameters()
        self.seen: Mapping[nn.Module, Seen] = {}  # the linear layers that run in 8 bits
        geometry = None if sample is None else Geometry.of(sample, self.config.patch_size)
        if precision == "int8" and sample is not None and geometry is not None:
            with watching([cast(Block, block) for block in self.blocks]) as self.seen, torch.inference_mode():
                super().tokens(sample, geometry, self.last)
        self.usual = geometry.grid if geometry is not None and one_value(geometry.grids) else None
        self.precision, self.hint = precision, hint
        self.runtime = Runtime(precision, "openvino", ROUTE_NAMES[rest if precision == "int8" else "fp32"])
        self._compiled: dict[_Use, CompiledGraph] = {}

    def load_state_dict(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Raise `ValueError`, because the graphs keep the weights that they were made with."""
        raise ValueError("OpenVinoBackbone cannot change its weights; load these into a ViT and make a new one")

    def tokens(self, images: Images, geometry: Geometry, asked: Asked, mask: Mask | None = None) -> Tokens:
        """See `ViT.tokens`. Images of several grids run grid by grid."""
        self._check_parameters()
        batches = self.batches(images, geometry)
        if torch.is_grad_enabled() and any(batch.requires_grad for _, batch in batches):
            raise ValueError(
                "OpenVINO computes no gradients for images; call it under torch.no_grad(), or the plain ViT"
            )
        wanted = frozenset(asked.wanted)
        use = _Use(wanted, asked.part == "prefix", torch.get_num_threads())
        parts = [self._infer(use, batch, grid) for grid, batch in batches]
        layout = Layout.of(geometry.grids)
        return {each: layout.join(of) for each, of in zip(sorted(wanted), zip(*parts, strict=True), strict=True)}

    def _infer(self, use: "_Use", images: Float[Tensor, "B 3 H W"], grid: Grid) -> list[Tensor]:
        images = images.float()
        if grid == self.usual:
            return self._compile(replace(use, grid=grid, single=len(images) == 1)).infer({"images": images})
        return self._compile(use).infer({"images": images, **tables(self, use.deepest, grid)})

    def _compile(self, use: "_Use") -> "CompiledGraph":
        from vitbackbone.runtime.openvino_graph import build

        with COMPILING:
            if use not in self._compiled:
                while len(self._compiled) >= KEPT:
                    self._compiled.pop(next(iter(self._compiled)))
                settings = {
                    "INFERENCE_PRECISION_HINT": self.hint,
                    "INFERENCE_NUM_THREADS": use.threads,
                    "NUM_STREAMS": 1,
                    "ENABLE_CPU_PINNING": False,  # with pinning, all processes would share the first cores
                }
                model = build(self, use.wanted, use.prefix, self.seen, use.grid, 1 if use.single else -1)
                graph = CompiledGraph(_core().compile_model(model, "CPU", settings))
                if use.grid is None:
                    # OpenVINO (2026.4) fits its kernels to the first shapes. If those had a single token, later
                    # features of longer rows would be wrong.
                    grid, side = (3, 5), self.config.patch_size
                    images = torch.zeros(2, self.config.channels, side * grid[0], side * grid[1])
                    graph.infer({"images": images, **tables(self, use.deepest, grid)})
                self._compiled[use] = graph
            return self._compiled[use]

    def _check_parameters(self) -> None:
        """Raises `ValueError` if OpenVINO can no longer run the parameters."""
        first = self.patch_embed.proj.weight
        if (first.dtype, first.device.type) != (torch.float32, "cpu"):
            raise ValueError(
                f"the parameters are {first.dtype} on {first.device}; OpenVINO wants float32 on the CPU: .float().cpu()"
            )
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            raise ValueError("OpenVINO computes no gradients for parameters; train the plain ViT, then convert it")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": {}}  # compiled graphs belong to this process


@dataclass(frozen=True)
class _Use:
    """The calls that a compiled graph serves."""

    wanted: frozenset[Wanted]
    prefix: bool
    threads: int
    grid: Grid | None = None  # of all images
    single: bool = False  # one image at a time

    @property
    def deepest(self) -> int:
        return max(layer for layer, _ in self.wanted)


class CompiledGraph:
    """A compiled graph and its idle requests. A new request takes milliseconds to allocate its memory, and two threads
    may not share one."""

    def __init__(self, compiled: "ov.CompiledModel") -> None:
        self.compiled = compiled
        self.waiting: list[ov.InferRequest] = []

    def infer(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """Return the outputs of the graph for tensors by the names of its inputs."""
        arrays = {name: tensor.detach().contiguous().numpy() for name, tensor in inputs.items()}
        try:
            request = self.waiting.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        outputs = request.infer(arrays, share_inputs=True, share_outputs=False)  # copies
        self.waiting.append(request)
        return [torch.from_numpy(outputs[i]) for i in range(len(outputs))]


@cache
def _int8_trouble() -> str:
    """Return why OpenVINO's 8-bit products cannot be used here; empty if they agree with torch's."""
    from vitbackbone.runtime.openvino_graph import build_linear

    generator = torch.Generator().manual_seed(0)
    linear, x = nn.Linear(96, 80), torch.rand(37, 96, generator=generator)  # large sums of equal sign
    linear.weight.data, linear.bias.data = (torch.rand(shape, generator=generator) for shape in ((80, 96), (80,)))
    seen = Seen.of(x)
    factors, steps = InputScaling.of(seen, linear.weight.detach())
    weights = Int8Weights.of(linear.weight.detach() * factors, linear.bias.detach())
    want = reference(weights)(rounded(x / (factors * steps.scale), steps.zero), steps, None, None)
    compiled = _core().compile_model(build_linear(linear, seen), "CPU", {"INFERENCE_PRECISION_HINT": HINTS["fp32"]})
    got = torch.from_numpy(compiled(x.numpy())[0])
    if not (got - want).abs().max() <= 2e-3 * want.abs().max():
        return "OpenVINO's 8-bit products are wrong here, as on CPUs without instructions for them"
    return ""


@cache
def _core() -> "ov.Core":
    try:
        import openvino
    except ImportError as error:
        raise ImportError("OpenVinoBackbone needs OpenVINO: pip install 'vitbackbone[openvino]'") from error
    return openvino.Core()
