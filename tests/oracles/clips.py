"""V-JEPA 2 and 2.1 as oracles, for clips and for images."""

import functools
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
import transformers
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import randomise
from tests.oracles.cases import Case, Outputs, Size
from vitbackbone import BackboneModule, load_backbone
from vitbackbone.checkpoints.zoo import ZOO, Positions

SMALL = {"num_hidden_layers": 3, "num_attention_heads": 3, "patch_size": 8, "crop_size": 64, "mlp_ratio": 2}
PREDICTOR = {"pred_hidden_size": 24, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
#    model: settings. 60 channels are heads of 20, of which three axes turn 6 each, and 2 stand still
VJEPA: dict[str, dict[str, object]] = {
    "vjepa 2": {**SMALL, **PREDICTOR, "hidden_size": 60},
    "vjepa 2, four frames": {**SMALL, **PREDICTOR, "hidden_size": 72, "tubelet_size": 4, "qkv_bias": False},
}
SIZES: tuple[Size, ...] = ((64, 64), (96, 96), (40, 88), (61, 43), (72, 8))


def vjepa_model(name: str) -> nn.Module:
    return randomise(transformers.VJEPA2Model(transformers.VJEPA2Config(**VJEPA[name])))


def run_vjepa(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    """Run clips, or images as clips of one frame. transformers counts rows and columns by `crop_size`, the authors by
    the size of the input (facebookresearch/vjepa2, src/models/utils/modules.py)."""
    clips = x if x.ndim == 5 else x[:, None]
    patch = model.config.patch_size
    h, w = clips.shape[3] // patch, clips.shape[4] // patch
    for block in model.encoder.layer:
        block.attention.get_position_ids = functools.partial(places, h, w)
    out = model(clips, skip_predictor=True, output_hidden_states=True)
    taken: dict[int, Tensor] = {}
    hooks = [
        block.register_forward_hook(lambda *given, i=i: taken.update({i: given[-1][0]}))
        for i, block in enumerate(model.encoder.layer)
    ]
    model(clips, skip_predictor=True)
    for hook in hooks:
        hook.remove()
    tokens = out.last_hidden_state
    return Outputs(tokens, taken, tokens.mean(dim=1))


def places(h: int, w: int, x: Tensor, masks: None = None) -> tuple[Tensor, Tensor, Tensor]:
    index = torch.arange(x.shape[1])
    return index // (h * w), index % (h * w) // w, index % w


# ---- V-JEPA 2.1, from its paper and the authors' code -------------------------------------------------------------

TAPS = (2, 5, 8, 11)  # of 12 blocks


class Vjepa21Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        """`where`: (3, N), the place of each token in time, down and across."""
        batch, count, dim = x.shape
        q, k, v = self.qkv(x).view(batch, count, 3, self.heads, dim // self.heads).permute(2, 0, 3, 1, 4)
        weights = (turn(q, where) @ turn(k, where).mT / (dim // self.heads) ** 0.5).softmax(dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


def turn(x: Tensor, where: Tensor) -> Tensor:
    """Turn a third of the channels by each place, as complex numbers of two neighbours each."""
    pairs = x.shape[-1] // 3 // 2
    turned = torch.view_as_complex(x[..., : 6 * pairs].contiguous().unflatten(-1, (3, pairs, 2)))
    speed = 10000.0 ** -(torch.arange(pairs) / pairs)
    angle = where.mT[:, :, None] * speed  # N 3 pairs
    turned = torch.view_as_real(turned * torch.polar(torch.ones_like(angle), angle)).flatten(-3)
    return torch.cat([turned, x[..., 6 * pairs :]], dim=-1)


class Vjepa21Block(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
        self.attn = Vjepa21Attention(dim, heads)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})

    def forward(self, x: Tensor, where: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x), where)
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Vjepa21(nn.Module):
    """The encoder of ViT-B/16, narrow: 12 blocks, and heads of another width than the published one."""

    def __init__(self, dim: int = 60, heads: int = 3) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv3d(3, dim, (2, 16, 16), (2, 16, 16))})
        self.patch_embed_img = nn.ModuleDict({"proj": nn.Conv3d(3, dim, (1, 16, 16), (1, 16, 16))})
        self.video_mod_embed = nn.Parameter(torch.zeros(1, 1, dim))
        self.img_mod_embed = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(Vjepa21Block(dim, heads) for _ in range(12))
        self.norms_block = nn.ModuleList(nn.LayerNorm(dim, eps=1e-6) for _ in TAPS)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor]]:
        """Return the output, the blocks' outputs, and the normed ones of four blocks."""
        image = x.ndim == 4
        clips = x[:, :, None] if image else x.transpose(1, 2)
        embed, kind = (self.patch_embed_img, self.img_mod_embed) if image else (self.patch_embed, self.video_mod_embed)
        maps = embed["proj"](clips)
        t, h, w = maps.shape[2:]
        x = maps.flatten(2).mT + kind
        # rows and columns span the 16 x 16 patches of pretraining
        axes = [torch.arange(t).float(), *(torch.arange(n) * 15.0 / max(n - 1, 1) for n in (h, w))]
        where = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        raw = {}
        for i, block in enumerate(self.blocks):
            x = raw[i] = block(x, where)
        normed = {i: norm(raw[i]) for i, norm in zip(TAPS, self.norms_block, strict=True)}
        return normed[11], raw, normed


def run_vjepa21(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    tokens, raw, _ = model(x)
    return Outputs(tokens, raw, tokens.mean(dim=1))


NAME_21 = "vjepa2_1_vit_base_384"


def save_vjepa21(model: nn.Module, folder: Path) -> None:
    """Write the averaged encoder as the authors' trainer does."""
    state = {f"ema_encoder.module.backbone.{key}": value for key, value in model.state_dict().items()}
    save_file({**state, "predictor.module.backbone.mask_tokens": torch.zeros(2)}, folder / "model.safetensors")


def load_narrow(folder: Path, positions: Positions) -> BackboneModule:
    """Load a narrow network under the name of the published one."""
    entry = ZOO[NAME_21]
    narrow = replace(entry, config=replace(entry.config, dim=60, num_heads=3, mlp_dim=240))
    with mock.patch.dict(ZOO, {NAME_21: narrow}):
        return load_backbone(NAME_21, weights=folder / "model.safetensors", positions=positions)


def transformers_case(name: str) -> Case:
    return Case(
        "V-JEPA 2",
        "transformers",
        name,
        SIZES,
        functools.partial(vjepa_model, name),
        lambda folder, positions: load_backbone(folder, positions=positions),
        lambda model, folder: model.save_pretrained(folder),
        run_vjepa,
        policy="hf",
        multiple=8,
    )


PUBLISHED = Case(
    "V-JEPA 2.1",
    "formula",
    NAME_21,
    ((64, 64), (96, 96), (48, 112), (61, 43), (80, 16)),
    lambda: randomise(Vjepa21()),
    load_narrow,
    save_vjepa21,
    run_vjepa21,
    policy="native",
    multiple=16,
)
CLIP_CASES: list[Case] = [*(transformers_case(name) for name in VJEPA), PUBLISHED]
