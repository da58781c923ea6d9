"""The classifiers that checkpoints bring along, against those of timm, transformers and the authors."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from heads import ConcatHead, DistilledHead, MlpHead, attach, checkpoint_head, imagenet_labels
from tests.helpers import randomise, relative_error, tiny_vit
from vitbackbone import Checkpoint, load_checkpoint
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.rules import HEADS, convert
from vitbackbone.checkpoints.zoo import ZOO

CLASSES = 7
LIMIT = 1e-5

# One tiny size for all: a row of the zoo shrunk to it keeps all else, such as how it pools and the layout of its files.
SMALL = {"image_size": (32, 32), "patch_size": 8, "dim": 48, "depth": 4, "num_heads": 3}
TIMM_SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3}
HF_SMALL = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "intermediate_size": 96,
}

Shrink = Callable[..., str]


@pytest.fixture
def shrink(monkeypatch: pytest.MonkeyPatch) -> Shrink:
    """A name of the zoo whose entry is replaced by a tiny model for the test."""

    def do(name: str, mlp_dim: int = 192) -> str:
        config = replace(ZOO[name].config, **SMALL, mlp_dim=mlp_dim)
        monkeypatch.setitem(ZOO, name, replace(ZOO[name], config=config))
        return name

    return do


def images(count: int = 2) -> Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def check(checkpoint: Checkpoint, kind: type[nn.Module], logits: Tensor) -> None:
    head = checkpoint_head(checkpoint)
    assert type(head) is kind
    assert not head.training
    assert head.num_classes == CLASSES
    with torch.inference_mode():
        ours = attach(checkpoint.backbone, {"classes": head})(images())["classes"]
        assert relative_error(ours, logits) <= LIMIT


# ---- against upstream ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "mlp_dim", "kind"),
    [
        ("vit_base_patch16_224.augreg_in21k_ft_in1k", 192, MlpHead),
        ("vit_small_patch14_dinov2.lvd142m", 192, MlpHead),  # as timm fine-tunes it: CLS alone
        ("deit_small_patch16_224.fb_in1k", 192, MlpHead),
        ("deit_small_distilled_patch16_224.fb_in1k", 192, DistilledHead),
        ("deit3_small_patch16_224.fb_in1k", 192, MlpHead),
        ("beit_base_patch16_224.in22k_ft_in22k_in1k", 192, MlpHead),
        ("eva02_tiny_patch14_336.mim_in22k_ft_in1k", 128, MlpHead),
        ("eva02_base_patch14_448.mim_in22k_ft_in1k", 128, MlpHead),
    ],
)
def test_equals_timms(name: str, mlp_dim: int, kind: type[nn.Module], shrink: Shrink, tmp_path: Path) -> None:
    model = randomise(timm.create_model(name.split(".")[0], num_classes=CLASSES, **TIMM_SMALL))
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    with torch.inference_mode():
        check(load_checkpoint(shrink(name, mlp_dim), tmp_path / "weights.pth"), kind, model(images()))


HF = {  # model class: (config class, settings, head)
    "ViTForImageClassification": ("ViTConfig", {}, MlpHead),
    "DeiTForImageClassification": ("DeiTConfig", {}, MlpHead),
    "DeiTForImageClassificationWithTeacher": ("DeiTConfig", {}, DistilledHead),
    "IJepaForImageClassification": ("IJepaConfig", {}, MlpHead),
    "BeitForImageClassification": ("BeitConfig", {"use_relative_position_bias": True}, MlpHead),
    "Dinov2ForImageClassification": ("Dinov2Config", {}, ConcatHead),
    "Dinov2WithRegistersForImageClassification": ("Dinov2WithRegistersConfig", {}, ConcatHead),
}
HF_CASES = [
    *((name, {}) for name in HF),
    ("BeitForImageClassification", {"use_mean_pooling": False}),
    ("Dinov2ForImageClassification", {"use_swiglu_ffn": True}),
]


@pytest.mark.parametrize(("name", "settings"), HF_CASES, ids=lambda case: str(case))
def test_equals_transformers(name: str, settings: dict[str, object], tmp_path: Path) -> None:
    config, more, kind = HF[name]
    model = getattr(transformers, name)(getattr(transformers, config)(**HF_SMALL, **more, **settings))
    model.config.id2label = {i: f"class {i}" for i in reversed(range(CLASSES))}
    model = randomise(getattr(transformers, name)(model.config))
    model.save_pretrained(tmp_path)
    checkpoint = load_checkpoint(tmp_path)
    with torch.inference_mode():
        check(checkpoint, kind, model(pixel_values=images()).logits)
    assert checkpoint.labels == tuple(f"class {i}" for i in range(CLASSES))


@pytest.mark.parametrize("layers", [1, 4])
@pytest.mark.parametrize("registers", [0, 4])
def test_equals_the_authors_dinov2(registers: int, layers: int, shrink: Shrink, tmp_path: Path) -> None:
    """The oracle has the lines of hub/classifiers.py for `layers=1` and `layers=4`, on timm's tokens."""
    name, middle = ("dinov2_vits14_reg_lc", "_reg4") if registers else ("dinov2_vits14_lc", "")
    model = randomise(timm.create_model(f"vit_small_patch14{middle}_dinov2", num_classes=0, **TIMM_SMALL))
    linear = randomise(nn.Linear((layers + 1) * 48, CLASSES))
    inner = model.state_dict()
    if registers:  # the authors have a position for CLS, and timm has folded it
        inner["register_tokens"] = inner.pop("reg_token")
        inner["pos_embed"] = torch.cat([torch.zeros(1, 1, 48), inner["pos_embed"]], dim=1)
    state = {"backbone.mask_token": torch.zeros(1, 48), **{f"backbone.{key}": inner[key] for key in inner}}
    state |= {f"linear_head.{key}": value for key, value in linear.state_dict().items()}
    torch.save(state, tmp_path / "lc.pth")
    with torch.inference_mode():
        tokens = model.get_intermediate_layers(images(), n=layers, return_prefix_tokens=True, norm=True)
        cls = [prefix[:, 0] for _, prefix in tokens]
        logits = linear(torch.cat([*cls, tokens[-1][0].mean(dim=1)], dim=1))
        check(load_checkpoint(shrink(name), tmp_path / "lc.pth"), ConcatHead, logits)


def test_the_authors_dinov2_classifiers_see_what_they_were_trained_on() -> None:
    """dinov2/data/transforms.py, make_classification_eval_transform: 224 of 256 pixels."""
    entries = [ZOO[f"dinov2_vit{size}14{registers}_lc"] for size in "sblg" for registers in ("", "_reg")]
    for entry in entries:
        assert entry.num_classes == 1000
        assert entry.preprocess.image_size == (224, 224)
        assert entry.preprocess.scaled((224, 224)) == (256, 256)


def test_equals_the_formula_of_googles_pretraining_head() -> None:
    """`pre_logits` is a tanh layer (vit_jax/models_vit.py); Flax multiplies kernels from the right."""
    arrays = {
        "pre_logits/kernel": (16, 8),
        "pre_logits/bias": (8,),
        "head/kernel": (8, CLASSES),
        "head/bias": (CLASSES,),
    }
    state = {key: torch.randn(shape, generator=torch.Generator().manual_seed(1)) for key, shape in arrays.items()}
    rules = [rule for rule in FORMATS["flax"] if any(target.startswith(HEADS) for target in rule.targets)]
    checkpoint = Checkpoint(tiny_vit(), convert(state, rules, {}), ())
    with torch.inference_mode():
        hidden = torch.tanh(checkpoint.backbone(images()).cls @ state["pre_logits/kernel"] + state["pre_logits/bias"])
    check(checkpoint, MlpHead, hidden @ state["head/kernel"] + state["head/bias"])


# ---- the heads ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fields", [{}, {"cls": False, "pool": "mean"}])
def test_the_hidden_layer_is_tanh(fields: dict[str, object]) -> None:
    features = tiny_vit(**fields)(torch.randn(2, 3, 32, 32))
    head = randomise(MlpHead(tiny_vit().spec, 5, hidden=8))
    (inner, _), outer = head.hidden, head.linear
    want = torch.tanh(features.pooled @ inner.weight.T + inner.bias) @ outer.weight.T + outer.bias
    assert relative_error(head(features), want) < 1e-6


def test_the_linear_head_starts_at_zero_as_in_the_paper() -> None:
    head = MlpHead(tiny_vit().spec, 5)
    assert not head(tiny_vit()(torch.randn(2, 3, 32, 32))).any()


def test_the_distilled_head_wants_one_distillation_token() -> None:
    DistilledHead(tiny_vit(num_registers=1).spec, 5)(tiny_vit(num_registers=1)(images()))
    for wrong in (tiny_vit(), tiny_vit(num_registers=4)):
        with pytest.raises(ValueError, match="one distillation token"):
            DistilledHead(tiny_vit(num_registers=1).spec, 5)(wrong(images()))


def test_the_head_on_cls_and_the_mean_leaves_padding_out_and_wants_cls() -> None:
    head, backbone = randomise(ConcatHead(tiny_vit().spec, 5)), tiny_vit()
    sizes = [images()[0], images()[1, :, :16, :24]]
    alone = torch.cat([head(backbone(image[None])) for image in sizes])
    assert relative_error(head(backbone(sizes)), alone) <= LIMIT
    with pytest.raises(ValueError, match="have no CLS token"):
        head(tiny_vit(cls=False, pool="mean")(images()))


def test_the_head_is_as_wide_as_what_the_backbone_pools() -> None:
    backbone = tiny_vit(projection_dim=24)
    weights = {"head.weight": torch.randn(CLASSES, 24), "head.bias": torch.randn(CLASSES)}
    with torch.inference_mode():
        logits = backbone(images()).pooled @ weights["head.weight"].T + weights["head.bias"]
    check(Checkpoint(backbone, weights, ()), MlpHead, logits)


# ---- what does not fit --------------------------------------------------------------------------------------------


def test_a_checkpoint_without_a_classifier_says_so() -> None:
    with pytest.raises(ValueError, match="tiny comes without a classifier; .* hf:google/vit-base-patch16-224"):
        checkpoint_head(Checkpoint(tiny_vit(), {}, ()))


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (
            {"head.weight": (5, 32), "head.bias": (5,)},
            "has head.bias (5,), head.weight (5, 32); .* head.weight (5, 16)",
        ),
        ({"head.weight": (5, 16)}, "has head.weight (5, 16); its features need .*, head.bias (5,)"),
        ({"head_concat.weight": (5, 16), "head_concat.bias": (5,)}, "need head_concat.weight (5, 32)"),
        ({"head.weight": (5, 16), "head.bias": (5,), "head_dist.weight": (5, 16)}, "need .* head_dist.bias (5,)"),
        ({"head.weight": (5, 8), "head.bias": (5,), "head.hidden.weight": (8, 16)}, "need .* head.hidden.bias (8,)"),
        ({"head.weight": (5, 16), "head.bias": (5,), "head.x.weight": (1,)}, "has head.bias .*, head.x.weight (1,)"),
    ],
)
def test_a_classifier_that_does_not_fit_is_listed_with_what_would(
    shapes: dict[str, tuple[int, ...]], message: str
) -> None:
    weights = {key: torch.zeros(shape) for key, shape in shapes.items()}
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        checkpoint_head(Checkpoint(tiny_vit(), weights, ()))


# ---- names --------------------------------------------------------------------------------------------------------


def test_the_classifiers_of_the_zoo_have_names_in_imagenets_order() -> None:
    for count in {entry.num_classes for entry in ZOO.values()} - {0}:
        assert len(imagenet_labels(count)) == count
    few, all_of_2011, googles = map(imagenet_labels, (1000, 21841, 21843))
    # The numbers that these classes have everywhere
    assert (few[0], few[207], few[999]) == (
        "tench, Tinca tinca",
        "golden retriever",
        "toilet tissue, toilet paper, bathroom tissue",
    )
    # BEiT's converter leaves these two out of Google's (transformers, convert_beit_unilm_to_pytorch.py).
    assert all_of_2011 == tuple(name for i, name in enumerate(googles) if i not in (9205, 15027))
    assert imagenet_labels(7) == ()
