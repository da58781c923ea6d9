"""The promises of all dense heads, the loss of segmentation, and UPerNet."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from heads import Segmenter, attach, create_head, freeze, load_head, save_head, segmentation_loss
from tests.helpers import randomise, relative_error, tiny_vit
from tests.timm_networks import BACKBONES
from vitbackbone import BackboneSpec, Features, Geometry

SMALL = {"depth": 5, "num_registers": 2}
SEGMENTERS: dict[str, dict[str, object]] = {
    "linear": {},
    "multilayer": {},
    "upernet": {"channels": 12},
    "dpt": {"channels": 12},
    "eomt": {"num_queries": 6},
}
DENSE: dict[str, dict[str, object]] = {
    **{name: {"num_classes": 3, **options} for name, options in SEGMENTERS.items()},
    "linear_depth": {"layers": "even4"},
    "dpt_depth": {"channels": 12, "layers": [0, 1, 2, 4]},  # a list, as it comes back from JSON
}


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- all dense heads -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", [14, 16])
@pytest.mark.parametrize("name", DENSE)
def test_the_output_has_the_size_of_the_images(name: str, patch: int) -> None:
    backbone = tiny_vit(patch_size=patch, image_size=(2 * patch, 2 * patch), **SMALL)
    head = randomise(create_head(name, backbone.spec, **DENSE[name]))
    model = attach(backbone, {"it": head})
    channels = DENSE[name].get("num_classes", 1)
    with torch.inference_mode():
        for height, width in [(patch, patch), (61, 45), (3 * patch, 5 * patch), (7, 90)]:
            found = model(images(2, 3, height, width))["it"]
            assert found.shape == (2, channels, height, width)
            assert found.isfinite().all()
        mixed = [images(3, 33, 47), images(3, 61, 29, seed=1)]
        together = model(mixed)["it"]
        assert together.shape == (2, channels, 61, 47)
        for image, found in zip(mixed, together, strict=True):
            _, height, width = image.shape
            assert relative_error(found[:, :height, :width], model(image[None])["it"][0]) < 1e-5
            assert not found[:, height:].any()
            assert not found[:, :, width:].any()


@pytest.mark.parametrize("name", DENSE)
def test_every_parameter_learns(name: str) -> None:
    backbone = freeze(tiny_vit(**SMALL))
    head = randomise(create_head(name, backbone.spec, **DENSE[name])).train()
    attach(backbone, {"it": head})
    features = backbone.forward_layers(images(2, 3, 40, 56), head.layers, norm=head.needs.norm)
    if isinstance(head, Segmenter):
        labels = torch.randint(0, 3, (2, 40, 56), generator=torch.Generator().manual_seed(0))
        loss = head.loss(labels, *features)
    else:
        loss = head(*features).mean()
    loss.backward()
    still = [key for key, p in head.named_parameters() if p.grad is None or not p.grad.any()]
    assert not still
    assert all(p.grad is None for p in backbone.parameters())


@pytest.mark.parametrize("name", DENSE)
def test_a_saved_head_gives_the_same_and_holds_itself_alone(name: str, tmp_path: Path) -> None:
    backbone = tiny_vit(**SMALL)
    head = create_head(name, backbone.spec, **DENSE[name])
    own = list(head.state_dict())
    randomise(head)
    x = images(1, 3, 35, 50)
    with torch.inference_mode():
        before = attach(backbone, {"it": head})(x)["it"]
        assert list(head.state_dict()) == own
        save_head(head, tmp_path, backbone)
        after = attach(backbone, {"it": load_head(tmp_path, backbone)})(x)["it"]
    assert torch.equal(before, after)


def test_all_heads_together_run_each_block_once_but_the_ones_that_eomt_runs_again() -> None:
    backbone = tiny_vit(**SMALL)
    counts = [0] * len(backbone.blocks)
    for i, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda *_, i=i: counts.__setitem__(i, counts[i] + 1))
    heads = {name: create_head(name, backbone.spec, **options).eval() for name, options in DENSE.items()}
    eomt = heads.pop("eomt")
    with torch.inference_mode():
        attach(backbone, heads)(images(1, 3, 32, 32))
        assert counts == [1] * 5
        attach(backbone, {"eomt": eomt})(images(1, 3, 32, 32))
        assert counts == [2] * 5


@pytest.mark.parametrize("name", ["upernet", "dpt", "dpt_depth"])
def test_heads_that_do_not_read_cls_take_a_backbone_without(name: str) -> None:
    backbone = tiny_vit(cls=False, pool="mean", depth=5)
    head = create_head(name, backbone.spec, **DENSE[name]).eval()
    assert attach(backbone, {"it": head})(images(1, 3, 32, 32))["it"].shape[2:] == (32, 32)


def test_heads_that_read_cls_are_refused_where_there_is_none() -> None:
    backbone = tiny_vit(cls=False, pool="mean", depth=5)
    for name, options in {"linear_depth": {}, "dpt": {"num_classes": 3, "readout": "project"}}.items():
        with pytest.raises(ValueError, match=r"reads the CLS token, and tiny has none"):
            attach(backbone, {"it": create_head(name, backbone.spec, **options)})


# ---- the loss ------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_the_pixels_that_are_not_ignored() -> None:
    logits = images(2, 4, 5, 7).requires_grad_()
    labels = torch.randint(0, 4, (2, 5, 7), generator=torch.Generator().manual_seed(0))
    labels[0, :3] = 255
    log_p = logits.detach().double().log_softmax(dim=1)
    rows = [(-log_p[b, labels[b, y, x], y, x]).item() for b in range(2) for y in range(5) for x in range(7)
            if labels[b, y, x] != 255]  # fmt: skip
    expected = sum(rows) / len(rows)
    for kind in (torch.int64, torch.int32, torch.uint8):
        assert segmentation_loss(logits, labels.to(kind)).item() == pytest.approx(expected, rel=1e-5)
    other = labels.where(labels != 255, -1)
    assert segmentation_loss(logits, other, ignore_index=-1).item() == pytest.approx(expected, rel=1e-5)
    nothing = segmentation_loss(logits, torch.full_like(labels, 255))
    nothing.backward()
    assert nothing.item() == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        (torch.full((2, 5, 7), torch.nan), r"labels are torch.float32; want integers of shape \(2, 5, 7\): classes 0"),
        (torch.zeros(2, 5, 7, dtype=torch.bool), "labels are torch.bool"),
        (torch.zeros(2, 1, 5, 7, dtype=torch.int64), r"shape \(2, 1, 5, 7\); want integers of shape \(2, 5, 7\)"),
        (torch.zeros(2, 7, 5, dtype=torch.int64), r"shape \(2, 7, 5\)"),
        (torch.full((2, 5, 7), 4), r"labels hold \[4\]; want .* classes 0 to 3, or 255"),
        (torch.full((2, 5, 7), -1), r"labels hold \[-1\]"),
    ],
)
def test_labels_that_are_none_are_refused(labels: Tensor, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        segmentation_loss(images(2, 4, 5, 7), labels)


# ---- UPerNet -------------------------------------------------------------------------------------------------------

CONFIG = UperNetConfig(hidden_size=12, num_labels=3, auxiliary_channels=256)


def copied(head: nn.Module, oracle: nn.Module) -> None:
    """The parameters of transformers' heads into ours."""
    groups = {
        "context.branches": [block.layers[1] for block in oracle.psp_modules.blocks],
        "laterals": oracle.lateral_convs,
        "smooth": oracle.fpn_convs,
        "context.fuse": oracle.bottleneck,
        "fuse": oracle.fpn_bottleneck,
    }
    for name, theirs in groups.items():
        ours = head.get_submodule(name)
        pairs = [(ours, theirs)] if isinstance(ours, nn.Sequential) else zip(ours, theirs, strict=True)
        for sequence, block in pairs:
            sequence[0].load_state_dict(block.conv.state_dict())
            sequence[1].load_state_dict(block.batch_norm.state_dict())
    head.classifier.load_state_dict(oracle.classifier.state_dict())


def neck(head: nn.Module, maps: list[Tensor]) -> list[Tensor]:
    """mmsegmentation's MultiLevelNeck by itself."""
    levels = []
    for inner, outer, scale, x in zip(head.neck.inner, head.neck.outer, [4, 2, 1, 0.5], maps, strict=True):
        x = torch.einsum("bdhw,cd->bchw", x, inner.weight[:, :, 0, 0]) + inner.bias[:, None, None]
        x = F.interpolate(x, scale_factor=scale, mode="bilinear", recompute_scale_factor=False)
        levels.append(F.conv2d(x, outer.weight, outer.bias, padding=1))
    return levels


@pytest.mark.parametrize("size", [(32, 48), (64, 16), (30, 45)])
def test_upernet_is_that_of_transformers_with_a_neck(size: tuple[int, int]) -> None:
    backbone = tiny_vit(depth=8)
    head = randomise(create_head("upernet", backbone.spec, num_classes=3, channels=12))
    oracle = randomise(UperNetHead(CONFIG, [16] * 4), seed=1)
    auxiliary = randomise(UperNetFCNHead(CONFIG, [16] * 4), seed=2)
    copied(head, oracle)
    head.auxiliary.conv[0].load_state_dict(auxiliary.convs[0].conv.state_dict())
    head.auxiliary.conv[1].load_state_dict(auxiliary.convs[0].batch_norm.state_dict())
    head.auxiliary.classifier.load_state_dict(auxiliary.classifier.state_dict())
    x = images(2, 3, *size)
    with torch.inference_mode():
        features = backbone.forward_layers(x, [1, 3, 5, 7], norm=False)
        maps = [each.patches for each in features]
        padded = features[0].geometry.padded_size
        main, helper = (
            F.interpolate(logits, padded, mode="bilinear")[:, :, : size[0], : size[1]]
            for logits in (oracle(neck(head, maps)), auxiliary(maps))
        )
        assert relative_error(attach(backbone, {"it": head})(x)["it"], main) < 1e-5
        assert relative_error(head.auxiliary(features[2]), helper) < 1e-5
        labels = torch.randint(0, 3, (2, *size), generator=torch.Generator().manual_seed(0))
        expected = F.cross_entropy(main, labels) + 0.4 * F.cross_entropy(helper, labels)
        assert head.loss(labels, *features).item() == pytest.approx(expected.item(), rel=1e-5)


SWIN = BackboneSpec("swin", 64, 4, 0, 32, 0, False, False, (64, 64), dims=(8, 16, 32, 64), strides=(4, 8, 16, 32))


def pyramid(height: int, width: int) -> list[Features]:
    maps = []
    for dim, stride in zip(SWIN.dims, SWIN.strides, strict=True):
        geometry = Geometry(((height, width),) * 2, stride)
        maps.append(Features(None, torch.zeros(2, 0, dim), images(2, dim, *geometry.grid, seed=stride), geometry))
    return maps


def test_upernet_takes_a_pyramid_as_it_is() -> None:
    head = randomise(create_head("upernet", SWIN, num_classes=3, channels=12))
    oracle = randomise(UperNetHead(CONFIG, list(SWIN.dims)), seed=1)
    copied(head, oracle)
    assert head.neck is None
    with torch.inference_mode():
        features = pyramid(64, 96)
        expected = F.interpolate(oracle([each.patches for each in features]), (64, 96), mode="bilinear")
        assert relative_error(head(*features), expected) < 1e-5
        assert head(*pyramid(37, 61)).shape == (2, 3, 37, 61)


def test_upernet_does_not_shift_the_levels_of_a_pyramid_where_they_end_at_different_places() -> None:
    """The levels of 196 pixels end at 196, 200, 208 and 224. Cropping an image there changes nothing far from there."""
    head = randomise(create_head("upernet", SWIN, num_classes=3, channels=12))
    for name in ("context.branches",):  # pooled over the whole: the same nowhere
        for p in head.get_submodule(name).parameters():
            nn.init.zeros_(p)
    whole = pyramid(256, 256)
    ramp = torch.linspace(0, 1, 8)  # smooth, so that a shift would be all the difference
    for each in whole:
        side = each.grid[0]
        each.patches.copy_(F.interpolate(ramp.view(1, 1, 8, 1), (side, side), mode="bilinear").expand_as(each.patches))
    cut = []
    for each, stride in zip(whole, SWIN.strides, strict=True):
        geometry = Geometry(((196, 256),) * 2, stride)
        cut.append(Features(None, each.registers, each.patches[:, :, : geometry.grid[0]], geometry))
    with torch.inference_mode():
        difference = (head(*cut) - head(*whole)[:, :, :196])[:, :, :64].abs().max()
    assert difference < 1e-3 * head(*whole).abs().max()


def test_upernet_runs_on_a_swin_and_refuses_what_is_no_pyramid() -> None:
    swin = BACKBONES["swin"]
    with pytest.raises(ValueError, match=r"layers \[0, 1\] of swin have strides \[4, 8\]; want four layers"):
        create_head("upernet", swin.spec, num_classes=3, layers=[0, 1])
    with pytest.raises(ValueError, match=r"strides \[8, 4, 16, 32\]"):
        create_head("upernet", SWIN, num_classes=3, layers=[1, 0, 2, 3])
    resnet = BACKBONES["resnet"]
    head = create_head("upernet", resnet.spec, num_classes=3, channels=8, layers=[1, 2, 3, 4]).eval()
    with torch.inference_mode():
        assert attach(resnet, {"it": head})(images(1, 3, 75, 101))["it"].shape == (1, 3, 75, 101)


def test_upernet_says_that_one_image_is_no_batch_to_train_on() -> None:
    backbone = tiny_vit(depth=4)
    head = create_head("upernet", backbone.spec, num_classes=3, channels=8)
    model = attach(backbone, {"it": head}).train()
    with pytest.raises(ValueError, match=r"UPerNet trains on at least two images of one size"):
        model(images(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"UPerNet trains on at least two images of one size"):
        model([images(3, 32, 32), images(3, 24, 32)])
