"""Classifiers that come with a checkpoint: the paper's MLP head and DeiT's two heads.

Axes: `B` batch, `D` width, `K` classes.
"""

from jaxtyping import Float
from torch import Tensor, nn

from vitbackbone import Checkpoint, Features


class MlpHead(nn.Module):
    """Logits from the backbone's own pooling, CLS or the patch mean (Dosovitskiy et al. 2021, section 3.1).

    `hidden`: width of one hidden tanh layer, as in pretraining; None is the single linear layer of fine-tuning.
    """

    def __init__(self, dim: int, num_classes: int, hidden: int | None = None) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(dim, hidden), nn.Tanh()) if hidden else nn.Identity()
        self.linear = nn.Linear(hidden or dim, num_classes)
        # Zero weights at the start of fine-tuning, as in the paper (section 3.2).
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Features) -> Float[Tensor, "B K"]:
        return self.linear(self.hidden(features.pooled))


class DistilledHead(nn.Module):
    """DeiT's two linear heads, on CLS and on the distillation token; the logits are their mean (Touvron et al. 2021,
    section 4)."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.cls = nn.Linear(dim, num_classes)
        self.distillation = nn.Linear(dim, num_classes)

    def forward(self, features: Features) -> Float[Tensor, "B K"]:
        """Raises `ValueError` on features without a distillation token."""
        if features.cls is None or features.registers.shape[1] != 1:
            raise ValueError(f"want CLS and one distillation token, got {features.registers.shape[1]} registers")
        return (self.cls(features.cls) + self.distillation(features.registers[:, 0])) / 2


def checkpoint_head(checkpoint: Checkpoint) -> MlpHead | DistilledHead:
    """The classifier that a checkpoint brought along, with its weights, in eval mode.

    Raises `ValueError` if it brought none, or one that reads something else than the backbone's pooled output.
    """
    dim = checkpoint.backbone.spec.dim
    weights = checkpoint.head
    if not weights:
        raise ValueError(f"{checkpoint.backbone.spec.name} comes without a classifier")
    num_classes, width = weights["head.weight"].shape
    if width != dim:
        raise ValueError(
            f"the classifier of {checkpoint.backbone.spec.name} reads {width} values, its tokens have {dim}"
        )
    if "head_dist.weight" in weights:
        distilled = DistilledHead(dim, num_classes)
        names = {"head": "cls", "head_dist": "distillation"}
        distilled.load_state_dict({names[k.split(".")[0]] + "." + k.split(".")[1]: v for k, v in weights.items()})
        return distilled.eval()
    head = MlpHead(dim, num_classes)
    head.load_state_dict({k.replace("head.", "linear."): v for k, v in weights.items()})
    return head.eval()
