"""Classifiers that come with a checkpoint: the paper's MLP head, DeiT's two heads, DINOv2's linear one.

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
    """Cross-entropy, the mean over the images. In a training forward under DDP or FSDP, over the images of all
    processes.

    `labels`: integers (B,), or probabilities (B, K), as Mixup makes them. Raises `ValueError` on other ones, and on a
    label that is no class.
    """
    check_tensor("logits", logits, "want scores of shape (B, K)")
    count, classes = logits.shape
    wanted = (
        f"want integers of shape ({count},) from 0 to {classes - 1}, or probabilities of shape ({count}, {classes})"
    )
    check_tensor("labels", labels, wanted)
    soft = labels.is_floating_point()
    if not count or labels.dtype == torch.bool or labels.is_complex():
        raise ValueError(f"labels are {labels.dtype} of {count} images; {wanted}, of one image at least")
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
        """The `classification_loss` of the output. Raises as that does, and `RuntimeError` under DDP outside its
        forward."""
        refuse_past_ddp(self)
        return classification_loss(self(*features), targets)


class MlpHead(Classifying):
    """Logits from the backbone's own pooling, CLS or the patch mean (Dosovitskiy et al. 2021, section 3.1).

    `hidden`: width of one hidden tanh layer, as in pretraining; None is the single linear layer of fine-tuning.
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
    """DeiT's two linear heads, on CLS and on the distillation token; the logits are their mean (Touvron et al. 2021,
    section 4)."""

    def __init__(self, spec: BackboneSpec, num_classes: Count) -> None:
        super().__init__(spec, Needs("last", prefix=True, pooled=False))
        self.num_classes = num_classes
        self.cls = nn.Linear(spec.dim, num_classes)
        self.distillation = nn.Linear(spec.dim, num_classes)

    def forward(self, features: Features) -> Float[Tensor, "B K"]:
        """Raises `ValueError` on features without a distillation token."""
        if features.cls is None or features.registers.shape[1] != 1:
            raise ValueError(f"want CLS and one distillation token, got {features.registers.shape[1]} registers")
        return (self.cls(features.cls) + self.distillation(features.registers[:, 0])) / 2


def lc_features(*features: Features) -> Float[Tensor, "B F"]:
    """The CLS tokens of the layers given, and the mean of the last one's patches, side by side: what DINOv2's linear
    classifiers read (facebookresearch/dinov2, eval/linear.py; torch hub's names end in `_lc`).

    For a `LinearProbe` on photos, `ImageFeatures(pooling="4cls+mean")` makes those of four layers; out of a store that
    was made with `--layers -4,-3,-2,-1 --tokens cls,patches` they are

        cls = [store.layer(i).cls for i in store.layers]
        mean = np.stack([tokens.mean(axis=0) for tokens in store.tokens])
        X = np.hstack([*cls, mean])

    Raises `ValueError` on features without CLS.
    """
    return torch.cat([*(pool_cls(each) for each in features), pool_mean(features[-1])], dim=1)


class ConcatHead(Classifying):
    """A linear layer on `lc_features`: DINOv2's classifiers on its last layer, or with `layers="last4"` on its last
    four (Oquab et al. 2023; facebookresearch/dinov2, hub/classifiers.py)."""

    def __init__(self, spec: BackboneSpec, num_classes: Count, layers: Layers = "last") -> None:
        super().__init__(spec, Needs(layers, prefix=True, pooled=False))
        self.num_classes = num_classes
        self.linear = nn.Linear(sum(spec.dims[layer] for layer in self.layers) + spec.dim, num_classes)
        # As its authors start it (dinov2/eval/linear.py).
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, *features: Features) -> Float[Tensor, "B K"]:
        """Raises `ValueError` on features without CLS."""
        return self.linear(lc_features(*features))


Classifier = MlpHead | DistilledHead | ConcatHead


def checkpoint_head(checkpoint: Checkpoint) -> Classifier:
    """The classifier that a checkpoint brought along, with its weights, in eval mode.

    What it reads is said by the names of its parameters, which the table of the checkpoint's format gives, and never
    guessed from their shapes: `head` the backbone's own pooling, `head_dist` DeiT's distillation token, `head_concat`
    CLS beside the mean of the patches.
    Raises `ValueError` if the checkpoint brought none, or one that does not fit what it reads.
    """
    spec, weights = checkpoint.backbone.spec, checkpoint.head
    if "head_concat.weight" in weights:
        weight = weights["head_concat.weight"]
        layers: Layers = "last4" if weight.shape[1:] == (5 * spec.dim,) else "last"
        return _filled(ConcatHead(spec, len(weight), layers), checkpoint, {"linear": "head_concat"})
    if "head.weight" not in weights:
        raise ValueError(f"{spec.name} comes without a classifier; one that has one is hf:google/vit-base-patch16-224")
    num_classes = len(weights["head.weight"])
    if "head_dist.weight" in weights:
        names = {"cls": "head", "distillation": "head_dist"}
        return _filled(DistilledHead(spec, num_classes), checkpoint, names)
    hidden = len(weights["head.hidden.weight"]) if "head.hidden.weight" in weights else None
    return _filled(MlpHead(spec, num_classes, hidden), checkpoint, {"linear": "head", "hidden.0": "head.hidden"})


def imagenet_labels(num_classes: int) -> tuple[str, ...]:
    """The names of ImageNet's classes in the order of a published classifier's outputs: of the 1000 of ILSVRC, of all
    21,841, or of the 21,843 in Google's count; () for any other number.

    They are timm's, and so is the way to tell the set by its number of classes (timm/data/imagenet_info.py).
    """
    from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": num_classes})
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else ()


def _filled(head: Classifier, checkpoint: Checkpoint, names: Mapping[str, str]) -> Classifier:
    """The head with the parameters of a checkpoint. `names`: of its layers, ours to the checkpoint's."""
    theirs = {key: f"{names[layer]}.{kind}" for key in head.state_dict() for layer, _, kind in [key.rpartition(".")]}
    given = {key: tuple(value.shape) for key, value in sorted(checkpoint.head.items())}
    wanted = {theirs[key]: tuple(value.shape) for key, value in head.state_dict().items()}
    if given != wanted:
        have, want = (", ".join(f"{key} {shape}" for key, shape in side.items()) for side in (given, wanted))
        raise ValueError(f"the classifier of {checkpoint.backbone.spec.name} has {have}; its features want {want}")
    head.load_state_dict({key: checkpoint.head[name] for key, name in theirs.items()})
    return head.eval()
