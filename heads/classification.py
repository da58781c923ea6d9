"""Classifiers that come with a checkpoint: ViT's MLP head, DeiT's two heads, DINOv2's linear head.

Axes: `B` batch, `D` width, `K` classes.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import Head, Needs
from heads.options import Count, Layers
from heads.parallel import refuse_past_ddp, total
from heads.segmentation import check_tensor
from vitbackbone import BackboneSpec, Checkpoint, Features, pool_cls, pool_mean


def classification_loss(logits: Float[Tensor, "B K"], labels: Tensor) -> Tensor:
    """Return the cross-entropy, averaged over the images.

    In a training forward under DDP or FSDP it is averaged over the images of all processes. `labels` are integers
    (B,), or probabilities (B, K), as Mixup makes them. Raises `ValueError` on other labels, and on a label that is no
    class.
    """
    check_tensor("logits", logits, "want scores of shape (B, K)")
    count, classes = logits.shape
    wanted = (
        f"want integers of shape ({count},) from 0 to {classes - 1}, or probabilities of shape ({count}, {classes})"
    )
    check_tensor("labels", labels, wanted)
    soft = labels.is_floating_point()
    if not count or labels.dtype == torch.bool or labels.is_complex():
        raise ValueError(f"labels are {labels.dtype} for {count} images; {wanted}, for at least one image")
    if labels.shape != ((count, classes) if soft else (count,)):
        raise ValueError(f"labels are {labels.dtype} of shape {tuple(labels.shape)}; {wanted}")
    unknown = labels[~((labels >= 0) & (labels <= 1 + 1e-3))] if soft else labels[(labels < 0) | (labels >= classes)]
    if unknown.numel():
        raise ValueError(f"labels hold {unknown.unique().tolist()[:5]}; {wanted}")
    labels = labels.to(logits) if soft else labels.to(logits.device, torch.long)
    loss = total(F.cross_entropy(logits, labels, reduction="sum"))
    return loss / total(loss.new_tensor(float(count)))


class Classifying(Head):
    """A head whose output is a score for each class, (B, K)."""

    def loss(self, targets: Tensor, *features: Features) -> Tensor:
        """Return the `classification_loss` of the output, given labels (B,) or probabilities (B, K).

        Raises `ValueError` as `classification_loss` does, and `RuntimeError` under DDP outside its forward.
        """
        refuse_past_ddp(self)
        return classification_loss(self(*features), targets)


class MlpHead(Classifying):
    """A classifier on the backbone's own pooling, such as CLS or the patch mean (Dosovitskiy et al. 2021, section 3.1).

    `hidden` is the width of one hidden tanh layer, as in pretraining. None gives a single linear layer, as in
    fine-tuning.
    """

    def __init__(self, spec: BackboneSpec, num_classes: Count, hidden: Count | None = None) -> None:
        super().__init__(spec, Needs("last", norm=spec.has_norm, pooled=True))
        width = spec.pooled_dim
        self.num_classes = num_classes
        self.hidden = nn.Sequential(nn.Linear(width, hidden), nn.Tanh()) if hidden else nn.Identity()
        self.linear = nn.Linear(hidden or width, num_classes)
        # Zero weights at the start of fine-tuning, as in the paper (section 3.2).
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Float[Tensor, "B K"]:
        return self.linear(self.hidden(features.pooled))


class DistilledHead(Classifying):
    """DeiT's two linear heads, on CLS and on the distillation token. The logits are their mean.

    (Touvron et al. 2021, section 4)
    """

    def __init__(self, spec: BackboneSpec, num_classes: Count) -> None:
        super().__init__(spec, Needs("last", prefix=True, pooled=False))
        self.num_classes = num_classes
        self.cls = nn.Linear(spec.dim, num_classes)
        self.distillation = nn.Linear(spec.dim, num_classes)

    def forward(self, features: Features) -> Float[Tensor, "B K"]:
        """Return logits. Raises `ValueError` on features without a distillation token."""
        if features.cls is None or features.registers.shape[1] != 1:
            cls = "no CLS token" if features.cls is None else "a CLS token"
            raise ValueError(
                f"DistilledHead was given {cls} and {features.registers.shape[1]} registers; want CLS and one "
                "distillation token, as DeiT's distilled backbones have"
            )
        return (self.cls(features.cls) + self.distillation(features.registers[:, 0])) / 2


def lc_features(*features: Features) -> Float[Tensor, "B F"]:
    """Concatenate the CLS tokens of the layers given and the mean of the last layer's patches.

    DINOv2's linear classifiers read these features (facebookresearch/dinov2, eval/linear.py). Their names on torch hub
    end in `_lc`.

    For a `LinearProbe` on photos, `ImageFeatures(pooling="4cls+mean")` computes them from four layers. With a store
    made by `--layers -4,-3,-2,-1 --tokens cls,patches`, compute them by

        cls = [store.layer(i).cls for i in store.layers]
        mean = np.stack([tokens.mean(axis=0) for tokens in store.tokens])
        X = np.hstack([*cls, mean])

    Raises `ValueError` on features without CLS.
    """
    return torch.cat([*(pool_cls(each) for each in features), pool_mean(features[-1])], dim=1)


class ConcatHead(Classifying):
    """A linear layer on `lc_features`: DINOv2's classifier on its last layer, or on its last four by `layers="last4"`.

    `mean`: whether the layer also reads the mean of the last layer's patches.
    (Oquab et al. 2023; facebookresearch/dinov2, hub/classifiers.py)
    """

    def __init__(self, spec: BackboneSpec, num_classes: Count, layers: Layers = "last", mean: bool = True) -> None:
        super().__init__(spec, Needs(layers, norm=spec.has_norm, prefix=True, pooled=False))
        self.num_classes = num_classes
        self.mean = mean
        self.linear = nn.Linear(sum(spec.dims[layer] for layer in self.layers) + mean * spec.dim, num_classes)
        # The initialisation of its authors (dinov2/eval/linear.py).
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, *features: Features) -> Float[Tensor, "B K"]:
        """Return logits. Raises `ValueError` on features without CLS."""
        read = lc_features(*features) if self.mean else torch.cat([pool_cls(each) for each in features], dim=1)
        return self.linear(read)


Classifier = MlpHead | DistilledHead | ConcatHead


def checkpoint_head(checkpoint: Checkpoint) -> Classifier:
    """Return the classifier of a checkpoint, with its weights, in eval mode.

    The names of its parameters, and never their shapes, say what the classifier reads. `head` reads the backbone's own
    pooling, `head_dist` DeiT's distillation token, and `head_concat` CLS and the mean of the patches.

    Raises `ValueError` if the checkpoint has no classifier, or one that does not fit the backbone's features.
    """
    spec, weights = checkpoint.backbone.spec, checkpoint.head
    if "head_concat.weight" in weights:
        weight = weights["head_concat.weight"]
        layers: Layers = "last4" if weight.shape[1:] == (5 * spec.dim,) else "last"
        return _filled(ConcatHead(spec, len(weight), layers), checkpoint, {"linear": "head_concat"})
    if "head.weight" not in weights:
        raise ValueError(
            f"{spec.name} comes without a classifier; one that has one is hf:google/vit-base-patch16-224. A model with "
            "a text tower classifies by labels alone (--labels, ZeroShot)"
        )
    num_classes = len(weights["head.weight"])
    if "head_dist.weight" in weights:
        names = {"cls": "head", "distillation": "head_dist"}
        return _filled(DistilledHead(spec, num_classes), checkpoint, names)
    hidden = len(weights["head.hidden.weight"]) if "head.hidden.weight" in weights else None
    return _filled(MlpHead(spec, num_classes, hidden), checkpoint, {"linear": "head", "hidden.0": "head.hidden"})


def imagenet_labels(num_classes: int) -> tuple[str, ...]:
    """Return the names of ImageNet's classes, in the order of a published classifier's outputs.

    There are names for the 1000 classes of ILSVRC, for all 21,841, and for the 21,843 that Google counts. Any other
    number gives (). The names, and the choice by the number of classes, are timm's (timm/data/imagenet_info.py).
    """
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else ()


def _filled(head: Classifier, checkpoint: Checkpoint, names: Mapping[str, str]) -> Classifier:
    """Load the parameters of a checkpoint into a head. `names` maps our layer names to the checkpoint's."""
    theirs = {key: f"{names[layer]}.{kind}" for key in head.state_dict() for layer, _, kind in [key.rpartition(".")]}
    given = {key: tuple(value.shape) for key, value in sorted(checkpoint.head.items())}
    wanted = {theirs[key]: tuple(value.shape) for key, value in head.state_dict().items()}
    if given != wanted:
        have, want = (", ".join(f"{key} {shape}" for key, shape in side.items()) for side in (given, wanted))
        raise ValueError(f"the classifier of {checkpoint.backbone.spec.name} has {have}; its features need {want}")
    head.load_state_dict({key: checkpoint.head[name] for key, name in theirs.items()})
    return head.eval()
