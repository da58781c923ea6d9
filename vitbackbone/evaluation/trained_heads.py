"""Trained classifiers as heads of the package, which `load_head` reads."""

import torch
from jaxtyping import Float
from torch import Tensor

from heads import Head, create_head, save_head
from vitbackbone.evaluation.run import Run


def keep_head(run: Run, name: str, head: Head) -> None:
    """Write a trained head to OUT/heads/NAME, and name it in the results."""
    folder = run.out / "heads" / f"{name}-{run.protocol.variant}-{run.dataset}"
    save_head(head.cpu(), folder, run.backbone)
    run.heads[name] = folder


def linear_head(
    run: Run, weight: Float[Tensor, "K F"], bias: Float[Tensor, " K"], blocks: int, mean: bool
) -> Head | None:
    """Return the head that reads CLS of the last `blocks` blocks, and the mean if `mean`. None if there is no CLS."""
    spec = run.backbone.spec
    if not spec.has_cls:
        if blocks > 1 or mean or weight.shape[1] != spec.pooled_dim:
            return None
        head = create_head("mlp", spec, num_classes=len(weight))
    else:
        layers = list(range(-blocks, 0))
        head = create_head("concat", spec, num_classes=len(weight), layers=layers, mean=mean)
    with torch.no_grad():
        head.linear.weight.copy_(weight)
        head.linear.bias.copy_(bias)
    return head
