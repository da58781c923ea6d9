"""`classify`: a checkpoint's own classifier; and how classes are printed."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitbackbone.cli.output import print_json
from vitbackbone.cli.text import escaped, printable

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from vitbackbone.checkpoints import Checkpoint
    from vitbackbone.store import ReadPhoto


def classify(args: argparse.Namespace) -> int:
    from heads.attached import attach
    from heads.classification import checkpoint_head
    from vitbackbone.checkpoints import load_checkpoint
    from vitbackbone.contract import check_device, evaluating
    from vitbackbone.store import read_photos

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
    photos = read_photos(args.images, backbone.preprocess, max_pixels=args.max_pixels)
    return print_classes(photos, classify, names, args.top, args.json)


def _class_names(model: str, checkpoint: "Checkpoint", num_classes: int) -> Sequence[str]:
    """What the outputs of a classifier mean: the checkpoint's own names; of a model of the zoo ImageNet's, which no
    file of timm's or of the authors holds; else their indices."""
    from heads.classification import imagenet_labels
    from vitbackbone.checkpoints import find_entry

    if checkpoint.labels:
        return checkpoint.labels
    published = find_entry(model).num_classes == num_classes  # weights given by hand may have classes of their own
    return (imagenet_labels(num_classes) if published else ()) or [str(i) for i in range(num_classes)]


def print_classes(
    photos: "Iterable[ReadPhoto]",
    classify: "Callable[[Tensor], NDArray[Any]]",
    names: Sequence[str],
    top: int,
    as_json: bool,
) -> int:
    """Print a line for each of the `top` likeliest classes of each photo, and name each that cannot be read on standard
    error; or all of it as one JSON list. `classify` makes probabilities (K,) of pixels.

    Returns the exit code: 1 if some photo could not be read.
    """
    failed = 0
    rows: list[dict[str, Any]] = []
    for photo in photos:
        if photo.pixels is None:
            failed += 1
            rows.append({"path": photo.path, "reason": photo.reason, "error": photo.error})
            print(f"{escaped(photo.path)}\tfailed: {printable(f'{photo.reason}: {photo.error}')}", file=sys.stderr)
            continue
        probabilities = classify(photo.pixels)
        best = [(names[i], float(probabilities[i])) for i in np.argsort(-probabilities, kind="stable")[:top]]
        if as_json:
            classes = [{"class": name, "probability": probability} for name, probability in best]
            rows.append({"path": photo.path, "classes": classes})
            continue
        for name, probability in best:
            print(f"{escaped(photo.path)}\t{escaped(name)}\t{probability:.3f}")
    if as_json:
        print_json(rows)
    return 1 if failed else 0
