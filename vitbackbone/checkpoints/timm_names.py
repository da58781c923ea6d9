"""Models by timm's names: their configuration, preprocessing, licence and source, and the keys of their files."""

from collections.abc import Set
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from vitbackbone.checkpoints.rules import OUTSIDE, Change, Rule, drop, rename, together
from vitbackbone.contract import BackboneSpec
from vitbackbone.files import did_you_mean
from vitbackbone.images import Preprocess
from vitbackbone.networks import TimmBackbone, TimmConfig, WindowBlock, Windows

Arguments = tuple[tuple[str, Any], ...]  # keyword arguments of timm's constructors


@dataclass(frozen=True)
class Family:
    """The arguments that let a family of networks run at any image size. A family is one module of timm."""

    arguments: Arguments = ()
    windows: Windows = "timm"
    size_multiple: int | None = None  # where trial runs cannot find it, or take long


DYNAMIC = Family(arguments=(("dynamic_img_size", True),))  # timm resamples the position table for each size

FAMILIES: dict[str, Family] = {
    "timm.models.swin_transformer": Family((("strict_img_size", False),), "sized"),
    "timm.models.swin_transformer_v2": Family((("strict_img_size", False),), "fixed"),
    "timm.models.vision_transformer_hybrid": DYNAMIC,
    "timm.models.vision_transformer": DYNAMIC,
    "timm.models.deit": DYNAMIC,
    "timm.models.eva": DYNAMIC,
    "timm.models.vitamin": DYNAMIC,
    "timm.models.mvitv2": Family(size_multiple=32),
    "timm.models.sequencer": Family(size_multiple=14),
    "timm.models.gemma4_vit": Family(size_multiple=48),  # it pools 3 x 3 patches of 16 pixels
}


@dataclass(frozen=True)
class TimmEntry:
    """One named model of timm."""

    config: TimmConfig
    preprocess: Preprocess
    licence: str  # "" where timm names none
    source: str  # the Hub repository of the weights; "" where there are none
    num_classes: int  # outputs of the head that comes with the weights
    classifier: tuple[str, ...]  # the layers of that head, by timm's names


def is_timm(name: str) -> bool:
    """Return whether timm knows an architecture, given with or without the tag of its weights."""
    import timm

    architecture, _, tag = name.partition(".")
    return bool(timm.is_model(architecture)) and (not tag or timm.is_model_pretrained(name))


def describe_timm(name: str) -> TimmEntry:
    """Return what timm knows about `name`, without its weights and without the Hub. The name is an
    architecture, with or without the tag of its weights, such as `"swin_tiny_patch4_window7_224.ms_in1k"`.

    Raises `ValueError` on an unknown name, listing similar ones, and on preprocessing that is not supported.
    """
    import timm

    architecture = name.partition(".")[0]
    try:
        cfg: Any = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError as error:
        hint = did_you_mean(name, [*timm.list_pretrained(), *timm.list_models()]) or "."
        raise ValueError(f"timm {timm.__version__} knows no model {name!r}{hint}") from error
    return describe_weights(architecture, cfg.to_dict())


def describe_weights(architecture: str, cfg: dict[str, Any], arguments: Arguments = ()) -> TimmEntry:
    """Return what `cfg`, timm's `pretrained_cfg`, says about the weights of an architecture. `arguments` of the
    constructor come before `cfg`, but none keeps a network at one size that can run at any. Sizes are those of whole
    patches, because timm's ViTs drop the rest of an image at the bottom and right. Raises `ValueError` as
    `describe_timm` does."""
    import timm

    preprocess = preprocess_of(cfg)
    given, fixed = dict(arguments), bool(cfg.get("fixed_input_size"))
    channels = int(given.pop("in_chans", cfg["input_size"][0]))
    trained = given.get("img_size") or preprocess.image_size
    image_size = (trained, trained) if isinstance(trained, int) else (trained[0], trained[1])
    family = FAMILIES.get(timm.models.model_entrypoint(architecture).__module__, Family())
    if fixed and family == DYNAMIC:
        patch = _patch_of(architecture, arguments)
        preprocess = preprocess.in_patches(patch)
        image_size = (image_size[0] - image_size[0] % patch, image_size[1] - image_size[1] % patch)
        given["img_size"] = image_size
    size = {"img_size": image_size} if fixed else {}
    config = TimmConfig(
        architecture=architecture,
        image_size=image_size,
        arguments=tuple({**size, **given, **dict(family.arguments)}.items()),
        rebuild=fixed and not family.arguments,
        windows=family.windows,
        channels=channels,
        size_multiple=family.size_multiple,
    )
    layers = cfg.get("classifier") or ()
    classifier = (layers,) if isinstance(layers, str) else tuple(layers)
    licence, source, classes = (cfg.get(key) or "" for key in ("license", "hf_hub_id", "num_classes"))
    return TimmEntry(config, preprocess, licence, source, int(classes or 0), classifier)


@cache
def _patch_of(architecture: str, arguments: Arguments) -> int:
    """Return the side of a ViT's patches in pixels, or 1 if timm refuses the arguments, as it will when it builds the
    network."""
    import timm

    for given in ({**dict(arguments), "depth": 1}, dict(arguments)):  # one block is enough where timm takes the number
        try:
            with torch.device("meta"):
                network: Any = timm.create_model(architecture, pretrained=False, num_classes=0, **given)
            return int(network.patch_embed.feat_ratio())
        except Exception:  # a constructor raises all kinds of errors on arguments that it does not take
            continue
    return 1


def preprocess_of(cfg: dict[str, Any]) -> Preprocess:
    """Return the evaluation transform of timm's `pretrained_cfg`. Raises `ValueError` if it is not supported."""
    _, height, width = cfg["input_size"]
    crop_mode = cfg.get("crop_mode", "center")
    if crop_mode not in ("center", "squash", "border"):
        raise ValueError(f"timm's crop_mode={crop_mode!r} is not supported; want 'center', 'squash' or 'border'")
    return Preprocess(
        image_size=(height, width),
        crop_pct=cfg["crop_pct"],
        crop_mode=crop_mode,
        interpolation=cfg["interpolation"],
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )


PROJECTION = "projection."


def timm_rules(backbone: TimmBackbone, classifier: tuple[str, ...]) -> tuple[Rule, ...]:
    """Return the rules that turn a timm file into the parameters of `backbone` by name, and the layers of `classifier`
    into a head."""
    ours = backbone.state_dict().keys()
    computed = {name for name, _ in backbone.named_buffers()} - ours  # older files hold them
    masks = {f"{name}.attn_mask" for name, module in backbone.named_modules() if isinstance(module, WindowBlock)}
    # open_clip keeps its own layers after the pooling in `head`, beside timm's network in `trunk`
    layers = f"{OUTSIDE}head.mlp." if "projection.fc1.weight" in ours else f"{OUTSIDE}head.proj."
    return (
        *(rename(name.removeprefix("model."), name) for name in ours if not name.startswith(PROJECTION)),
        *(rename(layers + name.removeprefix(PROJECTION), name) for name in ours if name.startswith(PROJECTION)),
        *(drop(name.removeprefix("model.")) for name in sorted(computed | masks)),
        *_heads(classifier, {name.removeprefix("model.") for name in ours}, backbone.spec),
    )


NORMED = ("weight", "bias", "running_mean", "running_var")  # of a batch norm


def _heads(classifier: tuple[str, ...], ours: Set[str], spec: BackboneSpec) -> tuple[Rule, ...]:
    """Return the rules of a classifier's layers. DeiT's second one reads the distillation token.

    Where there is no such token, the layers become one layer on the pooled vector: their mean, because timm averages
    their logits. Each reads the whole vector (LeViT), or a part of its own (CrossViT). A batch norm in front of a layer
    is not part of the backbone, and is folded into the layer (RepViT).
    """
    if spec.num_registers and len(classifier) == 2:
        return tuple(replace(rule, via=AS_LINEAR) for rule in together(*zip(classifier, HEADS_OF_DEIT, strict=True)))
    norms = [f"{layer.rpartition('.')[0]}.bn" for layer in classifier]
    plain = tuple(f"{layer}.{kind}" for layer in classifier for kind in ("weight", "bias"))
    normed = tuple(f"{norm}.{kind}" for norm in norms for kind in NORMED)
    one, mean = ("head.weight", "head.bias"), partial(_mean, spec.pooled_dim)
    behind = Rule((*plain, *normed), one, Change(lambda *given: mean(*_folded(*given))))
    rules = (Rule(plain, one, Change(mean)), behind)
    return () if not classifier else rules[:1] if ours & set(normed) else rules


def _mean(width: int, *layers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of layers on a vector of `width` numbers, from their weights and biases in turn."""
    weights, bias = _as_linear(*layers[::2]), torch.stack(layers[1::2]).mean(dim=0)
    if len(weights) > 1 and sum(weight.shape[1] for weight in weights) == width:
        return torch.cat(weights, dim=1) / len(weights), bias
    return torch.stack(weights).mean(dim=0), bias


def _folded(*given: Tensor) -> list[Tensor]:
    """Return layers with the batch norms in front of them: given are the weights and biases, and then all norms."""
    count = len(given) // (2 + len(NORMED))
    made: list[Tensor] = []
    for n in range(count):
        weight, bias = given[2 * n : 2 * n + 2]
        start = 2 * count + len(NORMED) * n
        gain, shift, mean, variance = given[start : start + len(NORMED)]
        scale = gain / (variance + 1e-5).sqrt()
        made += [weight.flatten(1) * scale, bias + weight.flatten(1) @ (shift - mean * scale)]
    return made


def _as_linear(*parameters: Tensor) -> tuple[Tensor, ...]:
    """Flatten the weight of a 1x1 convolution, which some timm classifiers are, to the weight of a linear layer."""
    return tuple(parameter.flatten(1) if parameter.ndim > 2 else parameter for parameter in parameters)


AS_LINEAR = Change(_as_linear)
HEADS_OF_DEIT = ("head", "head_dist")
