"""CLS, registers and the pooled vector without the patches: the same numbers, for less work."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.backbones import BACKBONES, QUICK, VITS, batch
from tests.helpers import cases, relative_error, tiny_vit
from vitbackbone import Features, Prefix, ViT

POOLS_CLS = [name for name, vit in VITS.items() if vit.config.pool == "cls" and not vit.config.window]


def images(height: int = 40, width: int = 24) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))


def assert_alike(prefix: Prefix, features: Features) -> None:
    assert (prefix.cls is None) == (features.cls is None)
    assert prefix.cls is None or relative_error(prefix.cls, features.cls) < 1e-5
    assert prefix.registers.shape == features.registers.shape
    assert not prefix.registers.numel() or relative_error(prefix.registers, features.registers) < 1e-5
    assert relative_error(prefix.pooled, features.pooled) < 1e-5


@pytest.mark.parametrize("mixed", [False, True], ids=["one size", "mixed"])
@pytest.mark.parametrize("name", cases(BACKBONES, QUICK))
def test_it_is_what_the_whole_forward_returns(name: str, mixed: bool) -> None:
    """This holds for a backbone without CLS too, and for one that pools its patches."""
    backbone, x = BACKBONES[name], batch() if mixed else images()
    last = backbone.spec.depth - 1
    layers, norms = [last, 0, -1], [backbone.spec.has_norm, False, False]
    with torch.inference_mode():
        whole = backbone.forward_layers(x, layers, norm=norms)
        for prefix, features in zip(backbone.forward_prefix(x, layers, norm=norms), whole, strict=True):
            assert_alike(prefix, features)
        (alone,) = backbone.forward_prefix(x, [0], norm=False)
        assert_alike(alone, whole[1])


@pytest.mark.parametrize("name", POOLS_CLS)
def test_the_deepest_block_runs_for_the_prefix_alone(name: str) -> None:
    """Only its queries, keys and values are computed for all tokens; and no block after it is run."""
    vit = copy.deepcopy(VITS[name])
    seen: dict[str, int] = {}  # tokens, by what is done for them
    for i, block in enumerate(vit.blocks):
        for part, module in {"proj": block.attn.proj, "mlp": block.mlp, "norm2": block.norm2}.items():
            module.register_forward_hook(lambda _, args, out, key=f"{part} {i}": seen.update({key: args[0].shape[1]}))
        kernel = block.attn.attend
        block.attn.attend = lambda q, k, v, bias, i=i, kernel=kernel: (
            seen.update({f"asks {i}": q.shape[2], f"is asked {i}": k.shape[2]}) or kernel(q, k, v, bias)
        )
    if vit.norm is not None:
        vit.norm.register_forward_hook(lambda _, args, out: seen.update({"norm": args[0].shape[1]}))
    vit.forward_prefix(images(), [1], norm=vit.has_norm)
    few, patch = vit.config.num_prefix, vit.config.patch_size
    whole = few + -(-40 // patch) * -(-24 // patch)
    parts = ("proj", "mlp", "norm2", "asks")
    want = {f"{part} 0": whole for part in parts} | {f"{part} 1": few for part in parts}
    want |= {"is asked 0": whole, "is asked 1": whole} | ({"norm": few} if vit.has_norm else {})
    assert seen == want


def flops(vit: ViT, prefix: bool) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        (vit.forward_prefix if prefix else vit.forward_layers)(images(), [-1])
    return counter.get_total_flops()


def test_what_is_spared_is_the_projection_and_the_mlp_of_the_patches() -> None:
    """Count the linear layers by torch, for two images of 15 patches at width 16 and hidden width 32."""
    vit = tiny_vit()
    assert flops(vit, prefix=False) - flops(vit, prefix=True) == 2 * 2 * 15 * (16 * 16 + 2 * 16 * 32)


def test_gradients_flow_as_in_the_whole_forward() -> None:
    vit, x = copy.deepcopy(VITS["registers"]), images()

    def gradients(prefix: bool) -> dict[str, Tensor]:
        vit.zero_grad()
        (of_last,) = (vit.forward_prefix if prefix else vit.forward_layers)(x, [-1])
        (of_last.pooled.square().sum() + of_last.registers.sum()).backward()
        return {name: p.grad.clone() for name, p in vit.named_parameters() if p.grad is not None}

    few, whole = gradients(prefix=True), gradients(prefix=False)
    assert few.keys() == whole.keys()
    for name, gradient in few.items():
        if whole[name].abs().max() > 1e-4:  # that of k's bias is zero but for rounding
            assert relative_error(gradient, whole[name]) < 1e-3, name


def test_a_hook_on_qkv_takes_part() -> None:
    """An adapter there, such as LoRA, is not a parameter of the linear layer."""
    vit = copy.deepcopy(VITS["cls"])
    more = nn.Linear(16, 48)
    vit.blocks[-1].attn.qkv.register_forward_hook(lambda _, args, out: out + more(args[0]))
    with torch.no_grad():
        assert_alike(vit.forward_prefix(images(), [-1])[0], vit(images()))
        assert relative_error(vit(images()).cls, VITS["cls"](images()).cls) > 1e-3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 8, 8), [0]), "want a float tensor"),
        ((torch.zeros(1, 3, 8, 8), [3]), "want block indices"),
        ((torch.zeros(1, 3, 8, 8), []), "want block indices"),
    ],
)
def test_it_refuses_what_the_whole_forward_refuses(arguments: tuple[Tensor, list[int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny_vit().forward_prefix(*arguments)
    with pytest.raises(ValueError, match="no final norm"):
        tiny_vit(final_norm=False).forward_prefix(images(), [-1])
