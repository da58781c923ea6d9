"""The command `classify`, and the output that it shares with `predict`."""

import argparse
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vitbackbone.cli.labels import read_labels
from vitbackbone.cli.model import loading
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

    if args.weights == "random":
        raise ValueError(
            "--weights random is an untrained model without a classifier; give a file, or leave --weights out"
        )
    check_device(args.device)
    if args.labels is not None:
        return classify_by_labels(args)
    if args.template or args.tokenizer:
        raise ValueError("--template and --tokenizer go with --labels, the classes to choose from")
    checkpoint = load_checkpoint(args.model, args.weights, **loading(args))
    backbone, head = checkpoint.backbone.to(args.device), checkpoint_head(checkpoint).to(args.device)
    model = attach(backbone, {"classes": head})

    def classify(pixels: "Tensor") -> "NDArray[Any]":
        with evaluating(backbone):
            return model(pixels[None].to(args.device))["classes"].softmax(dim=1)[0].cpu().numpy()

    names = _class_names(args.model, checkpoint, head.num_classes)
    photos = read_photos(args.images, backbone.preprocess, max_pixels=args.max_pixels)
    return print_classes(photos, classify, names, args.top, args.json)


def classify_by_labels(args: argparse.Namespace) -> int:
    """Classify images by the labels of the command line, with the image tower and the text tower of one model."""
    from heads.zero_shot import ZeroShot
    from vitbackbone.checkpoints import load_backbone, load_text
    from vitbackbone.contract import evaluating
    from vitbackbone.store import read_photos

    labels = read_labels(args.labels)
    text = load_text(args.model, args.weights, tokenizer=args.tokenizer).to(args.device)
    model = ZeroShot(text, labels, *([args.template] if args.template else [])).fit()
    backbone = load_backbone(args.model, args.weights, **loading(args)).to(args.device)

    def classify(pixels: "Tensor") -> "NDArray[Any]":
        with evaluating(backbone):
            return model.predict_proba(backbone(pixels[None].to(args.device)).pooled)[0]

    photos = read_photos(args.images, backbone.preprocess, max_pixels=args.max_pixels)
    return print_classes(photos, classify, labels, args.top, args.json)


def _class_names(model: str, checkpoint: "Checkpoint", num_classes: int) -> Sequence[str]:
    """Return a name for each output of a classifier.

    They are the checkpoint's own. A model of the zoo whose files hold no names gets the names of ImageNet. The
    outputs of any other model are called by their indices.
    """
    from heads.classification import imagenet_labels
    from vitbackbone.checkpoints import find_entry

    if checkpoint.labels:
        return checkpoint.labels
    published = find_entry(model).num_classes == num_classes  # --weights may have other classes
    return (imagenet_labels(num_classes) if published else ()) or [str(i) for i in range(num_classes)]


def print_classes(
    photos: "Iterable[ReadPhoto]",
    classify: "Callable[[Tensor], NDArray[Any]]",
    names: Sequence[str],
    top: int,
    as_json: bool,
) -> int:
    """Print the `top` most likely classes of each photo, one a line, or everything as one JSON list.

    Unreadable photos are named on standard error. `classify` maps pixels (3, H, W) to probabilities (K,).
    Returns the exit code, which is 1 if a photo could not be read.
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
