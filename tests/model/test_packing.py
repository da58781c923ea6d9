"""Images of different sizes in one row of tokens: one run gives the same as each image by itself."""

import copy
import threading
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.backbones import BACKBONES, QUICK, SIZES, VITS, batch
from tests.helpers import cases, randomise, relative_error, tiny_vit
from vitbackbone import Features, Layout, Rotary, ViT, ViTConfig
from vitbackbone.model.attention import attend_jagged
from vitbackbone.model.layers import DropPath
from vitbackbone.model.positions.rotary import rotary_table

QUERIES = 6  # tokens in front of CLS, as EoMT adds them
ROTARY = Rotary(100.0, "centred", "halves")


def assert_alike(mixed: Features, alone: Features, index: int, limit: float = 1e-5) -> None:
    one = mixed.image(index)
    assert one.geometry == alone.geometry
    assert relative_error(one.patches, alone.patches) < limit
    assert relative_error(one.pooled, alone.pooled) < limit
    assert (one.cls is None) == (alone.cls is None)
    assert one.cls is None or relative_error(one.cls, alone.cls) < limit
    if alone.registers.numel():
        assert relative_error(one.registers, alone.registers) < limit
    assert one.registers.shape == alone.registers.shape


@pytest.mark.parametrize("name", cases(BACKBONES, QUICK))
def test_every_layer_of_each_image_equals_that_image_alone(name: str) -> None:
    backbone = BACKBONES[name]
    layers = [-1, 0]
    norms = [backbone.spec.has_norm, False]
    with torch.inference_mode():
        mixed = backbone.forward_layers(batch(), layers, norm=norms)
        for i, image in enumerate(batch()):
            for of_layer, alone in zip(mixed, backbone.forward_layers(image[None], layers, norm=norms), strict=True):
                assert_alike(of_layer, alone, i)


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=7))
@pytest.mark.parametrize("name", ["registers", "rotary halves", "windows", "relative spline"])
def test_any_sizes_in_any_order(name: str, sizes: list[tuple[int, int]]) -> None:
    vit = VITS[name]
    with torch.inference_mode():
        mixed = vit(batch(sizes))
        for i, image in enumerate(batch(sizes)):
            assert_alike(mixed, vit(image[None]), i)


@pytest.mark.parametrize("name", ["cls", "windows", "swiglu"])
def test_linear_layers_run_once_and_attention_once_per_grid(name: str) -> None:
    vit, given, asked = copy.deepcopy(VITS[name]), [], []
    for module in vit.blocks.modules():
        if isinstance(module, nn.Linear | nn.LayerNorm):
            module.register_forward_hook(lambda _, args, out: given.append(out.shape[:2]))
    for block in vit.blocks:
        kernel = block.attn.attend
        block.attn.attend = lambda q, k, v, bias, kernel=kernel: asked.append(q.shape[0]) or kernel(q, k, v, bias)
    vit(batch())
    linears = sum(isinstance(m, nn.Linear | nn.LayerNorm) for m in vit.blocks.modules())
    assert len(given) == linears
    if name != "windows":  # whose windows are a batch
        tokens = sum(-(-h // 8) * -(-w // 8) + vit.config.num_prefix for h, w in SIZES)
        assert set(given) == {(1, tokens)}
        assert sorted(asked) == sorted([2, 1, 1, 1, 1] * 3)


@pytest.mark.parametrize("name", cases(VITS, QUICK))
def test_a_list_of_one_size_is_a_batch_to_the_bit(name: str) -> None:
    images = batch([(32, 40)] * 3)
    with torch.inference_mode():
        assert torch.equal(VITS[name](images).patches, VITS[name](torch.stack(images)).patches)


def test_a_batch_of_one_size_is_attended_as_ever() -> None:
    """The uniform path is bit-exact: nothing is split, joined or copied around torch's kernel."""
    vit, x = VITS["cls"], torch.stack(batch([(32, 40)] * 2))
    block = vit.blocks[0]
    with torch.inference_mode():
        tokens, geometry = vit.embed(x)
        q, k, v = block.attn._split(block.norm1(tokens))
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        by_hand = tokens + block.ls1(block.attn.proj(mixed))
        by_hand = by_hand + block.ls2(block.mlp(block.norm2(by_hand)))
        assert torch.equal(block(tokens, Layout.of(geometry.grids)), by_hand)


@pytest.mark.parametrize("name", ["registers", "rotary neighbours", "relative bilinear", "windows"])
def test_gradients_are_the_sums_of_those_alone(name: str) -> None:
    vit, images = copy.deepcopy(VITS[name]), batch(SIZES[:4])

    def gradients(run: Sequence[Features]) -> dict[str, Tensor]:
        vit.zero_grad()
        sum((each.patches.square().sum() + each.pooled.sum() for each in run), torch.zeros(())).backward()
        return {name: p.grad.clone() for name, p in vit.named_parameters() if p.grad is not None}

    mixed, alone = gradients([vit(images)]), gradients([vit(image[None]) for image in images])
    assert mixed.keys() == alone.keys()
    for each, gradient in mixed.items():
        if alone[each].abs().max() > 1e-4:  # that of k's bias is zero but for rounding
            assert relative_error(gradient, alone[each]) < 1e-3, each


@pytest.mark.parametrize("heads", [1, 3])
def test_the_attention_of_a_gpu_keeps_images_apart(heads: int) -> None:
    """All images in one kernel, as torch has it on a CPU too."""
    lengths = [5, 9, 1, 9]
    q, k, v = torch.randn(3, 1, heads, sum(lengths), 8, generator=torch.Generator().manual_seed(0))
    parts = zip(*(x.split(lengths, dim=2) for x in (q, k, v)), strict=True)
    each = [nn.functional.scaled_dot_product_attention(*part) for part in parts]
    assert relative_error(attend_jagged(q, k, v, lengths), torch.cat(each, dim=2)) < 1e-6


def test_drop_path_drops_whole_images_of_a_row() -> None:
    lengths = [3, 1, 4]
    torch.manual_seed(0)
    drop = DropPath(0.5).train()
    rows = torch.cat([drop(torch.ones(1, 8, 2), lengths) for _ in range(400)])
    for part in rows.split(lengths, dim=1):
        assert (part == part[:, :1, :1]).all()
        assert set(part.unique().tolist()) == {0.0, 2.0}
    first, second, third = (part[:, 0, 0] for part in rows.split(lengths, dim=1))
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_a_mask_over_images_of_different_sizes_is_refused() -> None:
    vit = tiny_vit()
    tokens, geometry = vit.embed(batch())
    mask = torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool)
    with pytest.raises(ValueError, match="a mask covers the tokens of one image size"):
        vit.blocks[0](tokens, Layout.of(geometry.grids), mask)


def test_a_size_that_the_patch_does_not_divide_is_refused_in_a_list_too() -> None:
    vit = tiny_vit(indivisible="refuse")
    with pytest.raises(ValueError, match="images are 9 x 70, which the patch size 8 does not divide"):
        vit(batch())


def test_more_tokens_may_be_put_in_front_of_each_image() -> None:
    """Such as EoMT's queries: a layout knows how many there are from how long the row is."""
    vit = tiny_vit(num_registers=2, rotary=ROTARY, position="none")
    queries = torch.randn(1, QUERIES, 16, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        tokens, geometry = vit.embed(batch())
        layout = Layout.of(geometry.grids)
        images = tokens.split(layout.lengths(tokens.shape[1]), dim=1)
        rows = [torch.cat([queries, image], dim=1) for image in images]
        got = vit.blocks[0](torch.cat(rows, dim=1), layout).split([row.shape[1] for row in rows], dim=1)
        for row, grid, part in zip(rows, layout.grids, got, strict=True):
            assert relative_error(part, vit.blocks[0](row, Layout((grid,)))) < 1e-5


def test_joining_is_the_way_back_from_splitting() -> None:
    layout = Layout.of([(2, 3), (1, 1), (2, 3), (4, 1)])
    x = torch.randn(1, 3 * 4 + 6 + 1 + 6 + 4, 5)
    parts = layout.split(x)
    assert [(grid, part.shape) for grid, part in parts] == [
        ((1, 1), (1, 4, 5)),
        ((2, 3), (2, 9, 5)),
        ((4, 1), (1, 7, 5)),
    ]
    assert torch.equal(layout.join([part for _, part in parts]), x)


# ---- tables that stay between forwards -----------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"relative_position": "table"}, {"rotary": ROTARY}], ids=lambda f: "".join(f))
def test_no_table_outlives_its_weights(fields: dict[str, object]) -> None:
    """After new weights, a training step or a new precision, the model equals one that never ran before."""
    vit, x = tiny_vit(**fields), batch()

    def fresh() -> ViT:
        return ViT(ViTConfig(**vars(vit.config)), name="fresh").to(next(vit.parameters()).dtype).eval()

    def check() -> None:
        other = fresh()
        other.load_state_dict(vit.state_dict())
        assert torch.equal(vit(x).patches, other(x).patches)

    vit(x)
    vit.load_state_dict(randomise(fresh(), seed=1).state_dict())
    check()
    optimiser = torch.optim.SGD(vit.parameters(), lr=1e-3)
    vit(x).patches.square().mean().backward()
    optimiser.step()
    check()
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.data = parameter.data * 0.9
    check()
    vit.double()
    check()


def test_tables_of_two_devices_are_two() -> None:
    grid = (3, 5)
    here, meta = (rotary_table(ROTARY, 8, grid, torch.device(name)) for name in ("cpu", "meta"))
    assert (here.device.type, meta.device.type) == ("cpu", "meta")


def test_threads_may_share_a_backbone() -> None:
    vit = tiny_vit(position="none", rotary=ROTARY)
    sizes = [(8 * h, 8 * w) for h in range(1, 8) for w in range(1, 8)]
    with torch.inference_mode():
        alone = [vit(image[None]).patches for image in batch(sizes)]
    wrong: list[object] = []

    def run() -> None:
        try:
            with torch.inference_mode():
                for image, want in zip(batch(sizes), alone, strict=True):
                    assert relative_error(vit(image[None]).patches, want) < 1e-6
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
