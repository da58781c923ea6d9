"""Networks that timm builds for one image size, at every size: equal to timm's own network of that size.

The oracle is built by timm with `img_size`, and its tables are resized by timm's functions, which load weights of
another size.
"""

import copy
import math
from collections.abc import Iterator

import pytest
import timm
import torch
from timm.layers import resample_abs_pos_embed, resample_abs_pos_embed_nhwc, resize_rel_pos_bias_table
from timm.models import nest
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import cases, randomise, relative_error
from tests.timm_networks import TOLERANCE, images, padded
from vitbackbone import BackboneModule, load_backbone
from vitbackbone.networks import TimmBackbone, TimmConfig

Size = tuple[int, int]

# One architecture of each module whose networks are built for one size, and one of each kind of table.
ARCHITECTURES = (
    *("beit_base_patch16_224", "botnet26t_256", "resnet50_clip", "cait_xxs24_224", "coat_lite_tiny", "convit_tiny"),
    *("crossvit_9_240", "efficientformer_l1", "efficientformerv2_s0", "efficientvit_m0", "gcvit_xxtiny"),
    *("hiera_tiny_224", "hiera_small_abswin_256", "levit_128s", "maxvit_pico_rw_256", "maxvit_tiny_tf_224"),
    *("coatnet_rmlp_nano_rw_224", "mvitv2_tiny", "mvitv2_small_cls", "nest_tiny", "pit_ti_distilled_224"),
    *("samvit_base_patch16_224", "sequencer2d_s", "swiftformer_xs", "swinv2_cr_tiny_ns_224", "tnt_s_patch16_224"),
    *("twins_svt_small", "visformer_tiny", "vit_relpos_small_patch16_224", "vit_relpos_base_patch16_cls_224"),
    *("volo_d1_224", "xcit_nano_12_p16_224"),
)
QUICK = {"pit_ti_distilled_224", "levit_128s"}


@pytest.fixture(autouse=True)
def _no_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def loaded(name: str) -> BackboneModule:
    with torch.inference_mode(False):
        return randomise(load_backbone(f"timm:{name}", weights="random"))


def sizes_for(backbone: BackboneModule) -> list[Size]:
    """Another square, a wide size, and an odd one. Each has few pixels."""
    side = max(backbone.spec.image_size)
    step = max(32, backbone.sizes.multiple)
    return [(side - step, side - step), (step * (side // 2 // step), side), (side // 2 + 5, side - 2 * step + 9)]


def timms(backbone: TimmBackbone, size: Size) -> nn.Module:
    """timm's network for images of a size, with the weights of `backbone`."""
    with torch.inference_mode(False):
        try:
            model = timm.create_model(backbone.config.architecture, num_classes=0, img_size=size).eval()
        except AssertionError:  # squares alone; each axis has a table of its own
            model, wide = (
                timm.create_model(backbone.config.architecture, num_classes=0, img_size=(side, side)).eval()
                for side in size
            )
            for ours, theirs in zip(model.modules(), wide.modules(), strict=True):
                if hasattr(ours, "rel_pos_w"):
                    ours.rel_pos_w = theirs.rel_pos_w
    for module in model.modules():
        if hasattr(module, "rel_indices"):  # timm computes them for squares alone
            h, w = model.patch_embed.grid_size
            down = torch.arange(h).repeat_interleave(w)[None] - torch.arange(h).repeat_interleave(w)[:, None]
            across = torch.arange(w).repeat(h)[None] - torch.arange(w).repeat(h)[:, None]
            module.rel_indices = torch.stack([across, down, across**2 + down**2], dim=-1)[None].float()
        if type(module).__module__ == "timm.models.efficientformer" and hasattr(module, "attention_bias_idxs"):
            module.resolution = size[0] // 32, size[1] // 32
            count = math.prod(module.resolution)
            module.attention_biases = nn.Parameter(torch.zeros(module.num_heads, count))
            rows, columns = torch.meshgrid(*(torch.arange(side) for side in module.resolution), indexing="ij")
            down = (rows.flatten()[:, None] - rows.flatten()).abs()
            across = (columns.flatten()[:, None] - columns.flatten()).abs()
            module.attention_bias_idxs = down * module.resolution[1] + across
    wanted, given = model.state_dict(), backbone.model.state_dict()
    for key, table in given.items():
        if key.endswith("attention_bias_idxs"):
            given[key] = wanted[key]
        elif table.shape != wanted[key].shape:
            owners = [each.get_submodule(key.rpartition(".")[0]) for each in (backbone.model, model)]
            given[key] = resized(key, table, wanted[key], owners, size)
    model.load_state_dict(given)
    return model


def resized(key: str, table: Tensor, wanted: Tensor, owners: list[nn.Module], size: Size) -> Tensor:
    """Resize a table by timm's function for its kind."""
    new = owners[1]
    if key.endswith("relative_position_bias_table"):
        return resize_rel_pos_bias_table(table, new.window_size, wanted.shape)
    if key.endswith(("rel_pos_h", "rel_pos_w", "height_rel", "width_rel")):
        return F.interpolate(table.T[None], len(wanted), mode="linear")[0].T
    if key.endswith("attention_biases"):
        old = math.isqrt(table.shape[1])
        grid = new.resolution if isinstance(new.resolution, tuple) else (new.resolution,) * 2
        whole = table.view(1, -1, old, old)
        return F.interpolate(whole, grid, mode="bicubic", antialias=True).flatten(2)[0]
    if isinstance(new, nest.NestLevel):
        return nest.resize_pos_embed(table, wanted)
    if table.ndim == 4 and table.shape[1] == wanted.shape[1] and table.shape[3] != wanted.shape[3]:
        return resample_abs_pos_embed_nhwc(table.permute(0, 2, 3, 1), wanted.shape[2:]).permute(0, 3, 1, 2)
    if table.ndim == 4:
        return resample_abs_pos_embed_nhwc(table, wanted.shape[1:3])
    tokens, count = (each if each.ndim == 3 else each[None] for each in (table, wanted))
    prefix = 0 if math.isqrt(tokens.shape[1]) ** 2 == tokens.shape[1] else 1
    height = round(math.sqrt((count.shape[1] - prefix) * size[0] / size[1]))
    grid = [height, (count.shape[1] - prefix) // height]
    return resample_abs_pos_embed(tokens, grid, num_prefix_tokens=prefix).view(wanted.shape)


@pytest.mark.parametrize("name", cases(ARCHITECTURES, QUICK))
def test_equals_timms_network_of_that_size(name: str) -> None:
    backbone = loaded(name)
    spec, last = backbone.spec, backbone.spec.depth - 1
    for size in sizes_for(backbone):
        x = images(2, 3, *size)
        theirs = padded(backbone, x)
        model = timms(backbone, (theirs.shape[2], theirs.shape[3]))
        features = backbone(x)
        h, w = features.grid
        want = model.forward_intermediates(theirs, indices=[last], norm=spec.has_norm, intermediates_only=True)[0]
        assert relative_error(features.patches, want[:, :, :h, :w]) < TOLERANCE, size
        whole = model.forward_features(theirs)
        scales = [tokens for tokens in (whole if isinstance(whole, list) else [whole]) if tokens.shape[-1] == spec.dim]
        if spec.has_cls:
            assert relative_error(features.cls, scales[-1][:, 0]) < TOLERANCE, size
        if features.grid == want.shape[2:] or backbone.pools_cls:  # else timm pools patches of padding, too
            assert relative_error(features.pooled, model.forward_head(whole, pre_logits=True)) < TOLERANCE, size


def test_copies_follow_the_weights_and_add_none() -> None:
    backbone = loaded("pit_ti_224")
    x = images(1, 3, 160, 96)
    keys, before = list(backbone.state_dict()), backbone(x).pooled
    assert list(backbone.state_dict()) == keys
    assert relative_error(copy.deepcopy(backbone)(x).pooled, before) == 0
    with torch.inference_mode(False), torch.no_grad():
        backbone.model.pos_embed.mul_(2)
    after = backbone(x).pooled
    assert relative_error(after, before) > 1e-3
    double = loaded("pit_ti_224").double()
    double.load_state_dict(backbone.state_dict())
    assert relative_error(double(x.double()).pooled.float(), after) < 1e-4


def test_gradients_reach_every_parameter_through_a_copy() -> None:
    with torch.inference_mode(False):
        backbone = loaded("levit_128s")
        backbone(images(1, 3, 96, 160)).pooled.square().sum().backward()
        assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


def test_training_updates_the_statistics_of_the_network_itself() -> None:
    with torch.inference_mode(False):
        backbone = loaded("levit_128s").train()
        before = backbone.model.stem.conv1.bn.running_mean.clone()
        backbone(images(2, 3, 96, 160))
        assert not torch.equal(backbone.model.stem.conv1.bn.running_mean, before)


def test_inner_layers_have_no_tokens_where_timm_hands_none_out() -> None:
    backbone = loaded("pit_ti_distilled_224")
    inner, bare, last = backbone.forward_layers(images(1, 3, 224, 224), [1, -1, -1], [False, False, True])
    assert (inner.cls, bare.cls) == (None, None)
    assert inner.registers.shape[1] == bare.registers.shape[1] == 0
    assert last.registers.shape[1] == backbone.spec.num_registers == 1
    assert relative_error(inner.pooled, inner.patches.mean(dim=(2, 3))) < TOLERANCE


def test_weights_that_depend_on_the_number_of_patches_run_at_one_size() -> None:
    backbone = loaded("mixer_s32_224")
    assert backbone(images(1, 3, 224, 224)).grid == (7, 7)
    with pytest.raises(ValueError, match="accepts only images of 224 x 224, because its weights depend on the number"):
        backbone(images(1, 3, 256, 224))


def test_a_network_whose_modules_were_replaced_is_refused_at_other_sizes() -> None:
    backbone = TimmBackbone(TimmConfig("pit_ti_224", rebuild=True, size_multiple=16)).eval()
    backbone.model.transformers[0].blocks[0].mlp.fc1 = nn.Sequential(nn.Linear(64, 256))
    assert backbone(images(1, 3, 224, 224)).grid == (7, 7)
    with pytest.raises(ValueError, match="its modules were replaced, for example at transformers.0"):
        backbone(images(1, 3, 160, 160))
