"""Depth Anything 3's encoder equals its formula for one view, at any size, with every parameter randomised."""

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import randomise, relative_error
from tests.oracles.cases import images
from vitbackbone import BackboneModule, load_backbone, optimize
from vitbackbone.checkpoints.zoo import ZOO

DIM, DEPTH, HEADS, MLP, PATCH, SIDE, START = 48, 5, 3, 96, 8, 4, 2  # SIDE² positions
SIZES = [(32, 32), (40, 72), (64, 24), (61, 43)]


def turned(x: Tensor, places: Tensor) -> Tensor:
    """Rotate (B, heads, N, d): half of the channels by the row, and half by the column. `places`: (N, 2)."""
    parts = []
    for part, place in zip(x.chunk(2, dim=-1), places.unbind(1), strict=True):
        quarter = part.shape[-1] // 2
        angle = place[:, None] * 100.0 ** -(torch.arange(quarter) / quarter)
        first, second = part[..., :quarter], part[..., quarter:]
        parts += [first * angle.cos() - second * angle.sin(), second * angle.cos() + first * angle.sin()]
    return torch.cat(parts, dim=-1)


class Attention(nn.Module):
    def __init__(self, late: bool) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        if late:
            self.q_norm, self.k_norm = nn.LayerNorm(DIM // HEADS), nn.LayerNorm(DIM // HEADS)

    def forward(self, x: Tensor, places: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        if places is not None:
            q, k = (turned(norm(part), places) for norm, part in ((self.q_norm, q), (self.k_norm, k)))
        weights = (q @ k.mT / (DIM / HEADS) ** 0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(DIM))


class Block(nn.Module):
    def __init__(self, late: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
        self.attn, self.ls1, self.ls2 = Attention(late), Scale(), Scale()
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(DIM, MLP), "fc2": nn.Linear(MLP, DIM)})

    def forward(self, x: Tensor, places: Tensor | None) -> Tensor:
        x = x + self.ls1.gamma * self.attn(self.norm1(x), places)
        return x + self.ls2.gamma * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, DIM, PATCH, PATCH)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.camera_token = nn.Parameter(torch.zeros(1, 2, DIM))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + SIDE**2, DIM))
        self.blocks = nn.ModuleList(Block(i >= START) for i in range(DEPTH))
        self.norm = nn.LayerNorm(DIM)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        maps = self.patch_embed["proj"](x)
        h, w = maps.shape[2:]
        table = self.pos_embed[:, 1:].mT.unflatten(2, (SIDE, SIDE))
        if (h, w) != (SIDE, SIDE):
            table = F.interpolate(table, scale_factor=((h + 0.1) / SIDE, (w + 0.1) / SIDE), mode="bicubic")
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1)
        x = torch.cat([cls, maps.flatten(2).mT + table.flatten(2).mT], dim=1)
        rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        local = torch.stack([rows.flatten(), columns.flatten()], dim=1) + 1.0
        raw: dict[int, Tensor] = {}
        for i, block in enumerate(self.blocks):
            if i == START:
                x = torch.cat([self.camera_token[:, :1].expand(len(x), -1, -1), x[:, 1:]], dim=1)
            places = torch.ones_like(local) if i % 2 else local  # attention over all views knows no places
            x = raw[i] = block(x, torch.cat([torch.zeros(1, 2), places]) if i >= START else None)
        return self.norm(x), raw


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Encoder, BackboneModule]:
    model, file = randomise(Encoder()), tmp_path_factory.mktemp("da3") / "model.safetensors"
    assert isinstance(model, Encoder)
    state = {f"model.backbone.pretrained.{key}": value for key, value in model.state_dict().items()}
    save_file({**state, "model.head.norm.weight": torch.zeros(3)}, file)
    return model, load(file)


def load(file: Path) -> BackboneModule:
    entry = ZOO["da3_base"]
    sizes = {"image_size": (SIDE * PATCH, SIDE * PATCH), "patch_size": PATCH, "dim": DIM, "depth": DEPTH}
    views = replace(entry.config.views, start=START)
    narrow = replace(entry.config, **sizes, num_heads=HEADS, mlp_dim=MLP, views=views)
    with mock.patch.dict(ZOO, {"da3_base": replace(entry, config=narrow)}):
        return load_backbone("da3_base", weights=file)


@pytest.mark.parametrize("size", SIZES)
def test_features_are_the_formulas(size: tuple[int, int], encoders: tuple[Encoder, BackboneModule]) -> None:
    model, ours = encoders
    x = images(size, 2)
    with torch.inference_mode():
        want, raw = model(F.pad(x, (0, -size[1] % PATCH, 0, -size[0] % PATCH)))
        got = ours(x)
        assert relative_error(got.tokens, want[:, 1:]) <= 1e-5
        assert relative_error(got.cls, want[:, 0]) <= 1e-5
        for layer, features in enumerate(ours.forward_layers(x, range(DEPTH), norm=False)):
            assert relative_error(features.tokens, raw[layer][:, 1:]) <= 1e-5
            assert relative_error(features.cls, raw[layer][:, 0]) <= 1e-5


def test_batches_of_several_sizes_and_prefixes(encoders: tuple[Encoder, BackboneModule]) -> None:
    _, ours = encoders
    several = [images((40, 72))[0], images((32, 32))[0]]
    with torch.inference_mode():
        mixed = ours(several)
        for i, image in enumerate(several):
            alone = ours(image[None])
            assert relative_error(mixed.image(i).patches, alone.patches) <= 1e-5
            assert relative_error(mixed.cls[i : i + 1], alone.cls) <= 1e-5
        x = images((40, 72), 2)
        (prefix,) = ours.forward_prefix(x, [START])
        (whole,) = ours.forward_layers(x, [START])
        assert relative_error(prefix.cls, whole.cls) <= 1e-5


def test_openvino_refuses_it_at_once(encoders: tuple[Encoder, BackboneModule]) -> None:
    pytest.importorskip("openvino")
    with pytest.raises(ValueError, match="made for several views of a scene, which have no graph"):
        optimize(encoders[1], engine="openvino")
