"""Costs against torch's own counters and published numbers."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import ViT_B_16_Weights, ViT_H_14_Weights, ViT_L_16_Weights, WeightsEnum

from tests.inspection.small_configs import CONFIGS, make
from vitbackbone import ViTConfig, vit_config
from vitbackbone.inspection.costs import costs, parameters


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
    multiply-accumulate as one. `paper` is table 1 of Dosovitskiy et al. (2021) names neither head nor patch size, so
    the counts agree within 1 %."""
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
