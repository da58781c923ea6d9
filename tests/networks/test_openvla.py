"""OpenVLA's two towers: its files, its pixels, and timm's features."""

import pytest
import timm
import torch
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn
from torchvision.transforms import functional as TVF

from tests.helpers import photo, randomise, relative_error
from tests.networks.fused_backbones import FIRST, SECOND
from vitbackbone import ViT
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.formats.openvla import split_openvla
from vitbackbone.checkpoints.rules import ConversionError, convert
from vitbackbone.checkpoints.zoo import ZOO
from vitbackbone.networks.fused import FusedConfig, FusedPreprocess, fuse


def openvla_pixels(height: int, width: int, side: int, strategy: str) -> Tensor:
    """`pixel_values` of FIRST and SECOND, written out as OpenVLA's processor has them (crop_pct is 1), but the border
    of a letterbox, which is each member's own as in its training code."""
    pictures = []
    for part in (FIRST, SECOND):
        image = photo(height, width)
        if strategy == "letterbox":
            longer = max(height, width)
            horizontal, vertical = int((longer - width) / 2), int((longer - height) / 2)
            fill = tuple(int(x * 255) for x in part.mean)
            image = TVF.pad(image, (horizontal, vertical, horizontal, vertical), fill=fill, padding_mode="constant")
        size = (side, side) if strategy == "resize-naive" else side
        image = TVF.resize(image, size, interpolation=TVF.InterpolationMode(part.interpolation), antialias=True)
        image = TVF.center_crop(image, (side, side))
        pictures.append(TVF.normalize(TVF.to_tensor(image), part.mean, part.std))
    return torch.vstack(pictures)


@pytest.mark.parametrize("strategy", ["resize-naive", "letterbox", "crop"])
@pytest.mark.parametrize(("height", "width"), [(68, 121), (121, 68), (160, 160), (31, 20), (480, 641)])
def test_pixels_equal_openvlas(strategy: str, height: int, width: int) -> None:
    preprocess = FusedPreprocess((FIRST, SECOND), (48, 48), strategy)
    assert torch.equal(preprocess(photo(height, width)), openvla_pixels(height, width, 48, strategy))
    assert torch.equal(preprocess(photo(height, width), 56), openvla_pixels(height, width, 56, strategy))


DINO, SIGLIP = "vit_small_patch14_reg4_dinov2", "vit_so400m_patch14_siglip_224"


def openvla_keys(dino: nn.Module, siglip: nn.Module) -> dict[str, Tensor]:
    """A state dict as OpenVLA saves it, with something of its other parts."""
    state = {"language_model.model.embed_tokens.weight": torch.zeros(1), "projector.fc1.weight": torch.zeros(1)}
    for prefix, model in (("featurizer", dino), ("fused_featurizer", siglip)):
        for key, value in model.state_dict().items():
            name = key.removesuffix("gamma") + "scale_factor" if key.endswith((".ls1.gamma", ".ls2.gamma")) else key
            state[f"vision_backbone.{prefix}.{name}"] = value
    return state


@pytest.fixture(scope="module")
def dino() -> nn.Module:
    return randomise(timm.create_model(DINO, img_size=28, depth=2, num_classes=0))


@pytest.fixture(scope="module")
def siglip() -> nn.Module:
    model = timm.create_model(SIGLIP, img_size=28, depth=2, embed_dim=32, num_heads=2, num_classes=0)
    return randomise(model, seed=1)


def test_openvlas_state_dict_is_two_of_timm(dino: nn.Module, siglip: nn.Module) -> None:
    state = openvla_keys(dino, siglip)
    assert "vision_backbone.featurizer.blocks.1.ls2.scale_factor" in state
    for got, model in zip(split_openvla(state), (dino, siglip), strict=True):
        expected = model.state_dict()
        assert got.keys() == expected.keys()
        assert all(torch.equal(got[key], value) for key, value in expected.items())


def test_keys_that_are_no_part_of_openvla_are_all_named(dino: nn.Module, siglip: nn.Module) -> None:
    state = openvla_keys(dino, siglip)
    strange = {"vision_backbone.other.weight": torch.zeros(1), "featurizer.norm.weight": torch.zeros(1)}
    with pytest.raises(ConversionError) as error:
        split_openvla(state | strange)
    assert str(error.value).splitlines()[1:] == [f"  {key}: no part of OpenVLA" for key in sorted(strange)]
    single = {key: value for key, value in state.items() if "fused_featurizer" not in key}
    with pytest.raises(ConversionError, match=r"vision_backbone\.fused_featurizer\.\*: missing"):
        split_openvla(single)


def test_the_dino_half_at_224_equals_timms_second_to_last_layer() -> None:
    """As OpenVLA calls it: `get_intermediate_layers(n={L - 2})`. timm resamples the positions of 518 px at load, we at
    run time. The second member has the same architecture until SigLIP is a ViT of ours."""
    big = [randomise(timm.create_model(DINO, num_classes=0), seed).state_dict() for seed in (0, 1)]
    theirs, ours = [], []
    for state in big:
        model = timm.create_model(DINO, img_size=224, num_classes=0)
        model.load_state_dict(checkpoint_filter_fn(dict(state), model))
        theirs.append(model.eval())
        entry = ZOO[f"{DINO}.lvd142m"]
        vit = ViT(entry.config, entry.preprocess, DINO).eval()
        vit.load_state_dict(convert(state, FORMATS[entry.format], vit.state_dict()))
        ours.append(vit)
    config = FusedConfig(((DINO, -2, False), (DINO, -2, False)), (224, 224))
    fused = fuse(config, ours, "openvla").eval()
    assert fused.spec.dim == 768
    pixels = fused.preprocess(photo(300, 400))[None]
    assert pixels.shape == (1, 6, 224, 224)
    with torch.inference_mode():
        expected = torch.cat(
            [
                model.get_intermediate_layers(picture, n={len(model.blocks) - 2})[0]
                for model, picture in zip(theirs, pixels.split(3, dim=1), strict=True)
            ],
            dim=2,
        )
        features = fused(pixels)
    assert expected.shape == (1, 256, 768)
    assert features.patches.shape == (1, 768, 16, 16)
    assert relative_error(features.tokens, expected) < 1e-5
