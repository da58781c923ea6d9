"""C-RADIO in the authors' directories: the network, its summary, and its adaptors, against the formulas again.

The oracle is timm's Vision Transformer behind NVlabs/RADIO's patch generator, both written here from their description.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import randomise, relative_error
from tests.oracles.cases import images
from vitbackbone import load_backbone
from vitbackbone.checkpoints import ConversionError

WIDTH, PATCH, SIDE = 48, 8, 12  # of the network; SIDE² positions
TEACHERS = [{"name": "clip"}, {"name": "siglip2"}, {"name": "dino", "use_summary": False}, {"name": "sam"}]
SIZES = [(64, 64), (40, 72), (96, 8)]


def branch(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, outputs))


class Second(nn.Module):
    def __init__(self, outputs: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 20)
        self.blocks = nn.ModuleList(branch(20, 20) for _ in range(inner))
        self.final = branch(20, outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x)
        for block in self.blocks:
            x = block(x) + x
        return self.final(x)


class First(nn.Module):
    def __init__(self, outputs: int, inner: int) -> None:
        super().__init__()
        self.fc1, self.norm, self.fc2 = nn.Linear(WIDTH, 20), nn.LayerNorm(20), nn.Linear(20, outputs)
        self.inner = nn.Sequential(
            *(each for _ in range(inner) for each in (nn.Linear(20, 20), nn.LayerNorm(20), nn.ReLU()))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.inner(F.relu(self.norm(self.fc1(x)))))


class Third(nn.Module):
    def __init__(self, outputs: int, inner: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(Block(WIDTH, num_heads=16, init_values=1e-5) for _ in range(inner)))
        self.mlp = Second(outputs, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.mlp(self.blocks(x))


class Radio(nn.Module):
    """The authors' network. Its parameters have their names on disk."""

    def __init__(self, tokens: int, kind: type[nn.Module], norm: bool, scale: bool) -> None:
        super().__init__()
        self.model = timm.create_model(
            "vit_tiny_patch16_224", embed_dim=WIDTH, depth=3, num_heads=3, num_classes=0, img_size=16,
            init_values=0.1 if scale else None,
        )  # fmt: skip
        for name in ("patch_embed", "cls_token", "pos_embed"):
            delattr(self.model, name)
        if not norm:
            self.model.norm = nn.Identity()
        made = self.model.patch_generator = nn.Module()
        made.embedder = nn.Linear(3 * PATCH**2, WIDTH, bias=False)
        made.pos_embed = nn.Parameter(torch.zeros(1, SIDE**2, WIDTH))
        made.cls_token = nn.Module()
        made.cls_token.token = nn.Parameter(torch.zeros(tokens, WIDTH))
        self.adaptors = nn.ModuleDict()
        for n, name in enumerate(("clip", "siglip2")):
            head = Second if kind is Third else kind
            self.adaptors[name] = nn.ModuleDict({"head_mlp": head(10 + n, n), "feat_mlp": kind((12, 4 * 5)[n], n + 1)})
        self.tokens = tokens

    def forward(self, x: Tensor, mean: Tensor, std: Tensor) -> Tensor:
        made = self.model.patch_generator
        h, w = x.shape[2] // PATCH, x.shape[3] // PATCH
        x = F.unfold((x - mean) / std, PATCH, stride=PATCH).mT  # each patch is (c, p, q)
        table, most = made.pos_embed.mT.unflatten(2, (SIDE, SIDE)), max(h, w)
        table = F.interpolate(table, size=(most, most), mode="bilinear")[..., :h, :w]
        x = made.embedder(x) + table.flatten(2).mT
        x = torch.cat([made.cls_token.token.expand(len(x), -1, -1), x], dim=1)
        return self.model.norm(self.model.blocks(x))


@dataclasses.dataclass(frozen=True)
class Saved:
    oracle: Radio
    config: dict[str, Any]
    state: dict[str, Tensor]

    def run(self, x: Tensor) -> Tensor:
        mean, std = (self.state[f"radio_model.input_conditioner.norm_{name}"] for name in ("mean", "std"))
        with torch.no_grad():
            return self.oracle(x, mean, std)

    def write(self, folder: Path) -> Path:
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(self.state, folder / "model.safetensors")
        return folder


def saved(
    kind: type[nn.Module] = Second,
    per_teacher: bool = True,
    norm: bool = False,
    registers: dict[str, int] | None = None,
    summary: list[int] | None = None,
    scale: bool = False,
) -> Saved:
    own = {"register_multiple": 3} if registers is None else registers
    cls = len(TEACHERS) if per_teacher else 1
    count = own.get("cpe_num_registers") or own["register_multiple"] - cls % own["register_multiple"]
    oracle = randomise(Radio(cls + count, kind, norm, scale))
    assert isinstance(oracle, Radio)
    state = {f"radio_model.{key}": value.clone() for key, value in oracle.state_dict().items()}
    if scale:  # the authors' name
        state = {key.replace(".gamma", ".grandma"): value for key, value in state.items()}
    mean, std = torch.tensor([0.4, 0.5, 0.45]), torch.tensor([0.3, 0.25, 0.2])
    state |= {f"radio_model.input_conditioner.norm_{n}": v.view(3, 1, 1) for n, v in (("mean", mean), ("std", std))}
    chosen = ([0, 1, 3] if per_teacher else [0]) if summary is None else summary
    state["radio_model.summary_idxs"] = torch.tensor(chosen)
    arguments = {
        **{"model": "vit_tiny_patch14_224", "teachers": TEACHERS, "cpe_max_size": SIDE * PATCH, "in_chans": None},
        **{"cls_token_per_teacher": per_teacher, "model_norm": norm, **own},
        "model_kwargs": {"embed_dim": WIDTH, "depth": 3, "num_heads": 3},
    }
    adaptors = {
        "clip": {"head_idx": 0, "feature": {"upsample_factor": 1}, "summary": {}},
        "siglip2": {"head_idx": 3, "feature": {"upsample_factor": 2, "upsample_rank": None}},
    }
    config = {"architectures": ["RADIOModel"], "args": arguments, "patch_size": PATCH, "adaptor_configs": adaptors}
    return Saved(oracle, {**config, "version": "c-radio_v3-b", "max_resolution": 2048}, state)


KINDS: dict[str, dict[str, Any]] = {
    "v3": {},
    "one token for all teachers, a final norm": {"per_teacher": False, "norm": True},
    "v4, other tokens in the weights": {"registers": {"cpe_num_registers": 2}, "summary": [3, 0], "scale": True},
}


@pytest.mark.parametrize("kind", KINDS)
def test_network_and_summary_are_the_authors(kind: str, tmp_path: Path) -> None:
    case = saved(**KINDS[kind])
    ours = load_backbone(case.write(tmp_path))
    tokens = case.oracle.tokens
    chosen = case.state["radio_model.summary_idxs"]
    for size in SIZES:
        x = images(size, 2)
        want = case.run(x)
        with torch.inference_mode():
            got = ours(x)
        assert relative_error(got.tokens, want[:, tokens:]) <= 1e-5
        assert relative_error(got.registers, want[:, 1:tokens]) <= 1e-5
        assert relative_error(got.pooled, want[:, chosen].flatten(1)) <= 1e-5


@pytest.mark.parametrize("per_teacher", [True, False])
@pytest.mark.parametrize("kind", [First, Second, Third])
@pytest.mark.parametrize("name", ["clip", "siglip2"])
def test_adaptors_are_the_authors(name: str, kind: type[nn.Module], per_teacher: bool, tmp_path: Path) -> None:
    case = saved(kind, per_teacher)
    ours = load_backbone(case.write(tmp_path), adaptor=name)
    parts, factor = case.oracle.adaptors[name], {"clip": 1, "siglip2": 2}[name]
    token = case.config["adaptor_configs"][name]["head_idx"] if per_teacher else 0
    assert (ours.spec.stride, ours.spec.depth) == (PATCH // factor, 1)
    for size in SIZES:
        x, (h, w) = images(size, 2), (size[0] // PATCH, size[1] // PATCH)
        whole = case.run(x)
        with torch.inference_mode():
            got, flat = ours(x), parts["feat_mlp"](whole[:, case.oracle.tokens :])
            want = (
                flat.view(2, h, w, factor, factor, -1).permute(0, 5, 1, 3, 2, 4).reshape(2, -1, h * factor, w * factor)
            )
            assert relative_error(got.patches, want) <= 1e-5
            assert relative_error(got.pooled, parts["head_mlp"](whole[:, token])) <= 1e-5
    with torch.inference_mode():
        mixed = ours([images((40, 72))[0], images((61, 30))[0]])
        alone = ours(images((61, 30)))
        assert relative_error(mixed.image(1).patches, alone.patches) <= 1e-5
        assert relative_error(mixed.pooled[1:], alone.pooled) <= 1e-5


def test_errors_name_what_there_is(tmp_path: Path) -> None:
    case = saved()
    case.write(tmp_path)
    with pytest.raises(ValueError, match="adaptor='sam'; want one of 'clip', 'siglip2'"):
        load_backbone(tmp_path, adaptor="sam")
    with pytest.raises(ValueError, match="want a directory of C-RADIO"):
        load_backbone("nano", adaptor="clip")
    case.state.pop("radio_model.adaptors.clip.feat_mlp.blocks.0.2.bias")
    case.write(tmp_path)
    with pytest.raises(
        ConversionError, match=r"adaptors\.clip\.feat_mlp\.blocks\.0\.2\.bias: missing in the checkpoint"
    ):
        load_backbone(tmp_path, adaptor="clip")
    wrong = dataclasses.replace(case, state={**case.state, "radio_model.summary_idxs": torch.tensor([99])})
    with pytest.raises(ConversionError, match="summary_idxs"):
        load_backbone(wrong.write(tmp_path))
    case.config["args"]["model"] = "eradio"
    with pytest.raises(ValueError, match=r"args\.model='eradio'; want one of vit_tiny"):
        load_backbone(case.write(tmp_path))
