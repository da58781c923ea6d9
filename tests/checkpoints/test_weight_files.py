"""Pickled code in a file of weights is refused and not run. A state dict is found inside any wrapper."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from tests.checkpoints.names import SMALL
from tests.helpers import tiny_vit
from vitbackbone import (
    load_backbone,
)
from vitbackbone.checkpoints.tensor_files import read_weights


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return exec, ("raise SystemExit('code from a checkpoint was run')",)


@pytest.mark.promise(24)
@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, protocol: str) -> None:
    path = tmp_path / "evil.pth"
    if protocol == "torch":
        torch.save({"cls_token": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"cls_token": Evil()}, protocol=2))
    with pytest.raises(ValueError, match="never run"):
        load_backbone(SMALL, weights=path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 7, 1000])
def test_truncated_weights_are_refused(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"a{suffix}"
    state = tiny_vit().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=str(path)):
        read_weights(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        load_backbone(SMALL, weights=tmp_path / "absent.pth")
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match="want a .safetensors file, or .npz"):
        load_backbone(SMALL, weights=tmp_path / "a.h5")
    np.savez(tmp_path / "code.npz", a=np.array([Path], dtype=object))
    with pytest.raises(ValueError, match="not a whole .npz of plain arrays"):
        load_backbone(SMALL, weights=tmp_path / "code.npz")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="want a state dict"):
        load_backbone(SMALL, weights=tmp_path / "list.pth")


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_state_dict_within_is_found(tmp_path: Path, wrapper: str) -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    torch.save({wrapper: state, "epoch": 3}, tmp_path / "a.pth")
    assert torch.equal(load_backbone(SMALL, tmp_path / "a.pth").norm.bias, state["norm.bias"])


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).half().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    backbone = load_backbone(SMALL, tmp_path / "a.safetensors")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}
