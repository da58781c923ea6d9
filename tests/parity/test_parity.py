"""Every family equals its upstream on identical, fully randomised weights: native, another square, a non-square size,
and one that the patch does not divide.

The error is max |a - b| / max |b| in float32. The cases are rows of the tables in `tests/oracles/`.
"""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers import randomise, relative_error
from tests.oracles.cases import P16, TIMM_CASES, Case, errors, images, timm_case, timm_model
from tests.oracles.resampling_policies import POLICIES, timm_at
from tests.oracles.small_timm import SMALL_CASES
from tests.oracles.transformers_models import HF, HF_CASES, hf_case, hf_model
from tests.oracles.transformers_towers import TOWER_CASES
from vitbackbone import ViTConfig, load_backbone
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.zoo import ZOO
from vitbackbone.checkpoints.zoo.entry import TIMM_RESAMPLING
from vitbackbone.model.positions.rotary import rotary_table

LIMIT = 1e-5
HEAVY = {  # by the clock; of these the quick tests have the size that is not square
    "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "beitv2_base_patch16_224.in1k_ft_in1k",
    "samvit_base_patch16.sa1b",
    "vit_base_patch16_224.mae",
    "vit_base_patch16_siglip_224.webli",
    "eva02_base_patch14_224.mim_in22k",
    "vit_base_patch14_reg1_tipsv2.webli",
}


LARGE = 256  # pixels a side; the quick tests have none that is larger


def sized(case: Case) -> list[object]:
    """The case at each of its sizes, the costly ones marked."""

    chosen = case.sizes[min(2, len(case.sizes) - 1)]

    def is_slow(size: tuple[int, int]) -> bool:
        return case.name == "openvla" or (size != chosen and (case.name in HEAVY or max(size) > LARGE))

    return [
        pytest.param(
            case,
            size,
            id=f"{case.upstream}-{case.name}-{size[0]}x{size[1]}",
            marks=pytest.mark.slow if is_slow(size) else (),
        )
        for size in case.sizes
    ]


@pytest.mark.parametrize(
    ("case", "size"), [param for case in [*TIMM_CASES, *HF_CASES, *TOWER_CASES] for param in sized(case)]
)
def test_equals_its_upstream(case: Case, size: tuple[int, int], tmp_path: Path) -> None:
    model = case.model()
    case.save(model, tmp_path)
    found = errors(case.load(tmp_path, case.policy), case, model, size)
    assert max(found.values()) <= LIMIT, found


def test_every_format_of_timm_and_transformers_has_a_case() -> None:
    """A table that no case runs through is not known to be right."""
    every = [*TIMM_CASES, *HF_CASES, *TOWER_CASES, *SMALL_CASES]
    ran = {ZOO[case.name].format for case in every if case.upstream == "timm" and case.name in ZOO}
    assert ran >= {ZOO[name].format for name in ZOO if ZOO[name].source.startswith("timm/")}
    classes = {HF[case.name].model for case in HF_CASES}
    wanted = {name.split()[0] for name in FORMATS if name[0].isupper()}
    assert wanted - classes == WHOLE_MODELS


# Models of which the encoder is a part: the same tables under a prefix, held by a test below
WHOLE_MODELS = {"CLIPModel", "SiglipModel", "SamModel", "ViTMAEForPreTraining", "BeitForMaskedImageModeling"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("beit_base_patch16_224.in22k_ft_in22k_in1k", marks=pytest.mark.slow),
        "vit_tiny_patch16_224.augreg_in21k",
    ],
)
def test_equals_timm_as_loaded_by_default_at_the_native_size(name: str, tmp_path: Path) -> None:
    case = timm_case(name)
    case.save(case.model(), tmp_path)
    assert max(errors(case.load(tmp_path, "native"), case, case.model(), (224, 224)).values()) <= LIMIT


def test_a_zoo_entry_of_the_hub_takes_a_file(tmp_path: Path) -> None:
    """At full size, and equal to the same weights read as a directory."""
    model = randomise(transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=1000)))
    model.save_pretrained(tmp_path)
    by_name = load_backbone("hf:google/vit-base-patch16-224", weights=tmp_path / "model.safetensors")
    assert max(errors(by_name, hf_case("vit classifier"), model, P16[2]).values()) <= LIMIT
    assert load_backbone(tmp_path).config == by_name.config


def test_weights_in_shards_are_read_whole(tmp_path: Path) -> None:
    model = hf_model("dinov2")
    model.save_pretrained(tmp_path, max_shard_size="20kB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert max(errors(load_backbone(tmp_path), hf_case("dinov2"), model, (40, 88)).values()) <= LIMIT


TOWER = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96}
VISION = {**TOWER, "patch_size": 8, "image_size": 64}
DECODER = {
    "decoder_hidden_size": 24,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 32,
}


@pytest.mark.parametrize(
    ("architecture", "make", "tower"),
    [
        ("CLIPModel", lambda t: t.CLIPModel(t.CLIPConfig(text_config=TOWER, vision_config=VISION)), "clip projected"),
        ("SiglipModel", lambda t: t.SiglipModel(t.SiglipConfig(text_config=TOWER, vision_config=VISION)), "siglip"),
        (
            "ViTMAEForPreTraining",
            lambda t: t.ViTMAEForPreTraining(t.ViTMAEConfig(**VISION, **DECODER, mask_ratio=0.0)),
            "mae",
        ),
    ],
)
def test_the_tower_of_a_whole_model_is_read(
    architecture: str, make: Callable[[object], nn.Module], tower: str, tmp_path: Path
) -> None:
    model = randomise(make(transformers))
    model.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    x = images((40, 88))
    with torch.inference_mode():
        if architecture == "ViTMAEForPreTraining":
            assert max(errors(backbone, hf_case("mae"), model, (40, 88)).values()) <= LIMIT
        elif architecture == "CLIPModel":
            want = model.get_image_features(pixel_values=x, interpolate_pos_encoding=True).pooler_output
            assert relative_error(backbone(x).pooled, want) <= LIMIT
        else:
            want = model.vision_model(pixel_values=x, interpolate_pos_encoding=True)
            assert relative_error(backbone(x).tokens, want.last_hidden_state) <= LIMIT
            assert relative_error(backbone(x).pooled, want.pooler_output) <= LIMIT


def test_beit_in_pretraining_and_the_whole_sam_are_read(tmp_path: Path) -> None:
    settings = {**VISION, "use_shared_relative_position_bias": True, "use_mask_token": True, "vocab_size": 9}
    beit = randomise(transformers.BeitForMaskedImageModeling(transformers.BeitConfig(**settings)))
    beit.save_pretrained(tmp_path / "beit")
    vision = transformers.SamVisionConfig(**VISION, output_channels=16, window_size=3, global_attn_indexes=[1])
    decoder = {"hidden_size": 16, "num_attention_heads": 2, "mlp_dim": 16, "iou_head_hidden_dim": 16}
    config = transformers.SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config={"hidden_size": 16, "image_size": 64, "patch_size": 8},
        mask_decoder_config=decoder,
    )
    sam = randomise(transformers.SamModel(config))
    sam.save_pretrained(tmp_path / "sam")
    x = images((64, 64))
    with torch.inference_mode():
        want = beit.layernorm(beit.beit(pixel_values=x).last_hidden_state)
        assert relative_error(load_backbone(tmp_path / "beit")(x).tokens, want[:, 1:]) <= LIMIT
        ours = load_backbone(tmp_path / "sam")
        assert relative_error(ours.neck(ours(x).patches), sam.get_image_embeddings(x)) <= LIMIT


def test_the_older_spelling_of_a_vision_tower_is_read(tmp_path: Path) -> None:
    """Version 4 of transformers kept CLIPVisionModel and SiglipVisionModel one level down."""
    for name in ("clip", "siglip"):
        model = hf_model(name)
        model.save_pretrained(tmp_path)
        new = load_backbone(tmp_path).state_dict()

        state = load_file(tmp_path / "model.safetensors")
        save_file({f"vision_model.{key}": value for key, value in state.items()}, tmp_path / "model.safetensors")
        old = load_backbone(tmp_path).state_dict()
        assert all(torch.equal(old[key], new[key]) for key in new)


# ---- the authors' own files ---------------------------------------------------------------------------------------
#
# Each is made from timm's state dict by hand, with what else the authors keep in it.


def renamed(state: dict[str, Tensor], *pairs: tuple[str, str]) -> dict[str, Tensor]:
    out = {}
    for key, value in state.items():
        for old, new in pairs:
            key = key.replace(old, new)
        out[key] = value
    return out


def as_dinov2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """With registers, timm has folded the position of CLS."""
    state = dict(state)
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        cls_position = torch.randn_like(state["cls_token"])
        state["cls_token"] = state["cls_token"] - cls_position
        state["pos_embed"] = torch.cat([cls_position, state["pos_embed"]], dim=1)
    return {**state, "mask_token": torch.zeros(1, state["cls_token"].shape[-1])}


def as_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = renamed(state, ("gamma_", "ls"), ("fc1_g", "w1"), ("fc1_x", "w2"), ("mlp.fc2", "mlp.w3"))
    state = {key + ".gamma" if key.endswith((".ls1", ".ls2")) else key: value for key, value in state.items()}
    state["storage_tokens"] = state.pop("reg_token")
    for key in [key for key in state if key.endswith("q_bias")]:
        q, v = state.pop(key), state.pop(key.replace("q_bias", "v_bias"))
        state[key.replace("q_bias", "qkv.bias")] = torch.cat([q, torch.randn_like(q), v])
        ones = torch.ones_like(q)
        state[key.replace("q_bias", "qkv.bias_mask")] = torch.cat([ones, torch.zeros_like(q), ones])
    width = state["cls_token"].shape[-1]
    extra = {"mask_token": (1, width), "rope_embed.periods": (16,), "local_cls_norm.weight": (width,)}
    return {**state, **{key: torch.randn(shape) for key, shape in extra.items()}}


def as_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = renamed(
        state,
        ("patch_embed.proj", "conv1"),
        ("blocks.", "transformer.resblocks."),
        ("norm_pre", "ln_pre"),
        (".norm1", ".ln_1"),
        (".norm2", ".ln_2"),
        ("attn.qkv.", "attn.in_proj_"),
        ("attn.proj", "attn.out_proj"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
    )
    state["ln_post.weight"], state["ln_post.bias"] = state.pop("norm.weight"), state.pop("norm.bias")
    state["class_embedding"] = state.pop("cls_token")[0, 0]
    state["positional_embedding"] = state.pop("pos_embed")[0]
    state["proj"] = state.pop("head.weight").T.contiguous()
    del state["head.bias"]
    text = {"logit_scale": (), "text_projection": (4, 4), "transformer.resblocks.0.ln_1.weight": (4,)}
    return {f"visual.{k}": v for k, v in state.items()} | {key: torch.randn(shape) for key, shape in text.items()}


def as_beit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    tables = [key for key in state if key.endswith("relative_position_bias_table")]
    return {**state, **{key.replace("bias_table", "index"): torch.zeros(197, 197) for key in tables}}


def as_mae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    extra = ("mask_token", "decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.bias")
    return {**state, **{key: torch.randn(1, 4) for key in extra}}


def as_sam(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state = renamed(state, ("mlp.fc", "mlp.lin"))
    extra = {"prompt_encoder.no_mask_embed.weight": torch.randn(1, 4), "mask_decoder.iou_token.weight": torch.randn(4)}
    return {f"image_encoder.{key}": value for key, value in state.items()} | extra


@pytest.mark.parametrize(
    ("name", "timm_name", "layout"),
    [
        ("dino_vits16", "vit_small_patch16_224.dino", dict),
        ("dinov2_vits14", "vit_small_patch14_dinov2.lvd142m", as_dinov2),
        ("dinov2_vits14_reg", "vit_small_patch14_reg4_dinov2.lvd142m", as_dinov2),
        ("dinov3_vits16plus", "vit_small_plus_patch16_dinov3_qkvb.lvd1689m", as_dinov3),
        ("ViT-B-32.laion2b_s34b_b79k", "vit_base_patch32_clip_224.laion2b", as_clip),
        ("beit_base_patch16_224_pt22k_ft22kto1k", "beit_base_patch16_224.in22k_ft_in22k_in1k", as_beit),
        ("mae_vit_base", "vit_base_patch16_224.mae", as_mae),
        ("sam_vit_b", "samvit_base_patch16.sa1b", as_sam),
    ],
)
def test_the_authors_file_is_timms(
    name: str, timm_name: str, layout: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path
) -> None:
    """The same parameters come out of both files, so what the tables above say of timm's is true of the authors'."""
    state = timm_model(timm_name).state_dict()
    torch.save({"model": layout(state)}, tmp_path / "weights.pth")
    save_file(state, tmp_path / "timm.safetensors")
    authors = load_backbone(name, weights=tmp_path / "weights.pth").state_dict()
    theirs = load_backbone(timm_name, weights=tmp_path / "timm.safetensors").state_dict()
    theirs.pop("projection.bias", None)  # which timm adds to CLIP
    authors.pop("mask_token", None)  # timm's files leave it out
    assert authors.keys() == theirs.keys()
    assert all(relative_error(authors[key], theirs[key]) <= 1e-6 for key in theirs)


def test_googles_npz_is_what_timm_reads(tmp_path: Path) -> None:
    heads, width, hidden = 12, 768, 3072
    rng = np.random.default_rng(0)
    block = {
        **{f"LayerNorm_{i}/{kind}": (width,) for i in (0, 2) for kind in ("scale", "bias")},
        **{f"MultiHeadDotProductAttention_1/{part}/kernel": (width, heads, 64) for part in ("query", "key", "value")},
        **{f"MultiHeadDotProductAttention_1/{part}/bias": (heads, 64) for part in ("query", "key", "value")},
        "MultiHeadDotProductAttention_1/out/kernel": (heads, 64, width),
        "MultiHeadDotProductAttention_1/out/bias": (width,),
        "MlpBlock_3/Dense_0/kernel": (width, hidden),
        "MlpBlock_3/Dense_0/bias": (hidden,),
        "MlpBlock_3/Dense_1/kernel": (hidden, width),
        "MlpBlock_3/Dense_1/bias": (width,),
    }
    shapes = {
        "embedding/kernel": (32, 32, 3, width),
        "embedding/bias": (width,),
        "cls": (1, 1, width),
        "Transformer/posembed_input/pos_embedding": (1, 50, width),
        **{f"Transformer/encoderblock_{i}/{key}": shape for i in range(12) for key, shape in block.items()},
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "pre_logits/kernel": (width, width),
        "pre_logits/bias": (width,),
        "head/kernel": (width, 21843),
        "head/bias": (21843,),
    }
    arrays = {key: rng.standard_normal(shape, dtype=np.float32) / math.sqrt(shape[0]) for key, shape in shapes.items()}
    np.savez(tmp_path / "ViT-B_32.npz", **arrays)
    model = timm.create_model("vit_base_patch32_224", num_classes=21843)
    model.load_pretrained(str(tmp_path / "ViT-B_32.npz"))
    x = images((224, 224))
    with torch.inference_mode():
        want = model.eval().forward_features(x)
        got = load_backbone("ViT-B_32", weights=tmp_path / "ViT-B_32.npz")(x)
    assert relative_error(got.tokens, want[:, 1:]) <= LIMIT
    assert relative_error(got.cls, want[:, 0]) <= LIMIT


# ---- resampling policies ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", ["native", "hf"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in HEAVY else ()) for name in POLICIES]
)
def test_the_policies_are_the_implementations(name: str, policy: str, tmp_path: Path) -> None:
    case = timm_case(name)
    case.save(timm_model(name), tmp_path)
    formula = POLICIES[name][policy == "hf"]
    size = case.sizes[2]
    found = errors(case.load(tmp_path, policy), case, timm_at(name, size, formula), size)
    assert max(found.values()) <= LIMIT, found


def test_every_family_with_positions_has_its_policies_held() -> None:
    of_timm = [e for e in ZOO.values() if isinstance(e.config, ViTConfig) and e.source.startswith("timm/")]
    own = [e for e in of_timm if e.timm == TIMM_RESAMPLING]  # the others run timm's own policy, as the cases above do
    own = [e for e in own if e.timm_rotary is None]  # Perception Encoder's is held in test_small_timm.py
    resampled = [e for e in own if e.config.position != "none" or e.config.relative_position == "table"]
    held = {(ZOO[name].config.resampling, ZOO[name].hf) for name in POLICIES}
    assert {(entry.config.resampling, entry.hf) for entry in resampled} <= held


def test_the_policies_differ_where_the_implementations_do(tmp_path: Path) -> None:
    """37 x 37 positions for 16 x 16 patches: else a test above would hold with any policy."""
    name = "vit_small_patch14_dinov2.lvd142m"
    case = timm_case(name)
    case.save(timm_model(name), tmp_path)
    x = images((224, 224))
    with torch.inference_mode():
        native, hf, ours = (case.load(tmp_path, policy)(x).tokens for policy in ("native", "hf", "timm"))
    assert min(relative_error(native, hf), relative_error(native, ours), relative_error(hf, ours)) > 1e-3


def test_authors_dinov3_has_wavelengths_in_bfloat16() -> None:
    periods = 100 ** (torch.arange(16) / 16)
    rounded = periods.bfloat16().float()
    rotary = ZOO["dinov3_vits16"].config.rotary
    assert rotary is not None
    table = rotary_table(rotary, 64, (3, 5), torch.device("cpu"))
    y, x = torch.meshgrid((torch.arange(3) + 0.5) / 3 * 2 - 1, (torch.arange(5) + 0.5) / 5 * 2 - 1, indexing="ij")
    angles = 2 * math.pi * torch.stack([y.flatten(), x.flatten()], 1)[..., None] / rounded
    want = angles.flatten(1).tile(2)
    assert torch.allclose(table[0], want.cos(), atol=1e-5)
    assert torch.allclose(table[1], want.sin(), atol=1e-5)
    exact = rotary_table(ZOO["vit_small_patch16_dinov3.lvd1689m"].config.rotary, 64, (3, 5), torch.device("cpu"))
    assert (table - exact).abs().max() > 1e-4
