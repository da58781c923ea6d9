"""Trained classifiers as heads of the package, which `load_head` reads."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from heads import Head, create_head, save_head
from vitbackbone.evaluation.results import read_results, result_key
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import digest


def keep_head(run: Run, name: str, head: Head) -> None:
    """Write a trained head to OUT/heads/NAME-VARIANT-DATASET, and name it in the results."""
    folder = head_folder(run, f"{name}-{run.protocol.variant}-{run.dataset}")
    save_head(head.cpu(), folder, run.backbone)
    run.heads[name] = folder


def head_folder(run: Run, name: str) -> Path:
    """Return OUT/heads/NAME, with a hash behind it if the head of another backbone or other settings is there."""
    folder, own = run.out / "heads" / name, result_key(run)
    taken = {head for each in read_results(run.out) if each.key != own for head in each.heads.values()}
    return folder.with_name(f"{name}-{digest(own)[:8]}") if str(folder.relative_to(run.out)) in taken else folder


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
