"""Images of other numbers of channels: kernels by timm's rule, and pictures of many bands all the way to features."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from torch import Tensor

from tests.helpers import photo, randomise, relative_error, save_photo
from tests.timm_networks import TOLERANCE, images
from vitbackbone import ImageFeatures, Preprocess, ViT, load_backbone, vit_config
from vitbackbone.checkpoints.channels import inflate, preprocess_for, with_channels
from vitbackbone.checkpoints.rules import ConversionError
from vitbackbone.networks.fused import FusedBackbone, Member
from vitbackbone.store import extract

VIT = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def saved(architecture: str, folder: Path, **arguments: object) -> tuple[torch.nn.Module, Path]:
    with torch.inference_mode(False):
        model = randomise(timm.create_model(architecture, **arguments))
    save_file(model.state_dict(), folder / "model.safetensors")
    return model, folder / "model.safetensors"


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "resnet10t", "test_convnext"])
def test_kernels_of_rgb_are_fitted_by_timms_rule(architecture: str, channels: int, tmp_path: Path) -> None:
    model, file = saved(architecture, tmp_path)
    name = VIT if architecture.startswith("vit") else f"timm:{architecture}"
    backbone = load_backbone(name, weights=file, in_chans=channels)
    assert backbone.spec.in_chans == channels
    assert backbone.channels == (channels,)
    state, first = model.state_dict(), f"{model.pretrained_cfg['first_conv']}.weight"
    state[first] = adapt_input_conv(channels, state[first])
    with torch.inference_mode(False):
        theirs = timm.create_model(architecture, in_chans=channels).eval()
    theirs.load_state_dict(state)
    x = images(2, channels, *backbone.spec.image_size)
    want = theirs.forward_head(theirs.forward_features(x), pre_logits=True)
    assert relative_error(backbone(x).pooled, want) < TOLERANCE
    with pytest.raises(ValueError, match=rf"want a float tensor \(B, {channels}, H, W\)"):
        backbone(images(1, 3, 224, 224))


@pytest.mark.parametrize("architecture", ["vit_tiny_patch16_224", "resnet10t"])
def test_kernels_of_other_bands_are_loaded_as_they_are(architecture: str, tmp_path: Path) -> None:
    model, file = saved(architecture, tmp_path, in_chans=6)
    name = VIT if architecture.startswith("vit") else f"timm:{architecture}"
    backbone = load_backbone(name, weights=file, in_chans=6)
    x = images(2, 6, *backbone.spec.image_size)
    want = model.forward_head(model.forward_features(x), pre_logits=True)
    assert relative_error(backbone(x).pooled, want) < TOLERANCE
    with pytest.raises(ConversionError):
        load_backbone(name, weights=file)


def test_bands_that_are_not_rgb_are_never_inflated() -> None:
    config = vit_config("Ti/16", channels=6)
    with pytest.raises(ValueError, match="was trained on 6 bands, and each has a kernel of its own"):
        with_channels(config, 4)
    assert with_channels(config, 6) == config
    linear = {"model.embeds.proj.weight": torch.zeros(8, 768)}
    with pytest.raises(ConversionError, match="has the shape 8 x 768, and in_chans needs a convolution of 3 channels"):
        inflate(linear, tuple(linear), {"model.embeds.proj.weight": torch.zeros(8, 1024)})
    with pytest.raises(ValueError, match="in_chans=0; want at least 1"):
        load_backbone("nano", in_chans=0)


def test_means_and_deviations_follow_the_kernels() -> None:
    rgb = Preprocess((32, 32), mean=(0.1, 0.2, 0.6), std=(0.2, 0.3, 0.4))
    assert preprocess_for(rgb, 5).mean == (0.1, 0.2, 0.6, 0.1, 0.2)
    assert preprocess_for(rgb, 1).mean == pytest.approx((0.3,))
    with pytest.raises(ValueError, match="mean has 2 values and std has 3"):
        Preprocess(mean=(0.1, 0.2))


def test_one_channel_is_pillows_grey() -> None:
    image = photo(60, 80)
    grey = Preprocess((32, 32), 1.0, mean=(0.0,), std=(1.0,))(image)
    rgb = Preprocess((32, 32), 1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
    assert grey.shape == (1, 32, 32)
    assert torch.equal(grey[0], rgb(np.array(image.convert("L")))[0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_arrays_tensors_and_tiff_files_of_many_bands_agree(dtype: type, tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    rng = np.random.default_rng(0)
    bands = rng.integers(0, 255 if dtype == np.uint8 else 10000, (48, 64, 5)).astype(dtype)
    scale = 255.0 if dtype == np.uint8 else 10000.0
    preprocess = Preprocess((32, 32), 1.0, "squash", "bilinear", (0.1, 0.2, 0.3, 0.4, 0.5), (0.5,) * 5, scale=scale)
    found = preprocess(bands)
    assert found.shape == (5, 32, 32)
    assert torch.equal(preprocess(torch.from_numpy(bands).permute(2, 0, 1)), found)
    for planar in ("contig", "separate"):
        pixels = bands if planar == "contig" else np.moveaxis(bands, 2, 0)
        tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="minisblack", planarconfig=planar)
        assert torch.equal(preprocess(tmp_path / "a.tif"), found)
    alone = Preprocess((32, 32), 1.0, "squash", "bilinear", (0.3,) * 3, (0.5,) * 3)
    if dtype == np.uint8:
        assert torch.equal(found[2], alone(bands[..., 2])[0])
    else:
        with pytest.raises(ValueError, match="the bands are not bytes"):
            Preprocess((32, 32), mean=(0.5,) * 5, std=(0.5,) * 5)(bands)


def test_wrong_numbers_of_bands_are_named(tmp_path: Path) -> None:
    preprocess = Preprocess((32, 32), mean=(0.5,) * 5, std=(0.5,) * 5)
    with pytest.raises(ValueError, match=r"the array's shape is \(8, 8, 4\); want \(H, W, 5\)"):
        preprocess(np.zeros((8, 8, 4), np.uint8))
    with pytest.raises(ValueError, match="the image has 3 channels; want 5"):
        preprocess(photo(8, 8))
    with pytest.raises(ValueError, match="the image has the colours of a PNG; want 5: a TIFF file, an array"):
        preprocess(save_photo(tmp_path / "a.png"))
    with pytest.raises(ValueError, match="not finite numbers"):
        preprocess(np.full((8, 8, 5), np.nan, np.float32))


def test_many_bands_go_through_extraction_estimators_and_fusion(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    with torch.inference_mode(False):
        config = vit_config("Ti/16", 32, dim=24, depth=1, num_heads=2, mlp_dim=24, channels=5)
        preprocess = Preprocess((32, 32), mean=(0.5,) * 5, std=(0.5,) * 5)
        backbone = randomise(ViT(config, preprocess))
    bands = np.random.default_rng(0).integers(0, 255, (3, 40, 36, 5)).astype(np.uint8)
    for i, one in enumerate(bands):
        tifffile.imwrite(tmp_path / f"{i}.tif", one, photometric="minisblack", planarconfig="contig")
    inputs = preprocess.batch(list(bands))
    want = backbone(inputs).cls
    found = ImageFeatures(backbone, pooling="cls").transform(bands)
    assert relative_error(torch.from_numpy(found), want) < TOLERANCE
    with pytest.raises(ValueError, match="of 5 channels"):
        ImageFeatures(backbone).transform(bands[..., :3])
    store = extract(backbone, tmp_path / "*.tif", tmp_path / "store", progress=False)
    assert relative_error(torch.from_numpy(np.array(store.cls)), want) < TOLERANCE
    fused = FusedBackbone([Member(backbone, -1, norm=True), Member(backbone, -1, norm=True)])
    assert fused.spec.in_chans == 5
    assert relative_error(fused(inputs).cls, torch.cat([want, want], dim=1)) < TOLERANCE
    assert fused.preprocess(bands[0]).shape == (10, 32, 32)


def folded(x: Tensor) -> Tensor:
    """Images of red, green and blue that RGB kernels read as timm's fitted kernels read `x`."""
    count = x.shape[1]
    if count == 1:
        return x.expand(-1, 3, -1, -1)
    return torch.stack([x[:, band::3].sum(dim=1) * 3 / count for band in range(3)], dim=1)


VISION = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
SQUARE = {"image_size": 32, "patch_size": 8}
SAVED = {
    "BlipVisionModel": {**VISION, **SQUARE},  # its config has no number of channels
    "VJEPA2Model": {
        **{key: value for key, value in VISION.items() if key != "intermediate_size"},
        **{"crop_size": 32, "patch_size": 8, "frames_per_clip": 2, "pred_hidden_size": 24, "pred_num_hidden_layers": 1},
        **{"pred_num_attention_heads": 2, "pred_num_mask_tokens": 1},
    },
    "Siglip2VisionModel": {**VISION, "patch_size": 8, "num_patches": 16},  # a linear layer
    "ConvNextModel": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]},
}


@pytest.mark.parametrize("kind", SAVED)
def test_directories_of_transformers_are_fitted_by_the_same_rule(kind: str, tmp_path: Path) -> None:
    with torch.inference_mode(False):
        config = getattr(transformers, kind.removesuffix("Model") + "Config")(**SAVED[kind])
        randomise(getattr(transformers, kind)(config)).save_pretrained(tmp_path)
    rgb = load_backbone(tmp_path)
    for count in (1, 2, 4, 13):
        backbone, x = load_backbone(tmp_path, in_chans=count), images(1, count, 32, 64)
        assert (backbone.spec.in_chans, backbone.preprocess.channels) == (count, count)
        assert relative_error(backbone(x).pooled, rgb(folded(x)).pooled) < TOLERANCE
