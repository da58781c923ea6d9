"""Model files that someone edited, cut, damaged or made to harm: a `ValueError` or `OSError` that names file and key,
soon and without much memory."""

import io
import json
import os
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.checkpoints.sampling import covering, first_of_each
from tests.helpers import tiny_vit
from tests.oracles import HF, hf_model
from vitbackbone import load_backbone
from vitbackbone.checkpoints.huggingface import read_config
from vitbackbone.checkpoints.huggingface.clip_kin import CLIP_KIN
from vitbackbone.checkpoints.huggingface.config import MODEL_TYPES
from vitbackbone.checkpoints.tensor_files import read_weights

INDEX = "model.safetensors.index.json"


def save(directory: Path, name: str = "vit", shards: bool = False) -> Path:
    hf_model(name).save_pretrained(directory, **({"max_shard_size": "20kB"} if shards else {}))
    return directory


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return save(tmp_path)


def edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def assert_refused(call: Callable[[], object], *words: str) -> str:
    """Assert one clear error, without a traceback's worth of memory."""
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, OSError)) as caught:
            call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert type(caught.value).__module__.split(".")[0] in ("builtins", "vitbackbone"), type(caught.value)
    assert all(word in text for word in words), text
    assert len(text) < 10_000
    assert peak < 1 << 28
    return text


# ---- config.json --------------------------------------------------------------------------------------------------

# One of each model type, and the settings that a schema knows beyond those of all
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


# ---- the index of shards ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "a\0b"])
def test_an_index_names_files_of_its_own_folder_alone(directory: Path, name: str) -> None:
    (directory / "model.safetensors").rename(directory.parent / "x.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": {"a": name}}))
    assert_refused(lambda: load_backbone(directory), str(directory / INDEX), "weight_map")


def test_a_shard_is_no_link_out_of_the_folder(tmp_path: Path) -> None:
    directory = save(tmp_path / "a", shards=True)
    shard = sorted(directory.glob("model-*.safetensors"))[0]
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    assert_refused(lambda: load_backbone(directory), str(directory / INDEX), shard.name, "link")


def test_a_folder_of_links_into_one_other_is_read(tmp_path: Path) -> None:
    """As in the Hub's cache."""
    save(tmp_path / "blobs", shards=True)
    (tmp_path / "snapshot").mkdir()
    for file in (tmp_path / "blobs").iterdir():
        (tmp_path / "snapshot" / file.name).symlink_to(Path("..", "blobs", file.name))
    assert load_backbone(tmp_path / "snapshot").config.dim == 48


@pytest.mark.parametrize("weight_map", [None, [], {}, {"a": 1}, {"a": None}, {"a": ["b"]}, "model.safetensors"])
def test_an_index_of_another_shape_is_named(directory: Path, weight_map: object) -> None:
    (directory / "model.safetensors").unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert_refused(lambda: load_backbone(directory), str(directory / INDEX), "weight_map")


def test_an_index_and_its_shards_agree(tmp_path: Path) -> None:
    directory = save(tmp_path, shards=True)
    index = json.loads((directory / INDEX).read_text())
    key, shard = next(iter(index["weight_map"].items()))
    other = next(name for name in index["weight_map"].values() if name != shard)
    edit(directory / INDEX, weight_map={**index["weight_map"], "lost": shard})
    assert_refused(lambda: load_backbone(directory), str(directory / shard), "lost")
    edit(directory / INDEX, weight_map=index["weight_map"])
    save_file({**load_file(directory / other), key: load_file(directory / shard)[key]}, directory / other)
    assert_refused(lambda: load_backbone(directory), key)
    (directory / other).unlink()
    assert_refused(lambda: load_backbone(directory), other, INDEX)


# ---- weights ------------------------------------------------------------------------------------------------------


def safetensors_file(header: bytes, length: int | None = None, body: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + body


HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
SAFETENSORS = {
    "empty": b"",
    "short": b"\0" * 7,
    "a length beyond the file": safetensors_file(HEADER, 1 << 40),
    "a length of all ones": safetensors_file(HEADER, (1 << 64) - 1),
    "no body": safetensors_file(HEADER),
    "a huge shape": safetensors_file(HEADER.replace(b"[2]", b"[1000000000000]"), body=b"\0" * 8),
    "an overflowing shape": safetensors_file(HEADER.replace(b"[2]", b"[4294967296,4294967297]"), body=b"\0" * 8),
    "offsets backwards": safetensors_file(HEADER.replace(b"[0,8]", b"[8,0]"), body=b"\0" * 8),
    "a negative shape": safetensors_file(HEADER.replace(b"[2]", b"[-2]"), body=b"\0" * 8),
    "an unknown type": safetensors_file(HEADER.replace(b"F32", b"X32"), body=b"\0" * 8),
    "no UTF-8": safetensors_file(b"\xff" * 20),
    "nested": safetensors_file(b"[" * 100_000),
    "a list": safetensors_file(b"[]"),
    "more body": safetensors_file(HEADER, body=b"\0" * 80),
    "a key twice": safetensors_file(HEADER[:-1] + b"," + HEADER[1:], body=b"\0" * 8),
    "a key twice within": safetensors_file(HEADER.replace(b'"shape"', b'"dtype":"I32","shape"'), body=b"\0" * 8),
    "a key twice, once escaped": safetensors_file(
        HEADER[:-1] + b"," + HEADER[1:].replace(b'"a"', b'"\\u0061"'), body=b"\0" * 8
    ),
    "metadata twice": safetensors_file(b'{"__metadata__":{},"__metadata__":{},' + HEADER[1:], body=b"\0" * 8),
    "a long header": safetensors_file(HEADER + b" " * (1 << 23), body=b"\0" * 8),
}


@pytest.mark.parametrize("data", SAFETENSORS.values(), ids=SAFETENSORS)
def test_a_lying_safetensors_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.safetensors").write_bytes(data)
    assert_refused(lambda: read_weights(tmp_path / "a.safetensors"), str(tmp_path / "a.safetensors"))


def npy(shape: str, body: bytes = b"\0" * 8, descr: str = "'<f4'", version: bytes = b"\1\0") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + body


NPZ = {
    "a huge shape": npy("(1000000000000,)"),
    "an overflowing shape": npy("(4294967296, 4294967297)"),
    "a negative shape": npy("(-2,)"),
    "a longer shape": npy("(3,)"),
    "strings": npy("(1,)", b"a\0\0\0", "'<U1'"),
    "objects": npy("(1,)", descr="'|O'"),
    "records": npy("(1,)", descr="[('a', '<f4'), ('b', '<f4')]"),
    "dates": npy("(1,)", descr="'<M8[s]'"),
    "complex": npy("(1,)", descr="'<c8'"),
    "another version": npy("(2,)", version=b"\x09\0"),
    "no array": b"text",
    "empty": b"",
    "an expression": npy("(__import__('os').getpid(),)"),
    "a deep expression": npy("(" * 200),
}


@pytest.mark.parametrize("data", NPZ.values(), ids=NPZ)
def test_a_lying_npz_is_refused(tmp_path: Path, data: bytes) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("a.npy", data)
    assert_refused(lambda: read_weights(tmp_path / "a.npz"), str(tmp_path / "a.npz"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("second", ["a.npy", "a"])
def test_an_npz_that_names_an_array_twice_is_refused(tmp_path: Path, second: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("a.npy", second):
            archive.writestr(name, npy("(2,)"))
    assert_refused(lambda: read_weights(tmp_path / "a.npz"), str(tmp_path / "a.npz"), "'a' twice")


def test_an_npz_of_plain_arrays_is_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", a=np.zeros((2, 3), np.float16), b=np.float32(1))
    assert {key: tuple(t.shape) for key, t in read_weights(tmp_path / "a.npz").items()} == {"a": (2, 3), "b": ()}


@pytest.mark.parametrize("suffix", [".npz", ".pth", ".safetensors", ".bin"])
@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"PK\3\4" + b"\0" * 100, b"\x80\x02", bytes(range(7, 250))], ids=repr)
def test_what_is_no_archive_is_refused(tmp_path: Path, suffix: str, data: bytes) -> None:
    (tmp_path / f"a{suffix}").write_bytes(data)
    assert_refused(lambda: read_weights(tmp_path / f"a{suffix}"), str(tmp_path / f"a{suffix}"))


def test_an_archive_that_inflates_is_refused(tmp_path: Path) -> None:
    """Zeros, as an array and in torch's format."""
    for suffix, name in ((".npz", "a.npy"), (".pth", "archive/data.pkl")):
        with (
            zipfile.ZipFile(tmp_path / f"a{suffix}", "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open(name, "w", force_zip64=True) as file,
        ):
            file.write(npy("(75000000,)", b""))
            for _ in range(300):
                file.write(bytes(10**6))
        assert (tmp_path / f"a{suffix}").stat().st_size < 1 << 21
        assert_refused(lambda suffix=suffix: read_weights(tmp_path / f"a{suffix}"), f"a{suffix}", "inflates to 300,")


def test_a_number_spread_over_a_large_shape_is_refused(tmp_path: Path) -> None:
    torch.save({"cls_token": torch.zeros(1).expand(10**12)}, tmp_path / "a.pth")
    assert_refused(lambda: read_weights(tmp_path / "a.pth"), "a.pth", "cls_token", "1000000000000")


@pytest.mark.parametrize("protocol", covering([0, 1, 2, 4], quick=[0]))
def test_any_cut_and_any_flipped_byte_of_a_torch_file_is_tensors_or_refused(tmp_path: Path, protocol: int) -> None:
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(6.0)}, buffer, pickle_protocol=max(protocol, 2), _use_new_zipfile_serialization=False)
    data, path = buffer.getvalue(), tmp_path / "a.pth"
    for place in range(protocol, len(data), 7):
        for damaged in (data[:place], data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :]):
            path.write_bytes(damaged)
            try:
                read_weights(path)
            except (ValueError, OSError) as error:
                assert str(path) in str(error)  # noqa: PT017


def test_tensors_without_numbers_are_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(2, device="meta")}, tmp_path / "a.pth")
    assert_refused(lambda: read_weights(tmp_path / "a.pth"), "a.pth", "'a'", "meta")


@pytest.mark.parametrize("state", [[1], {"a": 1}, {1: torch.zeros(1)}, {"model": {"a": [1]}}, torch.zeros(2), "a"])
def test_what_is_no_state_dict_is_refused(tmp_path: Path, state: object) -> None:
    torch.save(state, tmp_path / "a.pth")
    assert_refused(lambda: read_weights(tmp_path / "a.pth"), str(tmp_path / "a.pth"), "want a state dict")


@pytest.mark.parametrize("suffix", [".npz", ".pth", ".safetensors", ".bin"])
def test_a_folder_in_the_place_of_weights_is_said(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").mkdir()
    assert_refused(lambda: load_backbone("nano", tmp_path / f"a{suffix}"), f"a{suffix}", "a folder")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_folder_in_the_place_of_a_directorys_weights_is_said(directory: Path, name: str) -> None:
    (directory / "model.safetensors").unlink()
    (directory / name).mkdir()
    assert_refused(lambda: load_backbone(directory), str(directory / name), "a folder")


def test_weights_that_do_not_fit_are_named_with_both_files(directory: Path, tmp_path: Path) -> None:
    save_file(tiny_vit().state_dict(), tmp_path / "other.safetensors")
    text = assert_refused(lambda: load_backbone(directory, tmp_path / "other.safetensors"), "other.safetensors")
    assert str(directory / "config.json") in text
    assert "patch_embeddings.projection.weight: missing" in text
    save_file(tiny_vit().state_dict(), directory / "model.safetensors")
    text = assert_refused(lambda: load_backbone(directory), str(directory / "model.safetensors"))
    assert str(directory / "config.json") in text


@pytest.mark.parametrize("name", covering([*HF], quick=first_of_each(HF, lambda name: HF[name].config)))
def test_a_whole_directory_of_every_class_is_still_read(name: str, tmp_path: Path) -> None:
    save(tmp_path, name)
    kind = getattr(transformers, HF[name].config)
    assert load_backbone(tmp_path).spec.depth > 0
    edit(tmp_path / "config.json", **dict.fromkeys(("hidden_act", "layer_norm_eps", "qkv_bias", "mlp_ratio"), None))
    assert kind.model_type == json.loads((tmp_path / "config.json").read_text())["model_type"]
