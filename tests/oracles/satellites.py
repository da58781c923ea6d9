"""Satellites' backbones as oracles, written from their papers and code, mostly with timm's blocks, as theirs have.

See `tests/oracles/cases.py`. The networks are narrow; a name of the zoo gets their sizes while they are loaded.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from safetensors.torch import save_file
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import randomise
from tests.oracles.cases import Case, Outputs, Size
from vitbackbone import BackboneModule, load_backbone
from vitbackbone.checkpoints.zoo import ZOO, Positions

DIM, DEPTH, HEADS, MLP = 48, 3, 3, 96
CLAY_BANDS = (0.493, 0.56, 0.665, 0.704, 0.74, 0.783, 0.842, 0.865, 1.61, 2.19)  # Sentinel-2
NATIVE, PATCH = 32, 8
SIZES: tuple[Size, ...] = ((32, 32), (64, 64), (40, 88), (61, 43), (72, 8))


def waves(places: np.ndarray, dim: int) -> np.ndarray:
    speed = 1 / 10000 ** (np.arange(dim // 2) / (dim / 2))
    return np.concatenate([np.sin(np.outer(places, speed)), np.cos(np.outer(places, speed))], axis=1)


class Encoder(nn.Module):
    """CLS, blocks and the last norm of MAE's encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        norm = functools.partial(nn.LayerNorm, eps=1e-6)
        self.blocks = nn.ModuleList(Block(DIM, HEADS, MLP / DIM, qkv_bias=True, norm_layer=norm) for _ in range(DEPTH))
        self.norm = norm(DIM)

    def run(self, x: Tensor, cls: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        x, raw = torch.cat([cls.expand(len(x), -1, -1), x], dim=1), {}
        for i, block in enumerate(self.blocks):
            x = raw[i] = block(x)
        return self.norm(x), raw


class Prithvi(Encoder):
    """Jakubik et al. 2023 and 2024."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(6, DIM, (1, PATCH, PATCH), (1, PATCH, PATCH))})

    def forward(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        clips = x[:, :, None] if x.ndim == 4 else x.transpose(1, 2)
        maps = self.patch_embed["proj"](clips)
        t, h, w = maps.shape[2:]
        side, share = NATIVE // PATCH, DIM // 16
        table = np.concatenate(
            [
                np.tile(waves(np.arange(side), 6 * share), (side, 1)),
                np.repeat(waves(np.arange(side), 6 * share), side, axis=0),
            ],
            axis=1,
        )
        image = torch.from_numpy(table).float().view(1, side, side, -1).permute(0, 3, 1, 2)
        if (h, w) != (side, side):
            image = F.interpolate(image, (h, w), mode="bicubic", align_corners=True)
        space = image.flatten(2).mT.repeat(1, t, 1)
        time = torch.from_numpy(np.repeat(waves(np.arange(t), 4 * share), h * w, axis=0)).float()[None]
        return self.run(maps.flatten(2).mT + torch.cat([space, time], dim=2), self.cls_token)


class SatMae(Encoder):
    """Cong et al. 2022: a token for each patch of each group of channels."""

    groups = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleList(
            nn.ModuleDict({"proj": nn.Conv2d(len(group), DIM, PATCH, PATCH)}) for group in self.groups
        )
        count, own = (NATIVE // PATCH) ** 2, DIM // 3
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + count, DIM - own))
        self.channel_embed = nn.Parameter(torch.zeros(1, 3, own))
        self.channel_cls_embed = nn.Parameter(torch.zeros(1, 1, own))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        side, grid = NATIVE // PATCH, (x.shape[2] // PATCH, x.shape[3] // PATCH)
        image = self.pos_embed[:, 1:].mT.unflatten(2, (side, side))
        table = F.interpolate(image, grid, mode="bicubic").flatten(2).mT
        tokens = []
        for group, embed, vector in zip(self.groups, self.patch_embed, self.channel_embed[0], strict=True):
            patches = embed["proj"](x[:, list(group)]).flatten(2).mT
            tokens.append(patches + torch.cat([table, vector.expand(1, table.shape[1], -1)], dim=2))
        cls = self.cls_token + torch.cat([self.pos_embed[:, :1], self.channel_cls_embed], dim=2)
        return self.run(torch.cat(tokens, dim=1), cls)


class Generator(nn.Module):
    """The network that makes DOFA's kernels of wavelengths."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 64, dropout=0.0, activation="gelu")
        self.transformer_encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.fc_weight, self.fc_bias = nn.Linear(128, PATCH**2 * DIM), nn.Linear(128, DIM)
        self.weight_tokens = nn.Parameter(torch.zeros(128, 128))
        self.bias_token = nn.Parameter(torch.zeros(1, 128))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.transformer_encoder(torch.cat([self.weight_tokens, x, self.bias_token]))
        return self.fc_weight(out[128:-1] + x), self.fc_bias(out[-1])


class Dofa(Encoder):
    """Xiong et al. 2024."""

    def __init__(self, wavelengths: tuple[float, ...] = (0.665, 0.56, 0.49)) -> None:
        super().__init__()
        self.wavelengths = wavelengths
        first = nn.ModuleDict({"w1": nn.Linear(128, 128), "w2": nn.Linear(128, 128)})
        self.patch_embed = nn.ModuleDict({"fclayer": first, "weight_generator": Generator()})
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + (NATIVE // PATCH) ** 2, DIM))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        places = torch.from_numpy(waves(1000 * np.array(self.wavelengths), 128)).float()
        first = self.patch_embed["fclayer"]
        places = places + first["w2"](first["w1"](places).relu()).relu()
        weight, bias = self.patch_embed["weight_generator"](places)
        kernel = 0.01 * weight.view(DIM, len(self.wavelengths), PATCH, PATCH)
        maps = F.conv2d(x, kernel, 0.01 * bias, stride=PATCH, padding=1)
        side = NATIVE // PATCH
        table = self.pos_embed[:, 1:].mT.unflatten(2, (side, side))
        table = F.interpolate(table, maps.shape[2:], mode="bicubic").flatten(2).mT
        return self.run(maps.flatten(2).mT + table, self.cls_token + self.pos_embed[:, :1])


class FeedForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, MLP), nn.GELU(), nn.Linear(MLP, DIM))


class ClayAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(DIM)
        self.to_qkv, self.to_out = nn.Linear(DIM, 3 * DIM, bias=False), nn.Linear(DIM, DIM, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.to_qkv(self.norm(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / (DIM / HEADS) ** 0.5).softmax(dim=-1)
        return self.to_out((weights @ v).transpose(1, 2).flatten(2))


class WavesTransformer(nn.Module):
    """The network that makes Clay's kernels of wavelengths."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 64, dropout=0.0, activation="gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.fc_weight, self.fc_bias = nn.Linear(128, PATCH**2 * DIM), nn.Linear(128, DIM)
        self.weight_tokens = nn.Parameter(torch.zeros(128, 128))
        self.bias_token = nn.Parameter(torch.zeros(1, 128))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        out = self.encoder(torch.cat([self.weight_tokens, x, self.bias_token])[None])[0]
        return self.fc_weight(out[128:-1] + x), self.fc_bias(out[-1])


class Clay(nn.Module):
    """Clay v1.5, at its zeros for an unknown date and place."""

    def __init__(self, wavelengths: tuple[float, ...] = CLAY_BANDS, metres: float = 10.0) -> None:
        super().__init__()
        self.wavelengths, self.metres = wavelengths, metres
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        first = nn.ModuleDict({"l1": nn.Linear(128, 128), "l2": nn.Linear(128, 128)})
        self.patch_embedding = nn.ModuleDict({"fclayer": first, "weight_generator": WavesTransformer()})
        self.transformer = nn.Module()
        self.transformer.norm = nn.LayerNorm(DIM)
        self.transformer.layers = nn.ModuleList(nn.ModuleList([ClayAttention(), FeedForward()]) for _ in range(DEPTH))

    def positions(self, h: int, w: int) -> Tensor:
        own = DIM - 8
        speed = self.metres / 10000 ** (2 * np.linspace(0, 1, own // 4) / own)
        table = np.zeros((h, w, DIM))
        for row in range(h):
            for column in range(w):
                parts = [f(place * speed) for place in (column, row) for f in (np.sin, np.cos)]
                table[row, column, :own] = np.concatenate(parts)
        return torch.from_numpy(table).float().view(1, h * w, DIM)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        speed = 1 / 10000 ** np.linspace(0, 1, 64)
        places = np.outer(np.array(self.wavelengths), speed)
        waves = torch.from_numpy(np.concatenate([np.sin(places), np.cos(places)], axis=1)).float()
        first = self.patch_embedding["fclayer"]
        waves = waves + F.gelu(first["l2"](F.gelu(first["l1"](waves))))
        weight, bias = self.patch_embedding["weight_generator"](waves)
        kernel = 0.02 * weight.view(len(waves), DIM, PATCH, PATCH).transpose(0, 1)
        maps = F.conv2d(x, kernel, bias, stride=PATCH)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), maps.flatten(2).mT + self.positions(*maps.shape[2:])], 1)
        raw: dict[int, Tensor] = {}
        for i, (attention, mlp) in enumerate(self.transformer.layers):
            x = attention(x) + x
            x = raw[i] = mlp.net(x) + x
        return self.transformer.norm(x), raw


class TerraMindPatches(nn.Module):
    """Patches of one kind of images, pixel by pixel with all channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Linear(PATCH**2 * channels, DIM, bias=False)
        self.mod_emb = nn.Parameter(torch.zeros(1, 1, DIM))
        self.pos_emb = nn.Parameter(torch.zeros(1, (NATIVE // PATCH) ** 2, DIM))

    def forward(self, x: Tensor) -> Tensor:
        grid, side = (x.shape[2] // PATCH, x.shape[3] // PATCH), NATIVE // PATCH
        pixels = x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH)  # (B, C, h, w, p, p)
        tokens = self.proj(pixels.permute(0, 2, 3, 4, 5, 1).flatten(3).flatten(1, 2))
        table = F.interpolate(self.pos_emb.mT.unflatten(2, (side, side)), grid, mode="bicubic")
        return tokens + table.flatten(2).mT + self.mod_emb


class TerraMindBlock(nn.Module):
    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(DIM, 3 * DIM, bias=not gated), "proj": nn.Linear(DIM, DIM, bias=not gated)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(DIM, MLP, bias=not gated), "fc2": nn.Linear(MLP, DIM, bias=not gated)}
        )
        if gated:
            self.mlp["fc3"] = nn.Linear(DIM, MLP, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / (DIM / HEADS) ** 0.5).softmax(dim=-1)
        x = x + self.attn["proj"]((weights @ v).transpose(1, 2).flatten(2))
        hidden = self.mlp["fc1"](self.norm2(x))
        hidden = F.silu(hidden) * self.mlp["fc3"](self.norm2(x)) if "fc3" in self.mlp else F.gelu(hidden)
        return x + self.mlp["fc2"](hidden)


class TerraMind(nn.Module):
    """Jakubik et al. 2025, with images of one of its kinds. Its file has the patches of others beside them."""

    def __init__(self, kind: str, gated: bool) -> None:
        super().__init__()
        channels = {"untok_sen2l2a@224": 12, "untok_sen1grd@224": 2, "untok_sen1rtc@224": 2, "untok_dem@224": 1}
        self.kind = kind
        self.encoder_embeddings = nn.ModuleDict({name: TerraMindPatches(count) for name, count in channels.items()})
        self.encoder = nn.ModuleList(TerraMindBlock(gated) for _ in range(DEPTH))
        self.encoder_norm = nn.LayerNorm(DIM, eps=1e-6)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        x, raw = self.encoder_embeddings[self.kind](x), {}
        for i, block in enumerate(self.encoder):
            x = raw[i] = block(x)
        return self.encoder_norm(x), raw


def run(mean: bool, model: Callable[[Tensor], tuple[Tensor, dict[int, Tensor]]], x: Tensor, _: list[int]) -> Outputs:
    tokens, raw = model(x)
    patches = tokens if isinstance(model, TerraMind) else tokens[:, 1:]
    return Outputs(tokens, raw, patches.mean(dim=1) if mean else tokens[:, 0])


def load(name: str, folder: Path, positions: Positions, **options: object) -> BackboneModule:
    entry = ZOO[name]
    sizes = {"image_size": (NATIVE, NATIVE), "patch_size": PATCH, "dim": DIM, "depth": DEPTH}
    narrow = replace(entry.config, **sizes, num_heads=HEADS, mlp_dim=MLP)
    with mock.patch.dict(ZOO, {name: replace(entry, config=narrow)}):
        return load_backbone(name, weights=folder / "model.safetensors", positions=positions, **options)


def save(prefix: str, model: nn.Module, folder: Path) -> None:
    """Write the encoder as its authors do, with the parts of the decoder that no feature needs."""
    state = {prefix + key: value for key, value in model.state_dict().items()}
    save_file({**state, "decoder.decoder_embed.bias": torch.zeros(3), "mask_token": torch.zeros(1)}, folder / FILE)


FILE = "model.safetensors"


def satellite_case(
    family: str, name: str, model: Callable[[], nn.Module], channels: int, prefix: str, mean: bool
) -> Case:
    return Case(
        family,
        "formula",
        name,
        SIZES,
        lambda: randomise(model()),
        functools.partial(load, name),
        functools.partial(save, prefix),
        functools.partial(run, mean),
        policy="native",
        multiple=PATCH,
        channels=channels,
    )


SATELLITE_CASES: list[Case] = [
    satellite_case("Prithvi", "prithvi_eo_v2_300", Prithvi, 6, "encoder.", False),
    satellite_case("Prithvi", "prithvi_eo_v1_100", Prithvi, 6, "", False),
    satellite_case("SatMAE", "satmae_vit_base_patch8_96.fmow_sentinel", SatMae, 10, "", False),
    satellite_case("Clay", "clay_v1_5.sentinel_2_l2a", Clay, 10, "model.encoder.", False),
    satellite_case(
        *("TerraMind", "terramind_v1_base.sentinel_2_l2a", lambda: TerraMind("untok_sen2l2a@224", True), 12, "", True)
    ),
    satellite_case(
        *("TerraMind", "terramind_v1_tiny.sentinel_1_rtc", lambda: TerraMind("untok_sen1rtc@224", False), 2, "", True)
    ),
    satellite_case("DOFA", "dofa_vit_base_patch16_224", Dofa, 3, "", True),
]
