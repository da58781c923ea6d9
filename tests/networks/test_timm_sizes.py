"""The image sizes of timm's networks: images are padded only as far as the layers need it."""

import math
from collections.abc import Callable

import pytest
import timm
import torch
from torch.nn import functional as F

from tests.helpers import randomise, relative_error
from tests.timm_networks import TOLERANCE, images
from vitbackbone import load_backbone
from vitbackbone.checkpoints.timm_names import FAMILIES, Family, describe_timm
from vitbackbone.networks import TimmBackbone
from vitbackbone.networks.timm.backbone import without_weights
from vitbackbone.networks.timm.levels import read_levels
from vitbackbone.networks.timm.sizes import Sizes, find_sizes, sizes_of

Layer = Callable[[int], int]


def halve(side: int) -> int:
    """A convolution of stride 2 that keeps the last row and column."""
    return -(-side // 2)


def patches(stride: int) -> Layer:
    """Patches of `stride` pixels that do not overlap; incomplete ones at the border are dropped."""
    return lambda side: side // stride


def windows(side: int) -> int:
    """Windows of 7 patches, which must fill the map."""
    return side if side % 7 == 0 else -1


def cut(side: int) -> int:
    """A 3x3 convolution without padding."""
    return side - 2


@pytest.mark.parametrize(
    ("layers", "native", "multiple", "smallest", "alone"),
    [
        ([halve] * 5, (240, 240), 1, 1, None),
        ([patches(4), *[halve] * 3], (224, 224), 4, 4, None),
        ([patches(4), *[patches(2)] * 3], (224, 224), 32, 32, None),
        ([patches(14)], (518, 518), 14, 14, None),
        ([*[halve] * 5, windows], (224, 224), 224, 224, None),
        ([halve, cut, cut, *[halve] * 4], (299, 299), 16, 16, (299, 299)),
        ([halve, *[cut] * 40, *[halve] * 4], (299, 299), None, None, None),
    ],
)
def test_the_smallest_multiple_that_the_layers_allow(
    layers: list[Layer], native: tuple[int, int], multiple: int | None, smallest: int | None, alone: object
) -> None:
    stride = 14 if native == (518, 518) else 32

    def run(side: int) -> int:
        for layer in layers:
            side = layer(side)
        return side

    found = find_sizes(lambda size: all(run(side) == math.ceil(side / stride) for side in size), native, stride)
    if multiple is None:
        assert found is None
        return
    assert found is not None
    assert (found.multiple, found.smallest, found.native) == (multiple, smallest, alone)
    for size in [(1, 1), native, (97, 70), (31, 33), (640, 427)]:
        padded = found.padded(size)
        assert [run(side) for side in padded] == [math.ceil(side / stride) for side in padded]
        assert all(side <= more for side, more in zip(size, padded, strict=True))


def test_sizes_that_are_taken_as_they_are() -> None:
    sizes = Sizes(32, 64, (299, 299))
    assert [sizes.padded(size) for size in [(299, 299), (299, 298), (1, 65)]] == [(299, 299), (320, 320), (64, 96)]


def odd() -> list[object]:
    """The architectures that take any size, with weights of a size that 32 does not divide. One of each module is run
    always, the others are slow."""
    rows, modules = [], set()
    for name in timm.list_pretrained():
        cfg, architecture = timm.models.get_pretrained_cfg(name), name.partition(".")[0]
        row = (architecture, tuple(cfg.input_size[1:]))
        module = timm.models.model_entrypoint(architecture).__module__
        if cfg.fixed_input_size or all(side % 32 == 0 for side in row[1]) or architecture.startswith("inception"):
            continue
        if row not in [param.values for param in rows]:
            rows.append(pytest.param(*row, marks=[pytest.mark.slow] if module in modules else []))
        modules.add(module)
    return rows


@pytest.mark.parametrize(("architecture", "size"), odd())
def test_a_network_runs_at_its_own_size_without_padding(architecture: str, size: tuple[int, int]) -> None:
    family = FAMILIES.get(timm.models.model_entrypoint(architecture).__module__, Family())
    with torch.device("meta"):
        model = timm.create_model(architecture, num_classes=0, **dict(family.arguments)).eval()
    sizes = sizes_of(lambda _: model, size, read_levels(model, architecture, size))
    assert sizes is not None
    assert sizes.padded(size) == size


@pytest.mark.parametrize("name", ["efficientnet_b1", "legacy_xception", "tinynet_e", "halonet26t", "mobilevitv2_050"])
def test_every_size_gives_a_patch_for_each_stride_begun(name: str) -> None:
    with torch.inference_mode():
        backbone = randomise(load_backbone(f"timm:{name}", weights="random"))
        for height, width in [backbone.spec.image_size, (97, 70), (33, 200)]:
            x = images(1, 3, height, width)
            features, sizes = backbone(x), backbone.sizes
            h, w = (math.ceil(side / backbone.spec.stride) for side in (height, width))
            assert features.grid == features.patches.shape[2:] == (h, w)
            assert features.geometry.box(0, h - 1, w - 1)[2:] == (w * backbone.spec.stride, h * backbone.spec.stride)
            rows, columns = sizes.padded((height, width))
            theirs = F.pad(x, (0, columns - width, 0, rows - height))
            last = [backbone.spec.depth - 1]
            (want,) = backbone.model.forward_intermediates(theirs, indices=last, intermediates_only=True)
            assert relative_error(features.patches, want[:, :, :h, :w]) < TOLERANCE
            if want.shape == features.patches.shape:
                whole = backbone.model.forward_head(backbone.model.forward_features(theirs), pre_logits=True)
                assert relative_error(features.pooled, whole) < TOLERANCE
            else:  # patches of padding are not part of the mean
                assert relative_error(features.pooled, features.patches.mean(dim=(2, 3))) < TOLERANCE


def test_levels_that_lose_the_border_are_refused_and_the_others_run() -> None:
    backbone = load_backbone("timm:legacy_xception", weights="random")
    x = images(1, 3, *backbone.spec.image_size)
    with torch.inference_mode():
        assert backbone.forward_layers(x, [-1, -2], norm=False)[0].grid == (10, 10)
        with pytest.raises(ValueError, match="layer 0 of timm:legacy_xception is a map of 147 x 147 for images of 299"):
            backbone.forward_layers(x, [0], norm=False)


def test_sizes_are_sought_as_the_network_is_used() -> None:
    """In training, a batch norm after a pooling refuses the one image of a trial run."""
    config = describe_timm("resnest14d").config
    given = TimmBackbone(config, name="resnest14d", model=without_weights(config))
    assert given.sizes == Sizes(1)
    assert given.training
