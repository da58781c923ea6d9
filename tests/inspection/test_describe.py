"""Counts against torch's own counters and published numbers; the printed pages against a real forward."""

import re
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ViT_B_16_Weights, ViT_H_14_Weights, ViT_L_16_Weights, WeightsEnum

from tests.helpers import TINY
from vitbackbone import Preprocess, ViT, ViTConfig, vit_config
from vitbackbone.checkpoints.zoo import ZOO, Entry
from vitbackbone.inspection.costs import costs, parameters
from vitbackbone.inspection.describe import info, models_table
from vitbackbone.inspection.forward_steps import trace
from vitbackbone.model.attention import WindowAttention
from vitbackbone.model.config import Resampling, Rotary

MAP = replace(TINY, cls=False, pool="mean")
STEM = ((8, 2), (12, 2), (12, 1), (16, 2))
CONFIGS: dict[str, ViTConfig] = {
    "plain": TINY,
    "registers": replace(TINY, num_registers=3, layer_scale=True),
    "mean": MAP,
    "fc_norm": replace(TINY, pool="mean", final_norm=False, fc_norm=True),
    "sincos2d": replace(TINY, position="sincos2d"),
    "no positions": replace(TINY, position="none", qkv_bias="none"),
    "stem": replace(TINY, stem=STEM, num_registers=1),
    "swiglu": replace(TINY, mlp="swiglu", mlp_dim=24, patch_size=4),
    "wide": replace(TINY, dim=48, num_heads=3, mlp_dim=192, position="none"),
    "narrow MLP": replace(TINY, dim=48, num_heads=3, mlp_dim=24, position="none"),
    "wide stem": replace(TINY, dim=48, mlp_dim=192, stem=((64, 2), (64, 4)), position="none"),
    "DINOv3": replace(
        TINY, position="none", rotary=Rotary(100.0, "centred", "halves"), num_registers=2, qkv_bias="none"
    ),
    "EVA-02": replace(
        TINY,
        rotary=Rotary(10000.0, "index", "neighbours"),
        qkv_bias="qv",
        mlp="swiglu",
        mlp_norm=True,
        pool="mean",
        final_norm=False,
        fc_norm=True,
    ),
    "BEiT": replace(TINY, position="none", relative_position="table", qkv_bias="qv"),
    "SAM": replace(
        MAP,
        relative_position="decomposed",
        window=3,
        global_blocks=(1,),
        final_norm=False,
        neck_dim=12,
        pool="neck",
    ),
    "windows alone": replace(MAP, window=3, neck_dim=12),  # and a neck that nothing runs
    "no windows after all": replace(MAP, window=3, global_blocks=(2, 0, 1)),
    "biases everywhere": replace(MAP, relative_position="decomposed"),
    "CLIP": replace(TINY, pre_norm=True, patch_bias=False, mlp="quick_gelu", projection_dim=12),
    "SigLIP": replace(MAP, mlp="gelu_tanh", pool="map"),
    "C-RADIO": replace(
        TINY,
        num_registers=2,
        pool="tokens",
        pool_tokens=(0, 2),
        position_grid=(9, 9),
        resampling=Resampling("bilinear", fit="square"),
    ),
    "Virchow": replace(TINY, num_registers=1, pool="cls_mean", projection_dim=5, patch_padding=2),
    "PE": replace(TINY, pool="map", pool_heads=4, pool_mlp_dim=20, pool_prefix=True),
    "AIMv2": replace(MAP, pool="query", qkv_bias="none"),
    "SwiGLU pooling": replace(MAP, mlp="swiglu", mlp_norm=True, pool="map", projection_dim=5, projection_bias=True),
}


def make(config: ViTConfig) -> ViT:
    return ViT(config).eval().requires_grad_(False)


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
    operations = costs(config, (224, 224)).flops / 2 + head
    assert operations / 1e9 == pytest.approx(weights.meta["_ops"], abs=2e-3)


def counted(run: Callable[[], object]) -> dict[str, int]:
    """Torch's count of each operation."""
    # The kernels of the CPU are not counted by every version of torch, and the plain one is.
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        run()
    return {str(operation): count for operation, count in counter.get_flop_counts().get("Global", {}).items()}


@pytest.mark.parametrize("size", [(32, 32), (33, 50)], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_flops_equal_torchs_counter(config: ViTConfig, size: tuple[int, int]) -> None:
    """An image costs what a second one adds: the position tables are resampled once for a batch of any size."""
    network = make(config)
    one, two = (counted(partial(network, torch.zeros(batch, 3, *size))) for batch in (1, 2))
    forward = {operation: count - one[operation] for operation, count in two.items()}
    between = sum(count for operation, count in forward.items() if "attention" in operation or "bmm" in operation)
    ours = costs(config, size)
    assert (ours.flops, ours.attention) == (sum(forward.values()), between)
    if not config.stem:
        assert ours.embed == forward["aten.convolution"]
    with torch.inference_mode():
        features = network(torch.zeros(1, 3, *size))
    assert ours.pooling == sum(counted(lambda: features.pooled).values())


def test_flops_and_memory_grow_with_the_batch() -> None:
    once, thrice = (costs(CONFIGS["SAM"], (33, 50), batch) for batch in (1, 3))
    for name in ("embed", "linear", "attention", "pooling", "attention_map"):
        assert getattr(thrice, name) == 3 * getattr(once, name)
    assert thrice.activations == pytest.approx(3 * once.activations, rel=0.05)  # less the tables of relative positions


def test_the_attention_part_alone_grows_with_the_square_of_the_tokens() -> None:
    config = replace(vit_config("B/16"), cls=False, pool="mean")
    once, twice = costs(config, (224, 224)), costs(config, (448, 448))
    assert (twice.embed, twice.linear, twice.attention) == (4 * once.embed, 4 * once.linear, 16 * once.attention)
    assert twice.attention_map == 16 * once.attention_map == 16 * 4 * 12 * 196**2


def test_within_windows_attention_grows_with_the_tokens() -> None:
    config = replace(vit_config("B/16"), cls=False, pool="mean", window=7)
    once, twice = costs(config, (224, 224)), costs(config, (448, 448))
    assert once.attention == 12 * 4 * 196 * 49 * 768
    assert (twice.attention, twice.attention_map) == (4 * once.attention, 4 * once.attention_map)
    padded = costs(config, (240, 224))  # 15 rows of patches, in windows of 21
    assert padded.attention == 1.5 * once.attention
    assert padded.linear == 12 * 2 * 768**2 * (4 * 21 * 14 + 8 * 15 * 14)  # the MLP sees no padding


class Live(TorchDispatchMode):
    """The most bytes of tensors alive at once, of those made within. The attention kernel is the CPU's own here."""

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


@pytest.mark.parametrize("size", [(130, 99), (32, 32)], ids=str)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_activations_are_what_lives_at_once(config: ViTConfig, size: tuple[int, int]) -> None:
    network = make(config)
    with torch.no_grad():
        network(torch.zeros(2, 3, *size))  # makes the tables that stay
        with Live() as live:
            network(torch.zeros(2, 3, *size))
    assert costs(config, size, batch=2).activations == pytest.approx(live.peak, rel=0.003)


def test_activations_of_a_plain_network_by_hand() -> None:
    """In the MLP: the images, the stream before and after attention, its normed copy, and the hidden layer before and
    after GELU. In attention, with a narrow MLP: the stream, its normed copy, q k v, the heads' output, its
    projection. With BEiT's bias, within attention: that as well, as large as the map of one image, whatever the batch,
    and the logarithm of each row's sum; no projection yet."""
    n, d = 197, 768
    config = vit_config("B/16")
    assert costs(config, (224, 224)).activations == 4 * (3 * 224 * 224 + 3 * n * d + 2 * n * 4 * d)
    config = vit_config("B/16", mlp_dim=d)
    attention = 3 * 224 * 224 + 7 * n * d
    assert costs(config, (224, 224), batch=2).activations == 4 * 2 * attention
    config = replace(config, position="none", relative_position="table")
    assert costs(config, (224, 224), batch=2).activations == 4 * (2 * (attention - n * d + 12 * n) + 12 * n * n)


@pytest.mark.parametrize("name", ["plain", "registers", "wide", "DINOv3", "BEiT", "biases everywhere", "SAM"])
def test_the_attention_map_takes_what_it_says(name: str) -> None:
    config = CONFIGS[name]
    weights = make(config).attention(torch.zeros(2, 3, 33, 50), [0])[0].weights
    assert costs(config, (33, 50), batch=2).attention_map == weights.nbytes


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
