"""The adapter over transformers against the image encoder itself, on models saved whole and loaded by name."""

import contextlib
import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.coverage.transformers import compare, tiny_model
from tests.backbones import images
from tests.helpers import relative_error
from vitbackbone import BackboneModule, load_backbone
from vitbackbone.checkpoints import ConversionError
from vitbackbone.networks import TransformersBackbone, TransformersConfig
from vitbackbone.networks.transformers.towers import config_of, find_towers

TOLERANCE = 1e-5
# A ViT within a composite, another beside a text tower, CNNs, hierarchies, packed patches with and without a merger,
# padded patches, tokens after the patches, timm's network within a directory, a backbone under a decoder
QUICK = ["altclip", "resnet", "segformer", "qwen2_vl", "siglip2", "yolos", "convnextv2", "detr", "paddleocr_vl"]
QUICK += ["llama4", "donut-swin", "vitdet"]
SLOW = [
    "blip",
    "bridgetower",
    "cvt",
    "deepseek_ocr2",
    "dinov3_convnext",
    "efficientnet",
    "florence2",
    "focalnet",
    "fuyu",
    "gemma4_unified",
    "git",
    "glm4v",
    "glm_ocr",
    "groupvit",
    "hiera",
    "inkling_mm_model",
    "instructblip",
    "internvl",
    "janus",
    "janus_vqgan",
    "kimi_k25",
    "layoutlmv3",
    "levit",
    "lw_detr",
    "maskformer",
    "mistral_large4",
    "mobilenet_v2",
    "mobilevit",
    "molmo2",
    "nemotron_h_omni",
    "neomme",
    "owlvit",
    "poolformer",
    "pvt_v2",
    "qwen3_vl",
    "regnet",
    "rt_detr",
    "sam2",
    "superpoint",
    "swiftformer",
    "vit_msn",
]
GLOBAL = {"efficientnet", "mobilenet_v2"}  # by squeezed channels, and by a wide receptive field


@cache
def model_of(model_type: str) -> Any:
    return tiny_model(model_type)


@pytest.fixture(scope="module", params=[*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, BackboneModule, str]:
    folder = tmp_path_factory.mktemp(request.param)
    model = save(request.param, folder)
    return model, load_backbone(folder), request.param


def save(model_type: str, folder: Path) -> Any:
    model = model_of(model_type)
    model.save_pretrained(folder)
    return model


def test_features_equal_the_encoder_in_the_model(saved: tuple[Any, BackboneModule, str]) -> None:
    model, backbone, model_type = saved
    _, error = compare(model, backbone, model_type)
    assert error is not None
    assert error < TOLERANCE


def test_a_patch_moves_the_features_at_its_own_place(saved: tuple[Any, BackboneModule, str]) -> None:
    """The maps lie as the image does: a change at the top right shows at the top right of each layer."""
    _, backbone, model_type = saved
    if model_type in GLOBAL:
        pytest.skip("every place of the map reads the whole image")
    spec = backbone.spec
    x = images(1, 3, *spec.image_size)
    changed, side = x.clone(), max(spec.strides)
    changed[:, :, :side, -side:] += 2
    layers = list(range(spec.depth))
    with torch.inference_mode():
        before, after = (backbone.forward_layers(each, layers, norm=False) for each in (x, changed))
    for layer in layers:
        moved = (after[layer].patches - before[layer].patches)[0].norm(dim=0)
        row, column = divmod(int(moved.argmax()), moved.shape[1])
        near = side // spec.strides[layer]
        assert row <= near
        assert column >= moved.shape[1] - 1 - near


def test_other_sizes_run_or_are_refused(saved: tuple[Any, BackboneModule, str]) -> None:
    """At sizes that need no padding, the features are the encoder's own there."""
    _, backbone, _ = saved
    if not isinstance(backbone, TransformersBackbone):
        pytest.skip("a native family, which has its own tests")
    spec = backbone.spec
    height, width = spec.image_size
    if backbone.sizes is None:
        with pytest.raises(ValueError, match="accepts only images of"):
            backbone(images(1, 3, height, width + 32))
        return
    odd = images(1, 3, height + 5, width - 3)
    with torch.inference_mode():
        features = backbone(odd)
        padded = backbone.sizes.padded((height + 5, width - 3))
        whole = backbone(F.pad(odd, (0, padded[1] - odd.shape[3], 0, padded[0] - odd.shape[2])))
    h, w = features.grid
    assert (h, w) == (-(-odd.shape[2] // spec.stride), -(-odd.shape[3] // spec.stride))
    assert relative_error(features.patches, whole.patches[:, :, :h, :w]) < TOLERANCE
    layers = list(range(spec.depth))
    for layer, each in zip(layers, backbone.forward_layers(odd, layers, norm=False), strict=True):
        stride = spec.strides[layer]
        assert each.patches.shape[1:] == (
            spec.dims[layer],
            -(-odd.shape[2] // stride),
            -(-odd.shape[3] // stride),
        )


def test_packed_patches_come_back_in_the_order_of_the_image() -> None:
    """Qwen2-VL keeps the patches of a 2 x 2 square together."""
    model = model_of("qwen2_vl")
    backbone = adapter("qwen2_vl")
    x = images(2, 3, 56, 84)
    with torch.no_grad():
        tokens = model.visual(**backbone.encoder.feed(x)).last_hidden_state
        got = backbone(x).patches
    want = tokens.view(2, 2, 3, 2, 2, -1).permute(0, 5, 1, 3, 2, 4).reshape(got.shape)
    assert relative_error(got, want) < TOLERANCE


def test_tokens_behind_the_patches_are_registers() -> None:
    """YOLOS has CLS in front and a hundred detection tokens at the end."""
    model, backbone = model_of("yolos"), adapter("yolos")
    x = images(1, 3, *backbone.spec.image_size)
    with torch.no_grad():
        tokens = model(x).last_hidden_state
        got = backbone(x)
    h, w = got.grid
    assert relative_error(got.cls, tokens[:, 0]) < TOLERANCE
    assert relative_error(got.tokens, tokens[:, 1 : 1 + h * w]) < TOLERANCE
    assert relative_error(got.registers, tokens[:, 1 + h * w :]) < TOLERANCE


def test_attention_is_transformers_own() -> None:
    model = copy.deepcopy(model_of("altclip"))
    backbone = adapter("altclip")
    x = images(2, 3, *backbone.spec.image_size)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        want = model.vision_model(x, output_attentions=True).attentions
        got = backbone.attention(x, [1, 0])
    assert relative_error(got[0].weights, want[1]) < TOLERANCE
    assert relative_error(got[1].weights, want[0]) < TOLERANCE
    with pytest.raises(ValueError, match="attention"):
        adapter("resnet").attention(images(1, 3, 64, 64), [0])


def adapter(model_type: str) -> TransformersBackbone:
    """Return a model's image encoder in the adapter, even if the model type has a native network."""
    model = model_of(model_type)
    tower = find_towers(model)[0]
    config = TransformersConfig(json.dumps(model.config.to_dict()), type(model).__name__, tower)
    encoder = copy.deepcopy(model.get_submodule(tower))
    return TransformersBackbone(config, None, model_type, encoder, config_of(model, tower)).eval()


def test_no_block_runs_past_the_deepest() -> None:
    backbone = adapter("yolos")
    ran: list[int] = []
    blocks = backbone.encoder.blocks
    for i, block in enumerate(blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    backbone.forward_layers(images(1, 3, 64, 64), [0], norm=False)
    assert ran == [0]


def test_a_small_image_leaves_the_windows_of_a_swin_as_they_were() -> None:
    backbone = adapter("donut-swin")
    x = images(1, 3, 224, 224)
    with torch.inference_mode():
        before = backbone(x).patches
        with contextlib.suppress(RuntimeError):  # transformers itself fails on maps smaller than a window
            backbone.encoder.run(images(1, 3, 64, 64), backbone.shapes, {0}, True)
        after = backbone(x).patches
    assert torch.equal(before, after)


# ---- loading ------------------------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    save("resnet", tmp_path)
    return tmp_path


def change(folder: Path, **tensors: Tensor | None) -> None:
    file = folder / "model.safetensors"
    state = load_file(file)
    for key, tensor in tensors.items():
        if tensor is None:
            del state[key]
        else:
            state[key] = tensor
    save_file(state, file, {"format": "pt"})


def test_a_missing_tensor_is_an_error_that_names_it(directory: Path) -> None:
    change(directory, **{"embedder.embedder.normalization.weight": None})
    with pytest.raises(ConversionError, match=r"lacks these tensors of the encoder: embedder\.embedder\.norm"):
        load_backbone(directory)


def test_a_tensor_of_another_shape_is_an_error(directory: Path) -> None:
    change(directory, **{"embedder.embedder.normalization.weight": torch.ones(5)})
    with pytest.raises(ConversionError, match=r"embedder\.embedder\.normalization\.weight"):
        load_backbone(directory)


def test_a_tensor_that_the_encoder_lacks_is_an_error(directory: Path) -> None:
    change(directory, **{"embedder.embedder.normalization.more": torch.ones(5)})
    with pytest.raises(ConversionError, match=r"normalization\.more"):
        load_backbone(directory)


def test_heads_are_dropped(directory: Path) -> None:
    change(directory, **{"classifier.1.weight": torch.ones(5)})
    assert isinstance(load_backbone(directory), TransformersBackbone)


def test_no_code_of_the_repository_runs(directory: Path) -> None:
    (directory / "evil.py").write_text("raise SystemExit('this code ran')")
    edit(directory, auto_map={"AutoModel": "evil.Model", "AutoConfig": "evil.Config"}, dtype="bfloat16")
    backbone = load_backbone(directory)
    assert {parameter.dtype for parameter in backbone.parameters()} == {torch.float32}


def edit(folder: Path, **settings: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"model_type": "no_such_type"}, "no_such_type"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000; want at most"),
        ({"embedding_size": "wide"}, "refuses this config.json|cannot build"),
        ({"model_type": "bert", "architectures": ["BertModel"]}, "no image encoder|takes images"),
    ],
)
def test_a_config_that_describes_no_image_encoder_is_refused(directory: Path, settings: Any, text: str) -> None:
    edit(directory, **settings)
    with pytest.raises(ValueError, match=text) as error:
        load_backbone(directory)
    assert "config.json" in str(error.value)


def test_a_missing_transformers_is_named(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ValueError, match=r"transformers is not installed; pip install 'vitbackbone\[hf\]'"):
        load_backbone(directory)


def test_an_untrained_encoder_needs_no_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    features = load_backbone(directory, weights="random")(images(1, 3, 64, 64))
    assert torch.isfinite(features.patches).all()


def test_preprocessing_is_the_processor_files(directory: Path) -> None:
    processor = transformers.ViTImageProcessor(size={"height": 80, "width": 64}, image_mean=[0.1, 0.2, 0.3])
    processor.save_pretrained(directory)
    preprocess = load_backbone(directory).preprocess
    assert (preprocess.image_size, preprocess.mean) == ((80, 64), (0.1, 0.2, 0.3))


def test_a_resize_to_a_number_of_patches_becomes_one_to_the_encoders_size(tmp_path: Path) -> None:
    save("qwen2_vl", tmp_path)
    transformers.Qwen2VLImageProcessor().save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    assert backbone.preprocess.mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert backbone(backbone.preprocess.batch([torch.zeros(3, 90, 70, dtype=torch.uint8)])).patches.isfinite().all()
