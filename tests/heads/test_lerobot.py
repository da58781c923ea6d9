"""LeRobot's own policies with a Vision Transformer in them: `make test-lerobot`, in an environment with LeRobot."""

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("lerobot")

from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.policies.act.processor_act import make_act_pre_post_processors
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
from lerobot.policies.diffusion.modeling_diffusion import SpatialSoftmax as TheirSoftmax

from heads import KeypointEncoder, SpatialSoftmax, attach, create_head, freeze
from heads.adapters.lerobot import IMAGENET, MapEncoder, use_in_act, use_in_diffusion
from tests.helpers import randomise, relative_error, tiny_vit
from vitbackbone import Features, FusedBackbone, Geometry, Member, Preprocess, ViT, load_backbone

SIZE = (40, 56)
CAMERAS = ("observation.images.front", "observation.images.wrist")
CHUNK, STEPS, STATE, ACTION = 8, 2, 5, 4
HALF = Preprocess(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def features(size: tuple[int, int] = SIZE) -> dict[str, object]:
    images = {name: PolicyFeature(FeatureType.VISUAL, (3, *size)) for name in CAMERAS}
    return {
        "input_features": {**images, "observation.state": PolicyFeature(FeatureType.STATE, (STATE,))},
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        "device": "cpu",
    }


def act(**fields: object) -> ACTPolicy:
    sizes = {"dim_model": 32, "n_heads": 4, "dim_feedforward": 64, "n_encoder_layers": 2, "n_vae_encoder_layers": 1}
    chunks = {"chunk_size": CHUNK, "n_action_steps": CHUNK}
    torch.manual_seed(0)
    return ACTPolicy(ACTConfig(pretrained_backbone_weights=None, **features(), **sizes, **chunks, **fields))


def diffusion(**fields: object) -> DiffusionPolicy:
    small = {"down_dims": (16, 32), "num_train_timesteps": 5, "spatial_softmax_num_keypoints": 8, "horizon": 8}
    torch.manual_seed(0)
    settings = {**features(), **small, "n_groups": 4, "diffusion_step_embed_dim": 16, "n_action_steps": 4}
    return DiffusionPolicy(DiffusionConfig(**{**settings, **fields}))


def observation(lead: tuple[int, ...] = (2,), seed: int = 0) -> dict[str, Tensor]:
    """Normalised, as LeRobot's preprocessor makes it."""
    generator = torch.Generator().manual_seed(seed)
    images = {name: torch.randn(*lead, 3, *SIZE, generator=generator) for name in CAMERAS}
    return {**images, "observation.state": torch.randn(*lead, STATE, generator=generator)}


def training_batch(lead: tuple[int, ...] = (2,)) -> dict[str, Tensor]:
    action = torch.randn(2, CHUNK, ACTION, generator=torch.Generator().manual_seed(1))
    return {**observation(lead), "action": action, "action_is_pad": torch.zeros(2, CHUNK, dtype=torch.bool)}


def step(policy: nn.Module, batch: dict[str, Tensor]) -> set[str]:
    """The parameters that one step of the policy's own optimiser changed."""
    policy.train()
    before = {name: p.detach().clone() for name, p in policy.named_parameters()}
    optimizer = policy.config.get_optimizer_preset().build(policy.get_optim_params())
    torch.manual_seed(0)
    loss, _ = policy.forward(batch)
    assert torch.isfinite(loss)
    loss.backward()
    optimizer.step()
    return {name for name, p in policy.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "fine-tuned"])
@pytest.mark.parametrize("patch", [8, 14])
def test_act_steps_and_acts(patch: int, frozen: bool) -> None:
    policy = act()
    backbone = tiny_vit(patch_size=patch, image_size=(4 * patch, 4 * patch))
    use_in_act(policy, freeze(backbone) if frozen else backbone)
    changed = step(policy, training_batch())
    assert "model.encoder_img_feat_input_proj.weight" in changed
    assert any(name.startswith("model.backbone.") for name in changed) != frozen
    assert backbone.training != frozen
    chunk = policy.predict_action_chunk(observation())
    assert chunk.shape == (2, CHUNK, ACTION)
    policy.reset()
    assert torch.equal(policy.select_action(observation()), chunk[:, 0])
    assert not torch.equal(policy.predict_action_chunk(observation(seed=3)), chunk)


def test_act_with_the_built_in_backbone_steps() -> None:
    policy = act()
    use_in_act(policy, freeze(load_backbone("nano")), layer=-2)
    assert "model.encoder_img_feat_input_proj.weight" in step(policy, training_batch())


def test_act_gives_the_backbone_its_own_learning_rate() -> None:
    policy = act()
    use_in_act(policy, backbone := tiny_vit())
    _, group = policy.get_optim_params()
    assert {id(p) for p in group["params"]} == {id(p) for p in backbone.parameters()}
    assert group["lr"] == policy.config.optimizer_lr_backbone


def test_act_reads_the_map_of_each_camera() -> None:
    """The transformer is given the tokens that a policy made by hand would give it."""
    policy, vit = act(), tiny_vit()
    use_in_act(policy, vit, layer=1, norm=False)
    batch = observation()
    seen: list[Tensor] = []
    policy.model.encoder_img_feat_input_proj.register_forward_hook(lambda _, args, out: seen.append(args[0]))
    policy.predict_action_chunk(batch)
    with torch.inference_mode():
        for name, given in zip(CAMERAS, seen, strict=True):
            expected = vit.forward_layers(batch[name], [1], norm=False)[0].patches
            assert relative_error(given, expected) < 1e-6


def test_a_policy_comes_back_from_its_file(tmp_path) -> None:
    policy = act()
    use_in_act(policy, tiny_vit())
    step(policy, training_batch())
    policy.save_pretrained(tmp_path)
    from safetensors.torch import load_model

    again = act()
    use_in_act(again, tiny_vit(seed=5))
    load_model(again, tmp_path / "model.safetensors")
    assert torch.equal(again.predict_action_chunk(observation()), policy.predict_action_chunk(observation()))


@pytest.mark.parametrize("separate", [True, False], ids=["an encoder each", "one encoder"])
@pytest.mark.parametrize(
    "crop", [{}, {"crop_shape": (32, 40)}, {"resize_shape": (32, 48), "crop_ratio": 0.75}], ids=str
)
def test_diffusion_steps_and_acts(separate: bool, crop: dict[str, object]) -> None:
    policy = diffusion(use_separate_rgb_encoder_per_camera=separate, **crop)
    use_in_diffusion(policy, freeze(tiny_vit()))
    changed = step(policy, training_batch((2, STEPS)))
    heads = {name for name in changed if ".head." in name}
    assert len(heads) == (2 if separate else 1) * 4  # weight and bias of the keypoints and of the linear layer
    assert not {name for name in changed if "attached.backbone" in name}
    policy.reset()
    action = policy.select_action(observation())
    assert action.shape == (2, ACTION)
    assert torch.isfinite(action).all()


@pytest.mark.parametrize(
    ("name", "options", "keypoints"),
    [("map_pool", {}, 8), ("policy_neck", {"width": 20}, 10), ("spatial_softmax", {"num_keypoints": 6}, 6)],
)
def test_diffusion_with_other_heads(name: str, options: dict[str, object], keypoints: int) -> None:
    policy, vit = diffusion(spatial_softmax_num_keypoints=keypoints), tiny_vit()
    use_in_diffusion(policy, vit, create_head(name, vit.spec, **options))
    changed = step(policy, training_batch((2, STEPS)))
    assert any("attached.heads" in name for name in changed)
    assert any("attached.backbone" in name for name in changed)


def test_diffusion_reads_crops_as_lerobot_cuts_them() -> None:
    policy, vit = diffusion(crop_shape=(32, 40)), tiny_vit()
    head = randomise(KeypointEncoder(vit.spec, 8))
    use_in_diffusion(policy.eval(), vit, head)
    images = observation()[CAMERAS[0]]
    cut = images[:, :, 4:36, 8:48]
    with torch.inference_mode():
        assert torch.equal(policy.diffusion.rgb_encoder(images), attach(vit, {"head": head})(cut)["head"])


def randomised_pair(grid: tuple[int, int], keypoints: int) -> tuple[SpatialSoftmax, TheirSoftmax]:
    ours = randomise(SpatialSoftmax(tiny_vit().spec, keypoints))
    theirs = TheirSoftmax((16, *grid), num_kp=keypoints)
    theirs.nets.load_state_dict(ours.keypoints.state_dict())
    return ours, theirs


@pytest.mark.parametrize("grid", [(14, 14), (5, 9), (1, 7)], ids=str)
def test_the_spatial_softmax_is_lerobots(grid: tuple[int, int]) -> None:
    ours, theirs = randomised_pair(grid, 32)
    maps = torch.randn(3, 16, *grid, generator=torch.Generator().manual_seed(0))
    size = (8 * grid[0], 8 * grid[1])
    features = Features(None, torch.zeros(3, 0, 16), maps, Geometry((size,) * 3, 8))
    with torch.inference_mode():
        torch.testing.assert_close(ours(features), theirs(maps), atol=1e-6, rtol=1e-5)


# ---- colours -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", [Preprocess(), HALF], ids=["ImageNet", "half"])
def test_colours_are_normalised_once_and_as_the_backbone_wants(own: Preprocess) -> None:
    """uint8-like pixels through LeRobot's own preprocessor give the same as the backbone's own normalisation."""
    policy, vit = act(), ViT(tiny_vit().config, own, "tiny")
    randomise(vit)
    use_in_act(policy, vit)
    stats = {
        name: {"mean": np.reshape(IMAGENET[0], (3, 1, 1)), "std": np.reshape(IMAGENET[1], (3, 1, 1))}
        for name in CAMERAS
    }
    stats["observation.state"] = {"mean": np.zeros(STATE), "std": np.ones(STATE)}
    stats["action"] = {"mean": np.zeros(ACTION), "std": np.ones(ACTION)}
    stats = {key: {k: torch.tensor(v, dtype=torch.float32) for k, v in of.items()} for key, of in stats.items()}
    before, _ = make_act_pre_post_processors(policy.config, dataset_stats=stats)
    pixels = {name: torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0)) for name in CAMERAS}
    ready = before({**pixels, "observation.state": torch.zeros(2, STATE)})
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (own.mean, own.std))
    with torch.inference_mode():
        expected = vit((pixels[CAMERAS[0]] - mean) / std).patches
        assert relative_error(policy.model.backbone(ready[CAMERAS[0]])["feature_map"], expected) < 1e-5


def test_images_that_lerobot_leaves_alone_are_normalised_here() -> None:
    identity = {"VISUAL": NormalizationMode.IDENTITY, "STATE": NormalizationMode.MEAN_STD}
    policy, vit = act(normalization_mapping={**identity, "ACTION": NormalizationMode.MEAN_STD}), tiny_vit()
    use_in_act(policy, vit)
    pixels = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (vit.preprocess.mean, vit.preprocess.std))
    with torch.inference_mode():
        expected = vit((pixels - mean) / std).patches
        assert relative_error(policy.model.backbone(pixels)["feature_map"], expected) < 1e-5


def test_a_fused_backbone_is_given_the_first_members_colours() -> None:
    first, second = ViT(tiny_vit().config, HALF, "a"), tiny_vit(seed=1)
    randomise(first)
    fused = FusedBackbone([Member(first, -2, norm=False), Member(second, -2, norm=False)])
    encoder = MapEncoder(fused, IMAGENET, norm=False)
    pixels = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in IMAGENET)
    with torch.inference_mode():
        expected = fused(pixels * 2 - 1).patches
        assert relative_error(encoder((pixels - mean) / std)["feature_map"], expected) < 1e-5


# ---- wrong use -----------------------------------------------------------------------------------------------------


def test_wrong_use_is_refused() -> None:
    vit = tiny_vit()
    with pytest.raises(ValueError, match="DiffusionPolicy; want an ACTPolicy"):
        use_in_act(diffusion(), vit)
    with pytest.raises(ValueError, match="ACTPolicy; want a DiffusionPolicy"):
        use_in_diffusion(act(), vit)
    with pytest.raises(ValueError, match="pass norm=False"):
        use_in_act(act(), tiny_vit(final_norm=False, pool="mean", fc_norm=True))
    with pytest.raises(ValueError, match="want block indices"):
        use_in_act(act(), vit, layer=7)
    with pytest.raises(ValueError, match="gives 20 features .* made for 16; .*spatial_softmax_num_keypoints=10"):
        use_in_diffusion(diffusion(), vit, create_head("policy_neck", vit.spec, width=20))
    with pytest.raises(ValueError, match="was made for tiny"):
        use_in_diffusion(diffusion(), vit, create_head("map_pool", tiny_vit(dim=32).spec))
    odd = {**act().config.normalization_mapping, "VISUAL": NormalizationMode.MIN_MAX}
    with pytest.raises(ValueError, match=r"by MIN_MAX; pass stats=\(mean, std\)"):
        use_in_act(act(normalization_mapping=odd), vit)
    use_in_act(act(normalization_mapping=odd), vit, stats=((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))


def test_a_frozen_backbone_is_left_as_it_was() -> None:
    policy, vit = act(), freeze(tiny_vit())
    before = copy.deepcopy(vit.state_dict())
    use_in_act(policy, vit)
    step(policy, training_batch())
    assert all(torch.equal(value, before[key]) for key, value in vit.state_dict().items())
