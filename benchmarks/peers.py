"""One network in timm, transformers, ONNX Runtime, OpenVINO and here, each with its own fast settings.

All have the weights that timm made. transformers has its own, because its names differ.
"""

import os
import tempfile
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn

from benchmarks.peak import has_bfloat16
from benchmarks.timing import DEVICE, ON_GPU, noise
from vitbackbone import BackboneModule, ViTConfig, load_backbone
from vitbackbone.contract import Precision

Run = Callable[[Tensor], object]


@dataclass(frozen=True)
class Contestant:
    name: str
    precision: Precision
    run: Run  # images to tokens


@dataclass
class Field:
    """The contestants that run, and the reason of each that does not."""

    contestants: list[Contestant] = field(default_factory=list)
    absent: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, precision: Precision, make: Callable[[], Run]) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.contestants.append(Contestant(name, precision, make()))
        except (ImportError, RuntimeError, ValueError, NotImplementedError) as error:
            self.absent[f"{name} {precision}"] = " ".join(str(error).split())[:160]


class Tokens(nn.Module):
    """A module that returns the tokens of a timm model, for exporters."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_features(x)


def from_timm(name: str) -> tuple[Tokens, BackboneModule]:
    """Return a timm model with random weights, and the backbone with the same weights."""
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, num_classes=0).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
        backbone = load_backbone(name, weights=file)
    return Tokens(model).to(DEVICE).requires_grad_(False), backbone.to(DEVICE)


def entrants(name: str, precisions: Sequence[Precision]) -> tuple[Field, BackboneModule]:
    """Return all peers that can run the model here, in each precision, and our backbone as it is."""
    theirs, backbone = from_timm(name)
    config = backbone.config
    assert isinstance(config, ViTConfig)
    runs = Field()
    runs.add("timm", "fp32", lambda: theirs)
    runs.add("transformers", "fp32", lambda: in_transformers(config))
    runs.add("ours, as it is", "fp32", lambda: backbone)
    if not ON_GPU:
        example = noise(2, 3, *config.image_size)
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "model.onnx"
            runs.add("ONNX Runtime", "fp32", lambda: in_onnxruntime(export_onnx(theirs, example, graph)))
            if "int8" in precisions and graph.exists():
                runs.add("ONNX Runtime", "int8", lambda: in_onnxruntime(quantized_onnx(graph)))
        for precision in precisions:
            runs.add("OpenVINO", precision, lambda p=precision: in_openvino(theirs, example, p))
    if "bf16" in precisions:
        runs.add("timm", "bf16", lambda: timm_bfloat16(name))
        if ON_GPU:
            runs.add("timm, compiled", "bf16", lambda: torch.compile(timm_bfloat16(name)))
    return runs, backbone


def timm_bfloat16(name: str) -> Run:
    if not has_bfloat16():
        raise ValueError("this processor has no instructions for bfloat16")
    model, _ = from_timm(name)
    model = model.bfloat16()
    return lambda x: model(x.bfloat16())


def in_transformers(config: ViTConfig) -> Run:
    shared = {
        "hidden_size": config.dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "image_size": config.image_size[0],
        "patch_size": config.patch_size,
    }
    model: nn.Module
    if config.layer_scale:
        model = transformers.Dinov2Model(transformers.Dinov2Config(**shared))
    else:
        plain = transformers.ViTConfig(**shared, intermediate_size=config.mlp_dim)
        model = transformers.ViTModel(plain, add_pooling_layer=False)
    model = model.eval().to(DEVICE)
    return lambda x: model(pixel_values=x)


# ---- exported -----------------------------------------------------------------------------------------------------


def export_onnx(model: nn.Module, example: Tensor, file: Path) -> Path:
    batch = torch.export.Dim("batch")
    torch.onnx.export(model, (example,), file, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
    return file


def quantized_onnx(file: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out = file.with_name("int8.onnx")
    quantize_dynamic(file, out, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul", "Gemm"])
    return out


def in_onnxruntime(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # or it takes cores from who is next
    session = onnxruntime.InferenceSession(os.fspath(file), options, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda x: session.run(None, {given.name: x.numpy()})


def in_openvino(model: nn.Module, example: Tensor, precision: Precision) -> Run:
    import openvino as ov

    core = ov.Core()
    if precision == "bf16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise ValueError("this processor has no instructions for bfloat16")
    graph = ov.convert_model(model, example_input=example)
    if precision == "int8":
        import nncf

        samples = nncf.Dataset([noise(*example.shape, seed=seed).numpy() for seed in range(8)])
        graph = nncf.quantize(graph, samples, model_type=nncf.ModelType.TRANSFORMER)
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    compiled = core.compile_model(graph, "CPU", settings)
    return lambda x: compiled(x.numpy())[0]
