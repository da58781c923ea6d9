"""A config that is damaged, or has impossible numbers, is refused with the file and the key."""

import json
import os
from pathlib import Path

import pytest

from tests.checkpoints.refusals import INDEX, assert_refused, edit, save
from tests.checkpoints.sampling import covering, first_of_each
from vitbackbone import load_backbone
from vitbackbone.checkpoints.huggingface import read_config
from vitbackbone.checkpoints.huggingface.clip_kin import CLIP_KIN
from vitbackbone.checkpoints.huggingface.config import MODEL_TYPES


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save(tmp_path)


SETTINGS = {
    "vit": {},
    "vit_mae": {},
    "ijepa": {},
    "deit": {},
    "beit": {"layer_scale_init_value": 0.1},
    "dinov2": {"mlp_ratio": 4},
    "dinov2_with_registers": {"mlp_ratio": 4, "num_register_tokens": 4},
    "dinov3_vit": {"num_register_tokens": 4, "rope_theta": 100.0},
    "clip_vision_model": {},
    "metaclip_2_vision_model": {},
    "siglip_vision_model": {},
    "tipsv2_vision_model": {"mlp_ratio": 4, "num_register_tokens": 4},
    "radio": {"mlp_ratio": 4, "max_img_size": 128, "num_cls_tokens": 3},
    "siglip2_vision_model": {"num_patches": 64},
    "idefics2_vision": {},
    "idefics3_vision": {},
    "smolvlm_vision": {},
    "pixio": {"mlp_ratio": 4, "n_cls_tokens": 8},
    "vit_msn": {},
    "dpt": {},
    "yolos": {"num_detection_tokens": 5},
    "data2vec-vision": {"layer_scale_init_value": 0.1},
    "vitdet": {"mlp_ratio": 4, "pretrain_image_size": 64},
    "vitpose_backbone": {"mlp_ratio": 4},
    "sam3_vit_model": {"pretrain_image_size": 64, "window_size": 3},
    "sam_hq_vision_model": {"mlp_ratio": 4.0, "mlp_dim": 96, "window_size": 3, "output_channels": 16},
    "sam_vision_model": {"mlp_ratio": 4.0, "mlp_dim": 96, "window_size": 3, "output_channels": 16},
}
SETTINGS |= {name: {} for name in CLIP_KIN}
NETWORK = {
    "image_size": 64,
    "patch_size": 8,
    "num_channels": 3,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 96,
    "layer_norm_eps": 1e-6,
}
SWIN = {"image_size": 64, "patch_size": 4, "num_channels": 3, "embed_dim": 24, "window_size": 4, "mlp_ratio": 4.0}
# The towers of language models, whose files have names of their own for some settings
PATCHES = {"patch_size": 8}
BLOCKS = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96}
PLAIN = {"image_size": 64, **PATCHES, **BLOCKS}
QWEN = {**PATCHES, "depth": 3, "num_heads": 3, "spatial_merge_size": 2, "in_channels": 3}
QWEN2 = {**QWEN, "embed_dim": 48, "mlp_ratio": 4}
QWEN25 = {**QWEN, "hidden_size": 48, "intermediate_size": 96, "window_size": 32}
QWEN3 = {**QWEN, "hidden_size": 48, "intermediate_size": 96, "num_position_embeddings": 64}
AIM = {**PLAIN, "rms_norm_eps": 1e-5}
MOON = {**PATCHES, **BLOCKS, "pos_emb_height": 8, "pos_emb_width": 8}
GEMMA = {**PATCHES, **BLOCKS, "num_key_value_heads": 3, "head_dim": 16, "rms_norm_eps": 1e-6}
TOWERS: dict[str, dict[str, object]] = {
    "internvl_vision": {**PLAIN, "layer_norm_eps": 1e-6},
    "intern_vit_6b": {**PLAIN, "layer_norm_eps": 1e-6},
    "aimv2": AIM,
    "aimv2_vision_model": AIM,
    "qwen2_vl": QWEN2,
    "qwen2_vl_vision": QWEN2,
    "qwen2_5_vl": QWEN25,
    "qwen2_5_vl_vision": QWEN25,
    "qwen3_vl": QWEN3,
    "qwen3_vl_vision": QWEN3,
    "pixtral": {**PLAIN, "head_dim": 16, "rope_theta": 100.0},
    "mlcd_vision_model": {**PLAIN, "layer_norm_eps": 1e-5, "num_key_value_groups": 1},
    "gemma4_vision": {**GEMMA, "position_embedding_size": 64},
    "llama4_vision_model": {**PLAIN, "layer_norm_eps": 1e-5},
    "mllama_vision_model": {
        **{"image_size": 64, "hidden_size": 48, "attention_heads": 3, "intermediate_size": 96, "norm_eps": 1e-5},
        **{**PATCHES, "num_hidden_layers": 3, "num_global_layers": 2, "max_num_tiles": 4},
    },
    "vjepa2": {
        **{"crop_size": 64, "hidden_size": 48, "num_attention_heads": 3, "layer_norm_eps": 1e-6, "mlp_ratio": 4},
        **{**PATCHES, "num_hidden_layers": 3, "tubelet_size": 2, "in_chans": 3},
    },
    "sapiens2": {**PLAIN, "num_register_tokens": 4, "rms_norm_eps": 1e-6, "rope_theta": 100.0},
    "hiera": {"image_size": 64, "embed_dim": 48, "num_channels": 3, "mlp_ratio": 4},
    "sam2_hiera_det_model": {"image_size": 64, "num_channels": 3},
    "dinov3_convnext": {"image_size": 64, "num_channels": 3, "layer_norm_eps": 1e-6},
    "kimi_k25_vision": MOON,
    "moonvit": MOON,
}
ALONE: dict[str, dict[str, object]] = {**TOWERS, "swin": SWIN, "swinv2": SWIN}  # all their settings
NUMBERS = [
    *((kind, key) for kind, own in SETTINGS.items() for key in {**NETWORK, **own}),
    *((kind, key) for kind, own in ALONE.items() for key in own),
]
FLOATS = ("layer_norm_eps", "mlp_ratio", "rope_theta", "layer_scale_init_value", "rms_norm_eps", "norm_eps")
UNBOUNDED = ("rope_theta", "layer_scale_init_value")  # no size depends on them
WRONG = [-1, 10**9, 10**30, True, "x", "8", [], [8], [8, 8, 8], {}, {"height": 8}, [[8, 8]], 1e300]


def whole(kind: str) -> dict[str, object]:
    if kind.startswith("swin"):
        return {"model_type": kind, "depths": [2, 2], "num_heads": [2, 4], **SWIN}
    if kind in TOWERS:
        return {"model_type": kind, "intermediate_layers_indices": [1], **TOWERS[kind]}
    fixed = {"model_type": kind, "global_attn_indexes": [1], "use_mid_position_embeddings": False}
    return {**fixed, **NETWORK, **SETTINGS[kind]}


def test_every_model_type_is_tried() -> None:
    wrapped = {
        "clip",
        "siglip",
        "sam",
        "siglip2",
        "sam_hq",
        "metaclip_2",
    }  # those that keep the same settings under vision_config
    swins = {"swin", "swinv2", "donut-swin", "maskformer-swin"}
    assert MODEL_TYPES.keys() - wrapped == SETTINGS.keys() | TOWERS.keys() | swins


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        pytest.param(*row, marks=() if row in first_of_each(NUMBERS, lambda row: row[1]) else pytest.mark.slow)
        for row in NUMBERS
    ],
)
def test_a_wrong_number_of_a_config_is_named(kind: str, key: str) -> None:
    read_config(whole(kind))
    for value in WRONG if key in FLOATS else [*WRONG, 0, 2.5, 8.0]:
        huge, zero = isinstance(value, int | float) and value >= 10**9, value == 0 and value is not False
        if not (key in UNBOUNDED and huge) and not (key == "num_register_tokens" and zero):
            assert_refused(lambda value=value: read_config({**whole(kind), key: value}), "config.json", key)


@pytest.mark.parametrize("kind", ["clip", "siglip", "sam"])
@pytest.mark.parametrize("value", [-1, 0, 10**9, True, "x", 2.5])
def test_a_wrong_number_of_a_vision_tower_is_named(kind: str, value: object) -> None:
    config = {"model_type": kind, "vision_config": {"global_attn_indexes": [1], **NETWORK, "hidden_size": value}}
    assert_refused(lambda: read_config(config), "config.json has vision_config.hidden_size")
    assert_refused(lambda: read_config({**config, "vision_config": value}), "config.json has vision_config")


@pytest.mark.parametrize(
    ("kind", "fields", "words"),
    [
        ("vit", {"hidden_size": 50}, ["hidden_size=50", "num_attention_heads=3"]),
        ("vit", {"image_size": 4}, ["image_size", "patch_size=8"]),
        ("vit", {"patch_size": [8, 4]}, ["patch_size=[8, 4]", "square"]),
        ("vit", {"num_channels": 0}, ["num_channels"]),
        ("vit", {"qkv_bias": 1}, ["qkv_bias=1"]),
        ("vit", {"hidden_act": 3}, ["hidden_act=3"]),
        ("vit", {"num_hidden_layers": 1000, "hidden_size": 99999}, ["num_hidden_layers=1000", "hidden_size=99999"]),
        ("vit", {"image_size": 16384, "patch_size": 1, "hidden_size": 3000}, ["image_size", "patch_size=1"]),
        ("vit_mae", {"hidden_size": 30, "num_attention_heads": 3}, ["hidden_size=30"]),
        ("dinov3_vit", {"hidden_size": 54}, ["hidden_size=54", "num_attention_heads=3"]),
        ("sam_vision_model", {"global_attn_indexes": [3]}, ["global_attn_indexes=[3]", "num_hidden_layers=3"]),
        ("sam_vision_model", {"global_attn_indexes": [-1]}, ["global_attn_indexes.0=-1"]),
        ("swin", {"depths": []}, ["depths"]),
        ("swin", {"depths": [2] * 5}, ["depths"]),
        ("swin", {"depths": [2, 10**9]}, ["depths.1"]),
        ("swin", {"num_heads": [2]}, ["num_heads=[2]"]),
        ("swin", {"num_heads": [2, 5]}, ["num_heads=[2, 5]", "embed_dim=24"]),
        ("swin", {"hidden_act": ["gelu"]}, ["hidden_act"]),
        ("swinv2", {"pretrained_window_sizes": [0, -1]}, ["pretrained_window_sizes.1=-1"]),
    ],
)
def test_settings_that_contradict_each_other_are_named(kind: str, fields: dict[str, object], words: list[str]) -> None:
    assert_refused(lambda: read_config({**whole(kind), **fields}), "config.json", *words)


@pytest.mark.parametrize(
    "fields",
    [
        {"id2label": [1]},
        {"id2label": {"x": "a"}},
        {"id2label": {"0": "a", "2": "b"}},
        {"id2label": {"-1": "a"}},
        {"id2label": {"0": 1}},
        {"architectures": "ViTModel"},
        {"architectures": [["ViTModel"]]},
        {"model_type": ["vit"]},
        {"num_hidden_layers": 2},  # less than the weights have
        {"hidden_size": 96},
    ],
    ids=str,
)
def test_a_config_that_is_wrong_is_named_with_its_path(directory: Path, fields: dict[str, object]) -> None:
    edit(directory / "config.json", **fields)
    key = "id2label" if "id2label" in fields else "blocks" if "num_hidden_layers" in fields else next(iter(fields))
    key = "blocks.0.attn.proj.bias" if key == "hidden_size" else key
    assert_refused(lambda: load_backbone(directory), str(directory / "config.json"), key)


LONG = "x" * 10**6


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("config.json", {"model_type": LONG}),
        ("config.json", {"hidden_act": LONG}),
        ("config.json", {"id2label": {LONG: 1}}),
        ("preprocessor_config.json", {"image_processor_type": LONG}),
        ("preprocessor_config.json", {"size": LONG}),
        ("preprocessor_config.json", {"size": {"height": LONG, "width": 8}}),
        ("preprocessor_config.json", {"crop_size": [1] * 10**4, "do_center_crop": True}),
        ("preprocessor_config.json", {"image_mean": [0.5] * 10**4}),
        ("preprocessor_config.json", {"resample": LONG}),
        ("preprocessor_config.json", {"do_normalize": LONG}),
        ("preprocessor_config.json", {LONG: LONG}),
        ("processor_config.json", {"image_processor": LONG}),
        ("processor_config.json", {"image_processor": [LONG]}),
        (INDEX, {"weight_map": {LONG: 1}}),
        (INDEX, {"weight_map": {"a": LONG + "/"}}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value))[:30],
)
def test_a_long_value_makes_a_short_error(directory: Path, file: str, fields: dict[str, object]) -> None:
    damage(directory, file)
    whole = json.loads((directory / file).read_text()) if (directory / file).exists() else {}
    (directory / file).write_text(json.dumps({**whole, **fields}))
    assert_refused(lambda: load_backbone(directory), str(directory / file))


DEEP = {"lists": "[" * 100_000, "objects": '{"a":' * 100_000, "whole": "[" * 3000 + "]" * 3000}
DAMAGE = {"empty": "", "cut": '{"a": 1', "a list": "[]", "a word": '"a"', "null": "null", "NaN": '{"a": NaN}', **DEEP}


@pytest.mark.parametrize(
    ("kind", "file"), covering([*DAMAGE], [INDEX, "config.json", "preprocessor_config.json", "processor_config.json"])
)
def test_a_damaged_file_is_named(directory: Path, kind: str, file: str) -> None:
    damage(directory, file)
    (directory / file).write_text(DAMAGE[kind])
    assert_refused(lambda: load_backbone(directory), str(directory / file))


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "processor_config.json", INDEX])
def test_what_is_no_file_of_text_is_named(directory: Path, file: str) -> None:
    damage(directory, file)
    path = directory / file
    path.write_bytes(b'{"a": "\xff"}')
    assert_refused(lambda: load_backbone(directory), str(path))
    path.unlink()
    path.mkdir()
    assert_refused(lambda: load_backbone(directory), str(path))
    path.rmdir()
    path.symlink_to(path)
    assert_refused(lambda: load_backbone(directory), str(path))
    path.unlink()
    os.mkfifo(path)
    assert_refused(lambda: load_backbone(directory), str(path))


def damage(directory: Path, file: str) -> None:
    """Make room for a file that is not read beside others."""
    if file == INDEX:
        (directory / "model.safetensors").unlink()
    if file == "processor_config.json":
        (directory / "preprocessor_config.json").unlink(missing_ok=True)
