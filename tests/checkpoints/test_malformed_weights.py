"""Weights with false claims, in any format, are refused with a clear error and cost no memory."""

import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from tests.checkpoints.refusals import assert_refused, edit, save
from tests.checkpoints.sampling import covering, first_of_each
from tests.helpers import tiny_vit
from tests.oracles.transformers_models import HF
from vitbackbone import load_backbone
from vitbackbone.checkpoints.tensor_files import read_weights


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
