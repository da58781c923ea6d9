"""Trained classifiers as heads of the package, which `load_head` reads."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from heads import Head, create_head, save_head
from vitbackbone.evaluation.results import read_results, result_key
from vitbackbone.evaluation.run import Run
from vitbackbone.evaluation.settings import digest
from vitbackbone.evaluation.vectors import VectorFeatures


def keep_head(run: Run, name: str, head: Head) -> None:
    """Write a trained head to OUT/heads/NAME-VARIANT-DATASET, and name it in the results."""
    folder = head_folder(run, f"{name}-{run.protocol.variant}-{run.dataset}")
    save_head(head.cpu(), folder, run.backbone)
    run.heads[name] = folder


def head_folder(run: Run, name: str) -> Path:
    """Return OUT/heads/NAME, with a hash after it if the head of another backbone or other settings is there."""
    folder, own = run.out / "heads" / name, result_key(run)
    taken = {head for each in read_results(run.out) if each.key != own for head in each.heads.values()}
    return folder.with_name(f"{name}-{digest(own)[:8]}") if str(folder.relative_to(run.out)) in taken else folder


def keep_linear(
    run: Run, name: str, weight: Float[Tensor, "K F"], bias: Float[Tensor, " K"], features: VectorFeatures
) -> None:
    """Write a linear classifier of vectors as `keep_head` does, or note that no head of the package reads them."""
    spec = run.backbone.spec
    if features.norm != spec.has_norm:
        run.note("the classifier reads blocks without the final norm, so it cannot be saved as a head of the package")
        return
    if spec.has_cls:
        layers = list(range(-features.blocks, 0))
        head = create_head("concat", spec, num_classes=len(weight), layers=layers, mean=features.mean)
    elif features.blocks == 1 and not features.mean:
        head = create_head("mlp", spec, num_classes=len(weight))
    else:
        run.note("the backbone has no CLS token, so the classifier cannot be saved as a head of the package")
        return
    with torch.no_grad():
        head.linear.weight.copy_(weight)
        head.linear.bias.copy_(bias)
    keep_head(run, name, head)
