"""EoMT against transformers' on identical weights, and its loss against transformers' formulas."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import EomtConfig, EomtForUniversalSegmentation
from transformers.models.eomt.modeling_eomt import (
    dice_loss,
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
    sigmoid_cross_entropy_loss,
)

from heads import Masks, attach, create_head, freeze, set_loss
from tests.helpers import randomise, relative_error, tiny_vit
from tests.timm_networks import BACKBONES
from vitbackbone import Layout, Rotary, ViT, ViTConfig
from vitbackbone.model.layers import Block

QUERIES, CLASSES, BLOCKS = 6, 3, 2


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- attention masks -----------------------------------------------------------------------------------------------


def masked_block(block: Block, x: Tensor, grid: tuple[int, int], mask: Tensor) -> Tensor:
    """A block written out: the attention weights of the block without a mask, masked and normalised again."""
    attention = block.attn
    normed = block.norm1(x)
    weights = attention.weights(normed, grid).double() * mask
    weights = weights / weights.sum(dim=3, keepdim=True)
    value = attention._split(normed)[2].double()
    x = x + block.ls1(attention.proj((weights @ value).transpose(1, 2).flatten(2).float()))
    return x + block.ls2(block.mlp(block.norm2(x)))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"rotary": Rotary(100.0, "centred", "halves")},
        {"relative_position": "table", "position": "none"},
        {"relative_position": "decomposed", "cls": False, "pool": "mean"},
    ],
    ids=["plain", "rotary", "table", "decomposed"],
)
@pytest.mark.parametrize("heads", [1, 2])
def test_a_block_attends_by_its_mask(fields: dict[str, object], heads: int) -> None:
    block = tiny_vit(**fields).blocks[1]
    grid, tokens = (4, 3), 12 + (fields.get("cls", True) is True)
    x = images(2, tokens, 16)
    mask = torch.rand(2, heads, tokens, tokens, generator=torch.Generator().manual_seed(1)) > 0.5
    mask |= torch.eye(tokens, dtype=torch.bool)
    with torch.inference_mode():
        assert relative_error(block(x, Layout((grid,)), mask), masked_block(block, x, grid, mask)) < 1e-5
        free = block(x, Layout((grid,)))
        assert relative_error(block(x, Layout((grid,)), mask | True), free) < 1e-5


def test_windows_take_no_mask() -> None:
    block = tiny_vit(window=2, cls=False, pool="mean").blocks[0]
    with pytest.raises(ValueError, match=r"within windows takes no mask"):
        block(images(1, 16, 16), Layout(((4, 4),)), torch.ones(1, 1, 16, 16, dtype=torch.bool))


# ---- against transformers ------------------------------------------------------------------------------------------


def pair(patch: int, side: int) -> tuple[EomtForUniversalSegmentation, ViT, nn.Module]:
    """transformers' model, and ours with its weights: the backbone and the head attached to it."""
    upscale = {8: 1, 14: 1, 16: 2}[patch]
    config = EomtConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=side,
        patch_size=patch,
        mlp_ratio=2,
        num_upscale_blocks=upscale,
        num_blocks=BLOCKS,
        num_queries=QUERIES,
        num_register_tokens=2,
        num_labels=CLASSES,
    )
    theirs = randomise(EomtForUniversalSegmentation(config))
    theirs.criterion.empty_weight.fill_(1)
    fields = {"image_size": (side, side), "patch_size": patch, "dim": 16, "depth": 4, "num_heads": 2, "mlp_dim": 32}
    backbone = ViT(ViTConfig(**fields, num_registers=2, layer_scale=True), name="tiny").eval()
    state = {
        "cls_token": theirs.embeddings.cls_token,
        "reg_token": theirs.embeddings.register_tokens,
        "pos_embed.table": theirs.embeddings.position_embeddings.weight,
        "patch_embed.proj.weight": theirs.embeddings.patch_embeddings.projection.weight,
        "patch_embed.proj.bias": theirs.embeddings.patch_embeddings.projection.bias,
        "norm.weight": theirs.layernorm.weight,
        "norm.bias": theirs.layernorm.bias,
    }
    for i, layer in enumerate(theirs.layers):
        attention = layer.attention
        for kind in ("weight", "bias"):
            parts = [getattr(p, kind) for p in (attention.q_proj, attention.k_proj, attention.v_proj)]
            state[f"blocks.{i}.attn.qkv.{kind}"] = torch.cat(parts)
            modules = {"attn.proj": attention.out_proj, "norm1": layer.norm1, "norm2": layer.norm2}
            for name, module in {**modules, "mlp.fc1": layer.mlp.fc1, "mlp.fc2": layer.mlp.fc2}.items():
                state[f"blocks.{i}.{name}.{kind}"] = getattr(module, kind)
        state[f"blocks.{i}.ls1.gamma"] = layer.layer_scale1.lambda1
        state[f"blocks.{i}.ls2.gamma"] = layer.layer_scale2.lambda1
    backbone.load_state_dict(state)
    head = create_head("eomt", backbone.spec, num_classes=CLASSES, num_queries=QUERIES, num_blocks=BLOCKS).eval()
    ours = {"queries": theirs.query.weight}
    for kind in ("weight", "bias"):
        ours[f"classifier.{kind}"] = getattr(theirs.class_predictor, kind)
        for i in range(3):
            ours[f"mask_mlp.{2 * i}.{kind}"] = getattr(theirs.mask_head.get_submodule(f"fc{i + 1}"), kind)
        for i, block in enumerate(theirs.upscale_block.block):
            ours[f"upscale.{i}.enlarge.{kind}"] = getattr(block.conv1, kind)
            ours[f"upscale.{i}.norm.{kind}"] = getattr(block.layernorm2d, kind)
            ours[f"upscale.{i}.smooth.weight"] = block.conv2.weight
    head.load_state_dict(ours)
    return theirs, backbone, head


@pytest.mark.parametrize(("patch", "side"), [(8, 40), (14, 42), (16, 48)])
def test_eval_is_that_of_transformers_without_masked_attention(patch: int, side: int) -> None:
    theirs, backbone, head = pair(patch, side)
    theirs.attn_mask_probs.zero_()
    x = images(2, 3, side, side)
    with torch.inference_mode():
        expected = theirs(x)
        model = attach(backbone, {"it": head})
        (found,) = head.predictions(backbone.forward_layers(x, head.layers, norm=False)[0])
        assert relative_error(found.masks, expected.masks_queries_logits) < 1e-5
        assert relative_error(found.classes, expected.class_queries_logits) < 1e-5
        masks = F.interpolate(expected.masks_queries_logits, (side, side), mode="bilinear").sigmoid()
        scores = torch.einsum("bqc,bqhw->bchw", expected.class_queries_logits.softmax(-1)[..., :-1], masks)
        assert relative_error(model(x)["it"], scores) < 1e-5


def test_training_is_that_of_transformers_with_masked_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, backbone, head = pair(8, 40)
    seen: list[tuple[Tensor, Tensor]] = []
    real = theirs.predict
    monkeypatch.setattr(theirs, "predict", lambda x: seen.append(real(x)) or seen[-1])
    x = images(2, 3, 40, 40)
    attach(backbone, {"it": head})
    with torch.inference_mode():
        theirs.attn_mask_probs.fill_(1)
        theirs.train()(x)
        found = head.train().predictions(backbone.forward_layers(x, head.layers, norm=False)[0])
        free = head.eval().predictions(backbone.forward_layers(x, head.layers, norm=False)[0])
    assert len(found) == len(seen) == BLOCKS + 1
    for ours, (masks, classes) in zip(found, seen, strict=True):
        assert relative_error(ours.masks, masks) < 1e-5
        assert relative_error(ours.classes, classes) < 1e-5
    assert relative_error(free[0].masks, found[-1].masks) > 1e-3  # the masks do something


def test_masks_are_kept_to_less_and_less() -> None:
    backbone = tiny_vit(depth=5)
    head = create_head("eomt", backbone.spec, num_classes=CLASSES, num_queries=400)
    expected = {0.0: (1, 1, 1, 1), 1 / 6: (1, 1, 1, 1), 0.25: (0.5**0.9, 1, 1, 1), 1 / 3: (0, 1, 1, 1)}
    expected |= {0.5: (0, 0, 1, 1), 0.75: (0, 0, 0, 0.5**0.9), 5 / 6: (0, 0, 0, 0), 1.0: (0, 0, 0, 0)}
    for progress, masked in expected.items():
        head.anneal(progress)
        assert head.masked == pytest.approx(masked, abs=1e-6)
    three = create_head("eomt", backbone.spec, num_classes=CLASSES, num_blocks=3)
    three.anneal(9 / 12 - 1 / 12)  # the authors' steps for three blocks start at 2/12, 5/12 and 8/12 of the training
    assert three.masked == pytest.approx((0, 0, 1), abs=1e-6)
    three.anneal(9 / 12)
    assert three.masked == pytest.approx((0, 0, 0.5**0.9), abs=1e-6)

    torch.manual_seed(0)
    outside = -torch.ones(2, 400, 4, 4)
    mask = head._mask(outside, 400 + 1 + 16, (4, 4), 0.3)
    free = mask[:, 0, :400, -16:]
    assert torch.equal(free.any(dim=2), free.all(dim=2))
    assert free.all(dim=2).float().mean().item() == pytest.approx(0.7, abs=0.05)
    assert mask[:, 0, 400:].all()
    assert mask[:, 0, :, :-16].all()
    assert head._mask(outside, 417, (4, 4), 0.0) is None


def test_queries_in_front_do_not_move_rotary_positions() -> None:
    """If no patch attends to the queries, the patches are the same as without queries."""
    backbone = tiny_vit(depth=3, rotary=Rotary(100.0, "centred", "halves"), position="none")
    head = randomise(create_head("eomt", backbone.spec, num_classes=CLASSES, num_queries=QUERIES, num_blocks=2))
    attach(backbone, {"it": head})
    x = images(1, 3, 24, 40)
    features = backbone.forward_layers(x, head.layers, norm=False)[0]
    tokens = torch.cat([head.queries[None], features.cls[:, None], features.tokens], dim=1)
    mask = torch.ones(1, 1, tokens.shape[1], tokens.shape[1], dtype=torch.bool)
    mask[:, :, QUERIES:, :QUERIES] = False
    with torch.inference_mode():
        after = backbone.blocks[1](tokens, Layout((features.grid,)), mask)[:, QUERIES + 1 :]
        assert relative_error(after, backbone.forward_layers(x, [1], norm=False)[0].tokens) < 1e-5


def test_eomt_says_what_it_wants() -> None:
    backbone = tiny_vit(depth=5)
    head = create_head("eomt", backbone.spec, num_classes=CLASSES, num_queries=QUERIES)
    features = backbone.forward_layers(images(1, 3, 32, 32), head.layers, norm=False)
    with pytest.raises(ValueError, match=r"EoMT runs blocks of the backbone, and has none yet; call attach\(backbone"):
        head(*features)
    attach(backbone, {"it": head})
    with pytest.raises(ValueError, match=r"labels have shape \(1, 8, 8\); want integers of shape \(1, 32, 32\)"):
        head.loss(torch.zeros(1, 8, 8, dtype=torch.int64), *features)
    mixed = backbone.forward_layers([images(3, 32, 32), images(3, 16, 32)], head.layers, norm=False)
    with pytest.raises(ValueError, match=r"the images are of different sizes"):
        head.loss(torch.zeros(2, 32, 32, dtype=torch.int64), *mixed)
    with pytest.raises(ValueError, match=r"tiny has 3 layers, and a head that reads \(-5,\) needs at least 5"):
        create_head("eomt", tiny_vit().spec, num_classes=CLASSES)
    resnet = BACKBONES["resnet"]
    with pytest.raises(ValueError, match=r"EoMT runs the blocks of a plain ViT, and resnet is a TimmBackbone"):
        attach(resnet, {"it": create_head("eomt", resnet.spec, num_classes=CLASSES)})
    for fields in ({"window": 2, "cls": False, "pool": "mean"}, {"relative_position": "table", "position": "none"}):
        other = tiny_vit(depth=5, **fields)
        with pytest.raises(ValueError, match=r"no place in the windows and relative positions of tiny"):
            attach(other, {"it": create_head("eomt", other.spec, num_classes=CLASSES)})


# ---- the loss ------------------------------------------------------------------------------------------------------


def by_hand(predicted: Masks, labels: Tensor) -> float:
    """With transformers' formulas at every place, matched by trying every assignment, of images without ignored
    pixels whose sides the masks divide."""
    masks, classes = predicted.masks, predicted.classes
    none = classes.shape[2] - 1
    wanted = torch.full(classes.shape[:2], none)
    chosen, targets = [], []
    for i, label in enumerate(labels):
        present = label.unique()
        step = label.shape[0] // masks.shape[2]
        blocks = label.unfold(0, step, step).unfold(1, step, step).flatten(2)
        target = torch.stack([(blocks == c).float().mean(dim=2).flatten() for c in present])
        logits = masks[i].flatten(1)
        cost = 5 * pair_wise_sigmoid_cross_entropy_loss(logits, target) + 5 * pair_wise_dice_loss(logits, target)
        cost = cost - 2 * classes[i].softmax(dim=1)[:, present]
        ways = itertools.permutations(range(len(logits)), len(present))
        best = min(ways, key=lambda way: sum(cost[q, t].item() for t, q in enumerate(way)))
        wanted[i, list(best)] = present
        chosen.append(logits[list(best)])
        targets.append(target)
    logits, target = torch.cat(chosen), torch.cat(targets)
    weights = torch.tensor([1.0] * none + [0.1])
    loss = 2 * F.cross_entropy(classes.flatten(0, 1), wanted.flatten(), weights)
    binary, dice = sigmoid_cross_entropy_loss(logits, target, len(target)), dice_loss(logits, target, len(target))
    return (loss + 5 * binary + 5 * dice).item()


@pytest.mark.parametrize("seed", range(4))
def test_the_set_loss_is_mask2formers_with_the_best_assignment(seed: int) -> None:
    predicted = Masks(2 * images(2, 5, 4, 4, seed=seed), 2 * images(2, 5, CLASSES + 1, seed=seed + 10))
    labels = torch.randint(0, CLASSES, (2, 12, 12), generator=torch.Generator().manual_seed(seed))
    labels[0, :, :6] = 0  # of large regions too
    labels[1, 3:] = 2
    assert set_loss(predicted, labels).item() == pytest.approx(by_hand(predicted, labels), rel=1e-5)


def test_ignored_pixels_are_left_out_of_the_set_loss() -> None:
    predicted = Masks(images(1, 5, 4, 4), images(1, 5, CLASSES + 1, seed=1))
    labels = torch.randint(0, CLASSES, (1, 12, 8), generator=torch.Generator().manual_seed(0))
    half = Masks(predicted.masks[:, :, :2], predicted.classes)
    ignored = labels.clone()
    ignored[:, 6:] = 255
    assert set_loss(predicted, ignored).item() == pytest.approx(set_loss(half, labels[:, :6]).item(), rel=1e-5)

    whole = labels[:, ::3, ::2].repeat_interleave(3, dim=1).repeat_interleave(2, dim=2)  # one class in each place
    some = whole.clone()
    some[:, ::3] = 255
    some[:, 1::3, ::2] = 255
    assert set_loss(predicted, some).item() == pytest.approx(set_loss(predicted, whole).item(), rel=1e-5)

    two = Masks(images(2, 5, 4, 4, seed=2).requires_grad_(), images(2, 5, CLASSES + 1, seed=3).requires_grad_())
    both = torch.cat([labels, torch.full_like(labels, 255)])
    first = Masks(two.masks[:1], two.classes[:1])
    assert set_loss(two, both).item() == pytest.approx(set_loss(first, labels).item(), rel=1e-5)
    nothing = set_loss(two, torch.full_like(both, 255))
    nothing.backward()
    assert nothing.item() == 0
    assert not two.masks.grad.any()


def test_more_classes_than_queries_are_no_error_and_wrong_labels_are() -> None:
    predicted = Masks(images(1, 2, 4, 4), images(1, 2, CLASSES + 1, seed=1))
    labels = torch.arange(16).view(1, 4, 4) % CLASSES
    assert set_loss(predicted, labels).isfinite()
    with pytest.raises(ValueError, match=r"labels hold \[3\]; want .* classes 0 to 2, or 255"):
        set_loss(predicted, labels + 1)


def test_queries_learn_through_a_frozen_backbone() -> None:
    backbone = freeze(tiny_vit(depth=5, patch_size=4))
    torch.manual_seed(0)
    head = create_head("eomt", backbone.spec, num_classes=CLASSES, num_queries=QUERIES)
    model = attach(backbone, {"it": head}).train()
    x = torch.zeros(2, 3, 32, 32)
    labels = torch.zeros(2, 32, 32, dtype=torch.int64)
    for i, (row, column) in enumerate([(4, 12), (16, 2)]):
        x[i, :, row : row + 12, column : column + 12] = 2
        labels[i, row : row + 12, column : column + 12] = 1
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01)
    features = backbone.forward_layers(x, head.layers, norm=False)
    for step in range(60):
        head.anneal(step / 60)
        optimizer.zero_grad()
        head.loss(labels, *features).backward()
        optimizer.step()
    with torch.inference_mode():
        right = (model.eval()(x)["it"].argmax(dim=1) == labels).float().mean()
    assert right > 0.9
