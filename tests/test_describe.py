"""Counts against torch's own counters and published numbers; the printed pages against a real forward."""

import re
import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ViT_B_16_Weights, ViT_H_14_Weights, ViT_L_16_Weights, WeightsEnum

from tests.helpers import TINY
from vitbackbone import Preprocess, ViT, ViTConfig, vit_config
from vitbackbone.describe import Flops, activation_memory, flops, info, parameters, trace

STEM = ((8, 2), (12, 2), (12, 1), (16, 2))
CONFIGS: dict[str, ViTConfig] = {
    "plain": TINY,
    "registers": replace(TINY, num_registers=3, layer_scale=True),
    "mean": replace(TINY, cls=False, pool="mean"),
    "fc_norm": replace(TINY, pool="mean", final_norm=False, fc_norm=True),
    "sincos2d": replace(TINY, position="sincos2d"),
    "no positions": replace(TINY, position="none", qkv_bias="none"),
    "stem": replace(TINY, stem=STEM, num_registers=1),
    "swiglu": replace(TINY, mlp="swiglu", mlp_dim=24, patch_size=4),
    "wide": replace(TINY, dim=48, num_heads=3, mlp_dim=192, position="none"),
    "narrow MLP": replace(TINY, dim=48, num_heads=3, mlp_dim=24, position="none"),
    "wide stem": replace(TINY, dim=48, mlp_dim=192, stem=((64, 2), (64, 4)), position="none"),
}


def make(config: ViTConfig) -> ViT:
    return ViT(config).eval()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_parameters_are_those_of_the_network(config: ViTConfig) -> None:
    assert parameters(config) == sum(p.numel() for p in make(config).parameters())


@pytest.mark.parametrize(
    ("variant", "weights", "paper"),
    [
        ("B/16", ViT_B_16_Weights.IMAGENET1K_V1, 86e6),
        ("L/16", ViT_L_16_Weights.IMAGENET1K_V1, 307e6),
        ("H/14", ViT_H_14_Weights.IMAGENET1K_SWAG_LINEAR_V1, 632e6),
    ],
)
def test_parameters_and_flops_are_the_published_ones(variant: str, weights: WeightsEnum, paper: float) -> None:
    """Torchvision publishes both for its weights, with a head of 1000 classes, the position of CLS apart, and a
    multiply-accumulate as one. `paper` is table 1 of Dosovitskiy et al. (2021), which names neither head nor patch
    size, so within 1 %."""
    config = vit_config(variant)
    head = 1000 * config.dim + 1000
    with_head = parameters(config) + config.dim + head
    assert with_head == weights.meta["num_params"]
    assert with_head == pytest.approx(paper, rel=0.01)
    operations = flops(config, (224, 224)).total / 2 + head
    assert operations / 1e9 == pytest.approx(weights.meta["_ops"], abs=2e-3)


@pytest.mark.parametrize("size", [(32, 32), (33, 50)], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_flops_equal_torchs_counter(config: ViTConfig, size: tuple[int, int]) -> None:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        make(config).requires_grad_(False)(torch.zeros(1, 3, *size))
    counted = {str(operation): count for operation, count in counter.get_flop_counts()["Global"].items()}
    attention = sum(count for operation, count in counted.items() if "attention" in operation)
    ours = flops(config, size)
    assert (ours.total, ours.attention) == (counter.get_total_flops(), attention)
    if not config.stem:
        assert ours.embed == counted["aten.convolution"]


def test_the_attention_part_alone_grows_with_the_square_of_the_tokens() -> None:
    config = replace(vit_config("B/16"), cls=False, pool="mean")
    once = flops(config, (224, 224))
    assert flops(config, (448, 448)) == Flops(4 * once.embed, 4 * once.linear, 16 * once.attention)


class Live(TorchDispatchMode):
    """The most bytes of tensors alive at once, of those made within."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: set[int] = set()

    def forget(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        known_before = {t.untyped_storage()._cdata for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
        for tensor in tree_leaves(outputs):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage._cdata not in self.known | known_before:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.forget, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return outputs


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_activation_memory_is_what_lives_at_once(config: ViTConfig) -> None:
    network, size = make(config), (130, 99)
    with Live() as live, torch.no_grad():
        network(torch.zeros(2, 3, *size))
    assert activation_memory(config, size, batch=2).peak == pytest.approx(live.peak, rel=0.05)


@pytest.mark.parametrize("name", ["plain", "registers", "wide"])
def test_the_attention_map_takes_what_it_says(name: str) -> None:
    config = CONFIGS[name]
    weights = make(config).attention(torch.zeros(2, 3, 33, 50), [0])[0].weights
    assert activation_memory(config, (33, 50), batch=2).attention_map == weights.nbytes


def cells(page: str, first: str) -> list[str]:
    """The cells of the row that begins so."""
    (line,) = (line for line in page.splitlines() if re.match(rf"\s*{re.escape(first)}\s\s", line))
    return re.split(r"\s{2,}", line.strip())


def test_info_says_what_a_model_costs_and_how_that_grows() -> None:
    page = info("vit_base", vit_config("B/16", num_registers=4), Preprocess(), 384)
    assert page.startswith("vit_base\n")
    assert cells(page, "tokens")[1] == "24 x 24 = 576 patches + CLS + 4 registers = 581"
    assert cells(page, "parameters")[1] == "85.8 M"
    heading, *rows = ["pixels", "112 x 112", "224 x 224", "336 x 336", "384 x 384", "448 x 448"]
    assert cells(page, heading)[1:] == [
        "patches", "tokens", "parameters", "GFLOPs", "O(N²) part", "activations", "attention map",
    ]  # fmt: skip
    for row in rows:
        side = int(row.split()[0])
        cost = flops(vit_config("B/16", num_registers=4), (side, side))
        found = cells(page, row)
        assert found[2] == f"{(side // 16) ** 2 + 5}"
        assert float(found[4]) == pytest.approx(cost.total / 1e9, rel=5e-3)
        assert float(found[5].split()[0]) == pytest.approx(cost.attention / 1e9, rel=5e-3)
        assert f"({100 * cost.attention / cost.total:.1f}%)" in found[5]
    for patch, tokens in {"8 x 8": 48**2 + 5, "16 x 16": 24**2 + 5, "32 x 32": 12**2 + 5}.items():
        assert cells(page, patch)[2] == str(tokens)
    assert float(cells(page, "32 x 32")[3].split()[0]) == pytest.approx(
        parameters(vit_config("B/32", num_registers=4)) / 1e6, abs=0.05
    )


def test_info_of_other_patches_and_of_a_stem() -> None:
    page = info("fourteen", vit_config("S/14"), Preprocess())
    assert "16 x 16 = 256 patches + CLS = 257" in page
    assert cells(page, "14 x 14")[1:3] == ["16 x 16", "257"]
    page = info("stem", CONFIGS["stem"], Preprocess((32, 32)), (40, 64))
    assert cells(page, "40 x 64")[1:3] == ["5 x 8", "42"]
    assert "With other patch sizes" not in page


def test_trace_tells_the_forward_in_the_words_of_the_paper() -> None:
    rows = [re.split(r"\s{2,}", line.strip()) for line in trace(vit_config("B/16")).splitlines()]
    assert [row[:2] for row in rows] == [
        ["image", "224 x 224 x 3"],
        ["patches", "14 x 14 = 196"],
        ["patch embedding", "196 x 768"],
        ["+ positions", "196 x 768"],
        ["+ CLS", "197 x 768"],
        ["12 blocks", "197 x 768"],
        ["LayerNorm", "197 x 768"],
        ["self-attention", "197 x 768"],
        ["+ residual", "197 x 768"],
        ["LayerNorm", "197 x 768"],
        ["MLP", "197 x 768"],
        ["+ residual", "197 x 768"],
        ["LayerNorm", "197 x 768"],
        ["CLS", "768"],
        ["patches", "768 x 14 x 14"],
        ["pooled", "768"],
        ["logits", "1000"],
    ]
    assert rows[1][2] == "patches of 16 x 16 x 3 = 768 values each"
    assert "12 heads of 64" in rows[7][2]
    assert "12 x 197 x 197" in rows[7][2]
    assert "768 -> 3072 -> 768" in rows[10][2]
    assert "resampled" not in trace(vit_config("B/16"))
    assert "resampled from 14 x 14 to 24 x 24" in trace(vit_config("B/16"), 384)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_trace_shows_the_shapes_of_a_real_forward(config: ViTConfig) -> None:
    network = make(config)
    steps: list[tuple[int, ...]] = []  # without batch; maps as (h, w, channels)

    def note(tensor: torch.Tensor) -> None:
        steps.append(tuple(tensor.shape[1:]) if tensor.ndim < 4 else tuple(tensor[0].permute(1, 2, 0).shape))

    image = torch.zeros(1, 3, 33, 50)
    note(image)
    network.patch_embed.register_forward_pre_hook(lambda module, inputs: note(inputs[0]))  # padded
    if config.stem:
        for gelu in network.patch_embed.convs[2::3]:
            gelu.register_forward_hook(lambda module, inputs, output: note(output))
    network.patch_embed.register_forward_hook(lambda module, inputs, output: note(output.flatten(2).mT))
    if network.pos_embed is not None:
        network.pos_embed.register_forward_hook(lambda module, inputs, output: note(output[None]))
    block = network.blocks[0]
    if config.num_prefix:
        block.register_forward_pre_hook(lambda module, inputs: note(inputs[0]))
    for module in (block.norm1, block.attn, block.norm2, block.mlp, block, network.norm):
        if module is not None:
            module.register_forward_hook(lambda module, inputs, output: note(output))
    with torch.inference_mode():
        features = network(image)
        logits = torch.nn.Linear(config.dim, 7)(features.pooled)
    last = [features.cls] * config.cls + [features.registers] * (config.num_registers > 0)
    ends = [*(tuple(t.shape[1:]) for t in last), (config.dim, *features.grid), (config.dim,), tuple(logits.shape[1:])]

    printed = [re.split(r"\s{2,}", line.strip())[:2] for line in trace(config, (33, 50), 7).splitlines()]
    cut = [step for step in printed if " = " not in step[1] and not step[0].endswith(" blocks")]
    cut.pop([name for name, _ in cut].index("+ residual"))  # of attention: inside the block, no module's output
    assert [tuple(map(int, shape.split(" x "))) for _, shape in cut] == [*steps, *ends]
    grid = "{} x {} = {}".format(*features.grid, features.grid[0] * features.grid[1])
    assert ["patches", grid] in printed


def test_trace_without_a_head_and_of_a_size_that_is_refused() -> None:
    assert "logits" not in trace(TINY, num_classes=None)
    assert trace(TINY, 40, 5).splitlines()[-1].split()[:2] == ["logits", "5"]
    with pytest.raises(ValueError, match="which the patch size 8 does not divide"):
        trace(replace(TINY, indivisible="refuse"), 33)
