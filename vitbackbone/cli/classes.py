"""`classify`: a checkpoint's own classifier; and how classes are printed."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitbackbone.cli.text import escaped, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vitbackbone.load import Checkpoint


def classify(args: argparse.Namespace) -> int:
    from heads.base import attach
    from heads.classification import checkpoint_head
    from vitbackbone.inference import check_device, evaluating
    from vitbackbone.load import load_checkpoint

    if args.top < 1:
        raise ValueError(f"--top {args.top}; want at least 1")
    if args.weights == "random":
        raise ValueError("--weights random is an untrained model without a classifier; want a file, or nothing")
    check_device(args.device)
    checkpoint = load_checkpoint(args.model, args.weights)
    backbone, head = checkpoint.backbone.to(args.device), checkpoint_head(checkpoint).to(args.device)
    model = attach(backbone, {"classes": head})

    def classify(pixels: "Tensor") -> "NDArray[Any]":
        with evaluating(backbone):
            return model(pixels[None].to(args.device))["classes"].softmax(dim=1)[0].cpu().numpy()

    names = _class_names(args.model, checkpoint, head.num_classes)
    return print_classes(args.images, backbone.preprocess, classify, names, args.top)


def _class_names(model: str, checkpoint: "Checkpoint", num_classes: int) -> Sequence[str]:
    """What the outputs of a classifier mean: the checkpoint's own names; of a model of the zoo ImageNet's, which no
    file of timm's or of the authors holds; else their indices."""
    from heads.classification import imagenet_labels
    from vitbackbone.load import find_entry

    if checkpoint.labels:
        return checkpoint.labels
    published = find_entry(model).num_classes == num_classes  # weights given by hand may have classes of their own
    return (imagenet_labels(num_classes) if published else ()) or [str(i) for i in range(num_classes)]


def print_classes(
    images: Sequence[str],
    read: "Callable[[str], Tensor]",
    classify: "Callable[[Tensor], NDArray[Any]]",
    names: Sequence[str],
    top: int,
) -> int:
    """A line for each of the `top` likeliest classes of each image: `classify` makes (K,) probabilities of what `read`
    makes of a file, and one that cannot be read is named. Returns the exit code."""
    failed = 0
    for image in images:
        try:
            pixels = read(image)
        except (OSError, ValueError) as error:
            print(f"{escaped(image)}\tfailed: {printable(str(error))}", file=sys.stderr)
            failed += 1
            continue
        probabilities = classify(pixels)
        for i in np.argsort(-probabilities)[:top]:
            print(f"{escaped(image)}\t{escaped(names[i])}\t{probabilities[i]:.3f}")
    return 1 if failed == len(images) else 0
