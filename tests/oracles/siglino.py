"""SigLino as an oracle, written from its code (tiiuae/siglino): dense, and of experts."""

import functools
import math
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import randomise
from tests.oracles.cases import Case, Outputs, Size
from vitbackbone import BackboneModule, load_backbone
from vitbackbone.checkpoints.zoo import ZOO, Positions

DIM, DEPTH, HEADS, WIDTH, HIDDEN, EXPERTS = 48, 3, 4, 16, 40, 5
SIZES: tuple[Size, ...] = ((64, 64), (32, 32), (80, 176), (61, 43), (144, 16))


def plain(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + torch.finfo(x.dtype).eps)


def normed(x: Tensor, weight: Tensor | None) -> Tensor:
    if weight is None:
        return plain(x)
    return weight * x * torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + 1e-5)


def directions() -> Tensor:
    """The frequencies of each pair of channels of each head, for rows and for columns."""
    root = 2.0
    for _ in range(10):
        root = (1 + root) ** (1 / 3)
    found = []
    for i in range(1, HEADS * WIDTH // 4 + 1):
        pair = torch.erfinv(2 * torch.tensor([(i / root) % 1, (i / root**2) % 1], dtype=torch.float64) - 1)
        found.append(pair / pair.square().sum().sqrt())
    speeds = torch.tensor([20.0 ** (k / (WIDTH // 4 - 1)) for k in range(WIDTH // 4)])
    return torch.stack(found).view(HEADS, -1, 2).float() * speeds[:, None]


def turned(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Turn the second half of each head of the patches. `x`: (B, N, heads, width)."""
    h, w = grid
    places = [
        [(2 * r / max(h - 1, 1) - 1) * math.sqrt(h / w), (2 * c / max(w - 1, 1) - 1) * math.sqrt(w / h)]
        for r in range(h)
        for c in range(w)
    ]
    angle = torch.einsum("np,hkp->nhk", torch.tensor(places), directions())
    still, moving = x.chunk(2, dim=-1)
    ahead, patches = moving[:, : -h * w], moving[:, -h * w :]
    spun = torch.view_as_complex(patches.unflatten(-1, (-1, 2)).contiguous()) * torch.polar(torch.ones(()), angle)
    return torch.cat([still, torch.cat([ahead, torch.view_as_real(spun).flatten(-2)], dim=1)], dim=-1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        inner = HEADS * WIDTH
        self.wq, self.wk, self.wv = (nn.Linear(DIM, inner, bias=False) for _ in range(3))
        self.wo, self.sinks = nn.Linear(inner, DIM, bias=False), nn.Parameter(torch.zeros(HEADS))

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        q, k, v = (layer(x).unflatten(2, (HEADS, WIDTH)) for layer in (self.wq, self.wk, self.wv))
        q, k = turned(plain(q), grid), turned(plain(k), grid)
        logits = torch.einsum("bqhd,bkhd->bhqk", q, k) / WIDTH**0.5
        share = torch.sigmoid(logits.logsumexp(dim=-1) - self.sinks[:, None])
        mixed = torch.einsum("bhqk,bkhd->bqhd", logits.softmax(dim=-1) * share[..., None], v)
        return self.wo(mixed.flatten(2))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sides = (DIM, HIDDEN), (HIDDEN, DIM), (DIM, HIDDEN)
        self.w1, self.w2, self.w3 = (nn.Linear(*each, bias=False) for each in sides)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Mixture(nn.Module):
    """The experts of one token after the other."""

    def __init__(self, chosen: int) -> None:
        super().__init__()
        self.chosen = chosen
        self.router = nn.ModuleDict({"gate": nn.Linear(DIM, EXPERTS, bias=False)})
        sides = {"w1": (HIDDEN, DIM), "w2": (DIM, HIDDEN), "w3": (HIDDEN, DIM)}
        self.experts = nn.ParameterDict({name: torch.zeros(EXPERTS, *side) for name, side in sides.items()})
        self.expert_bias = nn.Parameter(torch.zeros(EXPERTS))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([torch.stack([self.one(token) for token in image]) for image in x])

    def one(self, token: Tensor) -> Tensor:
        scores = torch.sigmoid(self.router["gate"](token))
        best = sorted(range(EXPERTS), key=lambda e: -(scores + self.expert_bias)[e].item())[: self.chosen]
        w1, w2, w3 = (self.experts[name] for name in ("w1", "w2", "w3"))
        return torch.stack([scores[e] * (w2[e] @ (F.silu(w1[e] @ token) * (w3[e] @ token))) for e in best]).sum(0)


class Layer(nn.Module):
    def __init__(self, chosen: int, weighted: bool) -> None:
        super().__init__()
        self.attention = Attention()
        self.moe, self.feed_forward = (Mixture(chosen), None) if chosen else (None, Gated())
        self.attention_norm, self.ffn_norm = (nn.RMSNorm(DIM) if weighted else None for _ in range(2))

    def enter(self, x: Tensor) -> Tensor:
        return normed(x, None if self.attention_norm is None else self.attention_norm.weight)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        x = x + self.attention(self.enter(x), grid)
        inside = normed(x, None if self.ffn_norm is None else self.ffn_norm.weight)
        return x + (self.feed_forward(inside) if self.moe is None else self.moe(inside))


class Encoder(nn.Module):
    def __init__(self, chosen: int, weighted: bool) -> None:
        super().__init__()
        self.img_projector = nn.Linear(16 * 16 * 3, DIM, bias=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, DIM))
        self.storage_tokens = nn.Parameter(torch.zeros(1, 4, DIM))
        self.layers = nn.ModuleDict({str(i): Layer(chosen, weighted) for i in range(DEPTH)})
        self.norm = nn.RMSNorm(DIM)

    def embed(self, x: Tensor) -> Tensor:
        h, w = x.shape[2] // 16, x.shape[3] // 16
        patches = x.unflatten(3, (w, 16)).unflatten(2, (h, 16)).permute(0, 2, 4, 3, 5, 1).reshape(len(x), h * w, -1)
        prefix = torch.cat([self.cls_token, self.storage_tokens], dim=1).expand(len(x), -1, -1)
        return torch.cat([prefix, self.img_projector(patches)], dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        grid, raw, x = (x.shape[2] // 16, x.shape[3] // 16), [], self.embed(x)
        for layer in self.layers.values():
            x = layer(x, grid)
            raw.append(x)
        return normed(x, self.norm.weight), raw


FILE = "weights.pt"
#        name: experts of a token, whether the norms of the blocks have weights
NETWORKS = {"siglino_moe_0.3b": (2, True), "siglino_0.6b": (0, True), "siglino_30m": (0, False)}


def load(name: str, folder: Path, positions: Positions) -> BackboneModule:
    """Load the file under a name of the zoo, which gets these sizes while it is loaded."""
    entry, chosen = ZOO[name], NETWORKS[name][0]
    experts = replace(entry.config.experts, count=EXPERTS, chosen=chosen) if chosen else None
    sizes = {"dim": DIM, "depth": DEPTH, "num_heads": HEADS, "head_dim": WIDTH, "mlp_dim": HIDDEN, "experts": experts}
    config = replace(entry.config, **sizes, rotary=replace(entry.config.rotary, heads=HEADS))
    with mock.patch.dict(ZOO, {name: replace(entry, config=config)}):
        return load_backbone(name, weights=folder / FILE, positions=positions)


def save(model: nn.Module, folder: Path) -> None:
    """Write the encoder as its authors do, with some of the parts that no feature needs."""
    teachers = {"dinov3_adapter.fc1.weight": torch.zeros(8, DIM), "layer_norm_dinov3.bias": torch.zeros(8)}
    torch.save({**model.state_dict(), **teachers, "freqs_cis_golden": directions()}, folder / FILE)


def run(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    tokens, raw = model(x)
    return Outputs(tokens, {layer: raw[layer] for layer in layers}, tokens[:, 0])


SIGLINO_CASES: list[Case] = [
    Case(
        "SigLino",
        "formula",
        name,
        SIZES,
        functools.partial(lambda row: randomise(Encoder(*row)), row),
        functools.partial(load, name),
        save,
        run,
        policy="native",
        multiple=16,
    )
    for name, row in NETWORKS.items()
]
