"""Backbones in the programs that take one: torchvision's four detectors, detectron2's contract, transformers."""

import math
import shutil
import sys
from collections import namedtuple
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import roi_align
from transformers import (
    AutoBackbone,
    DetrConfig,
    DetrForObjectDetection,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

import vitbackbone
from heads import SimpleFeaturePyramid, as_detectron2, as_torchvision, freeze
from heads.adapters.huggingface import PyramidBackbone, PyramidConfig
from heads.adapters.torchvision import TorchvisionBackbone
from tests.helpers import randomise, relative_error, tiny_vit
from tests.timm_networks import BACKBONES
from vitbackbone import FusedBackbone, Member, Preprocess, ViT, load_backbone

DETECTORS = {"faster": FasterRCNN, "mask": MaskRCNN, "retina": RetinaNet, "fcos": FCOS}
SIZES = [(480, 360), (333, 517)]
COLOURS = Preprocess(mean=(0.1, 0.5, 0.7), std=(0.2, 0.3, 0.4))  # unlike any that a detector might fall back on
FEW = {"rpn_post_nms_top_n_train": 50, "rpn_post_nms_top_n_test": 20, "box_batch_size_per_image": 16}


def vit(patch: int) -> ViT:
    backbone = tiny_vit(patch_size=patch, image_size=(2 * patch, 2 * patch))
    backbone.preprocess = COLOURS
    return backbone


def body(patch: int) -> TorchvisionBackbone:
    backbone = vit(patch)
    return as_torchvision(backbone, SimpleFeaturePyramid(backbone.spec, channels=32))


def detector(kind: str, module: TorchvisionBackbone) -> nn.Module:
    """Images are taken at their own size."""
    few = FEW if kind in ("faster", "mask") else {}
    return DETECTORS[kind](module, num_classes=3, min_size=1, max_size=517, **module.detector_kwargs, **few)


def at_own_size(model: nn.Module) -> nn.Module:
    model.transform.resize = lambda image, target=None: (image, target)
    return model


def photos(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(3, *size, generator=generator) for size in sizes]


def targets(images: list[Tensor]) -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[20.0, 30.0, 90.0, 100.0], [50.0, 10.0, 150.0, 180.0]])
    return [
        {
            "boxes": boxes,
            "labels": torch.tensor([1, 2]),
            "masks": torch.ones(2, *image.shape[1:], dtype=torch.uint8),
        }
        for image in images
    ]


# ---- torchvision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("kind", DETECTORS)
def test_detectors_train_and_detect_at_mixed_sizes(kind: str, patch: int) -> None:
    module = body(patch)
    model = at_own_size(detector(kind, module)).train()
    images = photos(*SIZES)
    losses = model(images, targets(images))
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    for part in (module.attached.backbone, module.attached.heads):
        gradients = [p.grad for p in part.parameters() if p.grad is not None and p.grad.any()]
        assert len(gradients) > 0.8 * len(list(part.parameters()))
    with torch.inference_mode():
        found = model.eval()(images)
    for image, one in zip(images, found, strict=True):
        height, width = image.shape[1:]
        assert (one["boxes"] >= 0).all()
        assert (one["boxes"] <= torch.tensor([width, height, width, height])).all()


@pytest.mark.parametrize("kind", DETECTORS)
@pytest.mark.parametrize("patch", [14, 16])
def test_the_detector_sees_what_the_backbone_does_normalised_once(kind: str, patch: int) -> None:
    module = body(patch)
    model = at_own_size(detector(kind, module)).eval()
    given = []
    module.attached.backbone.register_forward_pre_hook(lambda _, args: given.append(args[0]), prepend=True)
    module.attached.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    image = photos((333, 200))[0]
    with torch.inference_mode():
        model([image])
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (COLOURS.mean, COLOURS.std))
    assert torch.allclose(given[0][0, :, :333, :200], (image - mean) / std, atol=1e-5)
    assert given[0].shape == (1, 3, 384, 256)
    assert not given[0][0, :, 333:].any()


@pytest.mark.parametrize(
    ("patch", "size"), [(4, (40, 70)), *((patch, size) for patch in (14, 16) for size in (*SIZES, (40, 70), (65, 129)))]
)
def test_anchors_and_regions_lie_where_the_maps_do(patch: int, size: tuple[int, int]) -> None:
    """Small images are among them: torchvision by itself would take their padding for resolution."""
    module = body(patch)
    model = at_own_size(detector("faster", module)).eval()
    with torch.inference_mode():
        images, _ = model.transform(photos(size))
        levels = module(images.tensors)
        padded = images.tensors.shape[2:]
        anchors = model.rpn.anchor_generator(ImageList(images.tensors, [size]), list(levels.values()))[0]
        start = 0
        for i, (level, stride) in enumerate(zip(levels.values(), (4, 8, 16, 32, 64), strict=True)):
            h, w = level.shape[2:]
            assert (h * stride, w * stride) == tuple(padded)
            here = anchors[start : start + 3 * h * w].view(h, w, 3, 4)
            start += 3 * h * w
            centres = (here[..., :2] + here[..., 2:]) / 2
            rows, columns = torch.meshgrid(torch.arange(h) * stride, torch.arange(w) * stride, indexing="ij")
            assert torch.equal(centres, torch.stack([columns, rows], dim=-1)[:, :, None].expand_as(centres).float())
            assert math.isclose((here[0, 0, 1, 2] - here[0, 0, 1, 0]).item(), 8 * 2 ** (i + 2))
        assert start == len(anchors)
        boxes = torch.tensor([[3.0, 5.0, 30.0, 28.0]])  # small: of the finest level
        for pool, side in ((model.roi_heads.box_roi_pool, 7), (module.detector_kwargs["mask_roi_pool"], 14)):
            ours = pool(levels, [boxes], images.image_sizes)
            assert torch.equal(ours, roi_align(levels["0"], [boxes], side, spatial_scale=1 / 4, sampling_ratio=2))


def test_regions_are_pooled_from_the_level_of_their_size() -> None:
    pool = body(16).detector_kwargs["box_roi_pool"]
    levels = {str(i): torch.full((1, 1, 512 >> i, 512 >> i), float(i)) for i in range(4)}
    boxes = torch.tensor([[0.0, 0.0, side, side] for side in (100.0, 130.0, 250.0, 500.0)])
    assert pool(levels, [boxes], [(2048, 2048)]).flatten(1).mean(1).tolist() == [0, 1, 2, 3]


def test_a_frozen_backbone_stays_as_it_is_and_the_pyramid_learns() -> None:
    module = body(16)
    freeze(module.attached.backbone)
    model = at_own_size(detector("faster", module)).train()
    assert not module.attached.backbone.training
    assert module.attached.heads.training
    images = photos((96, 64))
    small = [{key: value[:1] for key, value in target.items()} for target in targets(images)]
    sum(model(images, small).values()).backward()
    assert all(p.grad is None for p in module.attached.backbone.parameters())
    assert all(p.grad is not None for p in module.attached.heads.parameters())


@pytest.mark.parametrize("wrong", ["normalised", "bytes", "nan"])
def test_images_that_are_not_in_0_to_1_are_refused(wrong: str) -> None:
    model = at_own_size(detector("retina", body(16))).eval()
    image = photos((64, 64))[0]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (COLOURS.mean, COLOURS.std))
    image = {"normalised": (image - mean) / std, "bytes": 255 * image, "nan": image * float("nan")}[wrong]
    with pytest.raises(ValueError, match=r"want \[0, 1\], because it normalises images itself"):
        model([image])


def test_augmented_images_may_step_over_0_to_1_a_little() -> None:
    at_own_size(detector("retina", body(16))).eval()([1.4 * photos((64, 64))[0] - 0.2])


def test_networks_with_levels_and_several_backbones_as_one() -> None:
    for backbone, colours in [
        (BACKBONES["convnext"], BACKBONES["convnext"].preprocess),
        (FusedBackbone([Member(vit(14), -2, norm=False), Member(vit(16), -1, norm=True)]), COLOURS),
    ]:
        module = as_torchvision(backbone)
        assert module.out_channels == 256
        assert module.detector_kwargs["image_mean"] == list(colours.mean)
        assert module.detector_kwargs["image_std"] == list(colours.std)
        with torch.inference_mode():
            levels = module(torch.zeros(1, 3, 128, 64))
        assert [tuple(level.shape[2:]) for level in levels.values()] == [(32, 16), (16, 8), (8, 4), (4, 2), (2, 1)]


def test_a_pyramid_of_another_backbone_and_colours_that_are_unknown_are_refused() -> None:
    for adapt in (as_torchvision, as_detectron2):
        with pytest.raises(ValueError, match="was made for tiny, which is not tiny: strides"):
            adapt(vit(16), SimpleFeaturePyramid(vit(14).spec))
        plain = vit(16)
        plain.preprocess = SimpleNamespace(image_size=(32, 32))
        with pytest.raises(ValueError, match="preprocessed by a SimpleNamespace"):
            adapt(plain)


# ---- detectron2 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [14, 16])
def test_the_contract_of_detectron2(patch: int) -> None:
    backbone = vit(patch)
    pyramid = randomise(SimpleFeaturePyramid(backbone.spec, channels=8))
    module = as_detectron2(backbone, pyramid)
    assert module.size_divisibility == 32
    assert module.padding_constraints == {"size_divisibility": 32, "square_size": 0}
    images = torch.randn(2, 3, 352, 544)  # 333 x 517 as detectron2 pads it
    shapes = module.output_shape()
    with torch.inference_mode():
        maps = module(images)
        levels = pyramid(backbone(images))
    assert list(maps) == list(shapes) == ["p2", "p3", "p4", "p5", "p6"]
    for (name, x), level in zip(maps.items(), levels.values(), strict=True):
        shape = shapes[name]
        assert (shape.channels, shape.height, shape.width) == (8, None, None)
        assert shape.stride == 2 ** int(name[1:])
        assert x.shape == (2, 8, -(-352 // shape.stride), -(-544 // shape.stride))
        assert torch.equal(x, level)
    assert module.detector_kwargs["pixel_mean"] == pytest.approx([25.5, 127.5, 178.5])
    assert module.detector_kwargs["pixel_std"] == pytest.approx([51, 76.5, 102])
    assert module.detector_kwargs["input_format"] == "RGB"


def test_shapes_are_of_detectron2s_own_type_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = namedtuple("theirs", ["channels", "height", "width", "stride"], defaults=[None] * 4)
    layers = ModuleType("detectron2.layers")
    layers.ShapeSpec = theirs
    monkeypatch.setitem(sys.modules, "detectron2", ModuleType("detectron2"))
    monkeypatch.setitem(sys.modules, "detectron2.layers", layers)
    shapes = as_detectron2(vit(16)).output_shape()
    assert shapes["p3"] == theirs(channels=256, stride=8)


# ---- transformers --------------------------------------------------------------------------------------------------

DETR = {
    "num_labels": 3, "num_queries": 5, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
}  # fmt: skip
UPERNET = {"num_labels": 5, "hidden_size": 16, "auxiliary_in_channels": 256, "auxiliary_channels": 8}
ALL = ["p2", "p3", "p4", "p5"]


def detr() -> DetrForObjectDetection:
    return DetrForObjectDetection(DetrConfig(backbone_config=PyramidConfig(out_features=["p4"]), **DETR))


def upernet() -> UperNetForSemanticSegmentation:
    return UperNetForSemanticSegmentation(UperNetConfig(backbone_config=PyramidConfig(out_features=ALL), **UPERNET))


def test_auto_backbone_hands_out_the_levels() -> None:
    torch.manual_seed(0)
    model = AutoBackbone.from_config(PyramidConfig(backbone="nano", out_features=["p3", "p5"])).eval()
    assert isinstance(model, PyramidBackbone)
    assert (model.stage_names, model.out_features, model.out_indices) == (ALL, ["p3", "p5"], [1, 3])
    assert model.channels == [256, 256]
    images = torch.randn(2, 3, 40, 70)
    with torch.inference_mode():
        maps = model(images).feature_maps
        levels = model.attached.heads["pyramid"](load_backbone("nano")(images))
    assert [x.shape for x in maps] == [(2, 256, 5, 9), (2, 256, 2, 3)]  # ceil(H / stride), ceil(W / stride)
    for x, level in zip(maps, levels.values(), strict=False):
        assert torch.equal(x, level[:, :, : x.shape[2], : x.shape[3]])
    assert len(model(images, return_dict=False)[0]) == 2
    model.out_indices = [3]  # as transformers allows: fewer of them
    assert [x.shape[3] for x in model(images).feature_maps] == [3]


def test_the_default_is_the_last_level_and_indices_do_as_well() -> None:
    assert PyramidConfig().out_features == ["p5"]
    assert PyramidConfig(out_indices=[0, 2]).out_features == ["p2", "p4"]
    with pytest.raises(ValueError, match="subset of stage_names"):
        PyramidConfig(out_features=["p9"])


def test_detr_runs_and_learns() -> None:
    torch.manual_seed(0)
    model = detr()
    images = torch.randn(2, 3, 75, 101)
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.2, 0.2]])} for _ in range(2)]
    out = model(images, labels=labels)
    assert out.pred_boxes.shape == (2, 5, 4)
    assert torch.isfinite(out.loss)
    out.loss.backward()
    attached = model.model.backbone.model.attached
    assert all(p.grad is not None for p in attached.heads.parameters())
    assert attached.backbone.blocks[0].attn.qkv.weight.grad.any()


def test_upernet_runs_and_learns_on_a_frozen_backbone() -> None:
    torch.manual_seed(0)
    model = upernet()
    freeze(model.backbone.attached.backbone)
    model.train()
    labels = torch.randint(0, 5, (2, 75, 101))
    out = model(torch.randn(2, 3, 75, 101), labels=labels)
    assert out.logits.shape == (2, 5, 75, 101)
    out.loss.backward()
    assert all(p.grad is None for p in model.backbone.attached.backbone.parameters())
    assert all(p.grad is not None for p in model.backbone.attached.heads.parameters())


def test_the_weights_of_the_backbone_are_there_whatever_transformers_initialises() -> None:
    nano = load_backbone("nano").state_dict()
    for attached in (detr().model.backbone.model.attached, upernet().backbone.attached):
        state = attached.backbone.state_dict()
        compared = [key for key in nano if not key.endswith("num_batches_tracked")]  # DETR has norms of its own
        assert all(torch.equal(state[key], nano[key]) for key in compared)
    untrained = PyramidBackbone(PyramidConfig(weights="random")).attached.backbone
    assert not torch.equal(untrained.cls_token, load_backbone("nano").cls_token)


@pytest.mark.parametrize("make", [detr, upernet, lambda: PyramidBackbone(PyramidConfig(out_features=["p4"]))])
def test_models_are_saved_and_loaded_with_their_backbone(make: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = randomise(make())
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    images = torch.randn(1, 3, 40, 70)
    with torch.inference_mode():
        ours, theirs = model(images)[0], again(images)[0]
    ours, theirs = (x[0] if isinstance(x, tuple) else x for x in (ours, theirs))
    assert relative_error(theirs, ours) < 1e-5


def test_a_saved_model_needs_no_other_weights(tmp_path: Path) -> None:
    original = Path(vitbackbone.__file__).parent / "checkpoints" / "weights" / "nano.safetensors"
    weights = Path(shutil.copy(original, tmp_path / "weights.safetensors"))
    PyramidBackbone(PyramidConfig(weights=str(weights))).save_pretrained(tmp_path / "model")
    weights.unlink()
    again = PyramidBackbone.from_pretrained(tmp_path / "model")
    assert torch.equal(again.attached.backbone.cls_token, load_backbone("nano").cls_token)


def test_wrong_use_of_the_transformers_backbone(tmp_path: Path) -> None:
    model = PyramidBackbone(PyramidConfig(out_features=["p4"]))
    with pytest.raises(ValueError, match="returns only feature maps"):
        model(torch.randn(1, 3, 32, 32), output_hidden_states=True)
    model.out_features = ["p2"]
    with pytest.raises(ValueError, match="was made with the levels p4, not p2"):
        model(torch.randn(1, 3, 32, 32))
    model.out_features = ["p4"]
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["attached.backbone.cls_token"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="the file lacks cls_token"):
        PyramidBackbone.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="nanno"):
        PyramidBackbone(PyramidConfig(backbone="nanno"))
