"""The printed pages: the costs of a model, its forward against a real one, and the table of all models."""

import re
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.helpers import TINY
from tests.inspection.small_configs import CONFIGS, make
from vitbackbone import Preprocess, ViTConfig, vit_config
from vitbackbone.checkpoints.zoo import ZOO, Entry
from vitbackbone.inspection.costs import costs, parameters
from vitbackbone.inspection.describe import info, models_table
from vitbackbone.inspection.forward_steps import trace
from vitbackbone.model.attention import WindowAttention


def cells(page: str, first: str) -> list[str]:
    """The cells of the row that begins so."""
    (line,) = (line for line in page.splitlines() if re.match(rf"\s*{re.escape(first)}\s\s", line))
    return re.split(r"\s{2,}", line.strip())


def entry(config: ViTConfig, preprocess: Preprocess | None = None) -> Entry:
    return Entry(config, "native", preprocess or Preprocess(), "", "")


def test_info_says_what_a_model_costs_and_how_that_grows() -> None:
    page = info("vit_base", entry(vit_config("B/16", num_registers=4)), 384)
    assert page.startswith("vit_base\n")
    assert cells(page, "tokens")[1] == "24 x 24 = 576 patches + CLS + 4 registers = 581"
    assert cells(page, "parameters")[1] == "85.8 M"
    heading, *rows = ["pixels", "112 x 112", "224 x 224", "336 x 336", "384 x 384", "448 x 448"]
    assert cells(page, heading)[1:] == [
        "patches", "tokens", "parameters", "GFLOPs", "attention part", "activations", "attention map",
    ]  # fmt: skip
    for row in rows:
        side = int(row.split()[0])
        cost = costs(vit_config("B/16", num_registers=4), (side, side))
        found = cells(page, row)
        assert found[2] == f"{(side // 16) ** 2 + 5}"
        assert float(found[4]) == pytest.approx(cost.flops / 1e9, rel=5e-3)
        assert float(found[5].split()[0]) == pytest.approx(cost.attention / 1e9, rel=5e-3)
        assert f"({100 * cost.attention / cost.flops:.1f}%)" in found[5]
    for patch, tokens in {"8 x 8": 48**2 + 5, "16 x 16": 24**2 + 5, "32 x 32": 12**2 + 5}.items():
        assert cells(page, patch)[2] == str(tokens)
    assert float(cells(page, "32 x 32")[3].split()[0]) == pytest.approx(
        parameters(vit_config("B/32", num_registers=4)) / 1e6, abs=0.05
    )


def test_info_of_other_patches_and_of_a_stem() -> None:
    page = info("fourteen", entry(vit_config("S/14")))
    assert "16 x 16 = 256 patches + CLS = 257" in page
    assert cells(page, "14 x 14")[1:3] == ["16 x 16", "257"]
    page = info("stem", entry(CONFIGS["stem"], Preprocess((32, 32))), (40, 64))
    assert cells(page, "40 x 64")[1:3] == ["5 x 8", "42"]
    assert "With other patch sizes" not in page


def test_info_says_what_windows_biases_and_pooling_mean_for_the_costs() -> None:
    plain, sam = (info(name, entry(CONFIGS[name], Preprocess((32, 32)))) for name in ("plain", "SAM"))
    assert cells(sam, "windows")[1] == "2 blocks within windows of 3 x 3 patches, 1 over the whole image (1)"
    assert cells(sam, "tokens")[1] == "4 x 4 = 16 patches"
    pooling = costs(CONFIGS["SAM"], (32, 32)).pooling
    assert cells(sam, "compute")[1].endswith(f"; features.pooled adds {pooling / 1e9:.3g} GFLOPs")
    words = ["within windows with N", "The bias of relative positions", "largest block's map"]
    for word in words:
        assert word in " ".join(sam.split())
        assert word not in " ".join(plain.split())
    assert "windows" not in plain
    assert "features.pooled" not in plain
    assert "MLP 2 x 24" in info("swiglu", entry(CONFIGS["swiglu"], Preprocess((32, 32))))


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
def test_trace_shows_the_shapes_of_a_real_forward(config: ViTConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    network = make(config)
    steps: list[tuple[int, ...]] = []  # without batch; of images (h, w, channels)
    maps: set[str] = set()

    def note(tensor: torch.Tensor) -> None:
        steps.append(tuple(tensor.shape[1:]) if tensor.ndim < 4 else tuple(tensor[0].permute(1, 2, 0).shape))

    def after(module: torch.nn.Module) -> None:
        module.register_forward_hook(lambda module, inputs, output: note(output))

    def fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attn_mask: torch.Tensor | None) -> torch.Tensor:
        inner = (q.shape[1], q.shape[2], k.shape[2])
        maps.add(" x ".join(map(str, inner if len(q) == 1 else (len(q), *inner))))
        return kernel(q, k, v, attn_mask)

    image = torch.zeros(1, 3, 33, 50)
    kernel = F.scaled_dot_product_attention
    note(image)
    network.patch_embed.register_forward_pre_hook(lambda module, inputs: note(inputs[0]))  # padded
    if config.stem:
        for gelu in network.patch_embed.convs[2::3]:
            after(gelu)
    network.patch_embed.register_forward_hook(lambda module, inputs, output: note(output.flatten(2).mT))
    if network.pos_embed is not None:
        network.pos_embed.register_forward_hook(lambda module, inputs, output: note(output[None]))
    if config.num_prefix:
        network.norm_pre.register_forward_pre_hook(lambda module, inputs: note(inputs[0]))
    if config.pre_norm:
        after(network.norm_pre)
    block = network.blocks[0]
    after(block.norm1)
    if isinstance(block.attn, WindowAttention):  # all windows of the one image
        block.attn.proj.register_forward_pre_hook(lambda module, inputs: steps.append(tuple(inputs[0].shape)))
    for module in (block.attn, block.norm2, block.mlp, block, network.norm):
        if module is not None:
            after(module)
    with torch.inference_mode(), monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", fused)
        features = network(image)
    for module in (network.attn_pool, network.neck, network.fc_norm, network.projection):
        if module is not None and not isinstance(module, torch.nn.Identity):
            module.register_forward_hook(lambda module, inputs, output: pooling.append(tuple(output.shape[1:])))
    pooling: list[tuple[int, ...]] = []
    pooled = features.pooled
    last = [features.cls] * config.cls + [features.registers] * (config.num_registers > 0)
    ends = [*(tuple(t.shape[1:]) for t in last), (config.dim, *features.grid), tuple(pooled.shape[1:]), *pooling, (7,)]

    page = trace(config, (33, 50), 7)
    printed = [re.split(r"\s{2,}", line.strip())[:2] for line in page.splitlines()]
    cut = [step for step in printed if " = " not in step[1] and not step[0].endswith(" blocks")]
    cut.pop([name for name, _ in cut].index("+ residual"))  # of attention: inside the block, no module's output
    assert [tuple(map(int, shape.split(" x "))) for _, shape in cut] == [*steps, *ends]
    grid = "{} x {} = {}".format(*features.grid, features.grid[0] * features.grid[1])
    assert ["patches", grid] in printed
    (attention,) = (line for line in page.splitlines() if line.strip().startswith("self-attention"))
    assert set(re.findall(r", (?:in windows )?([0-9]+ x [0-9 x]+)(?=[,;])", attention)) == maps


def test_trace_without_a_head_and_of_a_size_that_is_refused() -> None:
    assert "logits" not in trace(TINY, num_classes=None)
    assert trace(TINY, 40, 5).splitlines()[-1].split()[:2] == ["logits", "5"]
    with pytest.raises(ValueError, match="which the patch size 8 does not divide"):
        trace(replace(TINY, indivisible="refuse"), 33)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("plain", ["weights softmax(q kᵀ / √8), 2 x 36 x 36", "16 -> 32 -> 16, GELU between"]),
        ("DINOv3", ["2 heads of 8; q and k turned by rotary positions; weights softmax(q kᵀ / √8)"]),
        ("EVA-02", ["rotary positions", "16 -> 2 x 32 -> 16, SiLU of one half times the other, then LayerNorm"]),
        ("BEiT", ["softmax(q kᵀ / √8 + bias of relative positions resampled from 4 x 4 to 5 x 7)"]),
        (
            "SAM",
            [
                "2 blocks within windows of 3 x 3 patches, 1 over the whole image (1); 2 x 3 windows, the last ones",
                "softmax(q kᵀ / √8 + bias of relative positions resampled from 4 x 4 to 5 x 7), 2 x 35 x 35, "
                "in windows 6 x 2 x 9 x 9;",
                "features.pooled, run only when asked for: the mean of the neck",
                "convolutions 1 x 1 and 3 x 3, each with LayerNorm over the channels",
            ],
        ),
        ("windows alone", ["3 blocks within windows of 3 x 3 patches; 2 x 3 windows", "the mean of the patches"]),
        ("CLIP", ["before the first block", "x · sigmoid(1.702 x) between", "asked for: CLS", "linear 16 -> 12"]),
        ("SigLIP", ["GELU between, by its tanh approximation", "one learned query attends to the patches, 2 heads"]),
    ],
)
def test_trace_names_what_is_special(name: str, words: list[str]) -> None:
    page = trace(CONFIGS[name], (33, 50))
    for word in words:
        assert word in page
    plain = trace(TINY, (33, 50))
    for word in ("windows", "rotary", "bias", "before the first block", "query", "neck", "  projection"):
        assert word not in plain


def test_other_kinds_of_network_are_refused() -> None:
    with pytest.raises(ValueError, match="this package's own ViT only, and this is a Preprocess"):
        trace(Preprocess())


FAMILIES = [
    "nano",
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "vit_base_patch16_224.mae",
    "dinov3_vits16plus",
    "ViT-B-32.openai",
    "hf:google/siglip-base-patch16-224",
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k",
    "sam_vit_b",
]


EVERY = [name for name, entry in ZOO.items() if isinstance(entry.config, ViTConfig) and entry.config.tiles is None]


@pytest.mark.parametrize("names", [FAMILIES, pytest.param(EVERY, marks=pytest.mark.slow)], ids=["some", "all"])
def test_every_model_has_its_pages(names: list[str]) -> None:
    for name in names:
        config, (height, width) = ZOO[name].config, ZOO[name].preprocess.image_size
        assert f"{height} x {width} pixels" in info(name, ZOO[name])
        first, *_ = trace(config, (height, width)).splitlines()
        assert first.endswith(f"{height} x {width} x 3")


def test_a_network_of_tiles_has_no_page_of_costs() -> None:
    name = next(name for name, entry in ZOO.items() if getattr(entry.config, "tiles", None) is not None)
    with pytest.raises(ValueError, match="costs are known for networks of whole images only"):
        info(name, ZOO[name])


def test_the_table_of_models_has_a_row_for_each() -> None:
    header, *rows = [re.split(r"\s{2,}", line) for line in models_table(["nano", "sam_vit_b"]).splitlines()]
    assert header == ["name", "pixels", "patch", "dim", "parameters", "licence", "source"]
    assert rows[0] == ["nano", "32", "4", "192", "2.8 M", "apache-2.0", "built in"]
    assert rows[1][:6] == ["sam_vit_b", "1024", "16", "768", "89.7 M", "apache-2.0"]
