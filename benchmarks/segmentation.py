"""Measure segmentation with features of `nano`, of an untrained `nano`, of raw pixels, and of `nano` fine-tuned.

    PYTHONPATH=examples python benchmarks/segmentation.py DATA --out runs/segmentation

DATA and the options are as for `examples/segment.py train`. The rows differ only in the features. Prints a table for
`docs/heads.md`. The same command resumes after an interruption.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import segment
import torch
from jaxtyping import Float
from segmentation_data import Classes, check_pairs, find_pairs
from torch import Tensor
from torch.nn import functional as F
from training import exit_code

from vitbackbone import Asked, BackboneModule, BackboneSpec, Features, Geometry, Preprocess, load_backbone


class Pixels(BackboneModule):
    """A backbone without features: its one layer holds the colours of the pixels of each patch."""

    def __init__(self, preprocess: Preprocess, stride: int) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.spec = BackboneSpec(
            name="pixels",
            dim=3 * stride**2,
            depth=1,
            num_heads=0,
            stride=stride,
            num_registers=0,
            has_cls=False,
            has_norm=False,
            image_size=preprocess.image_size,
        )

    def forward(self, images: Float[Tensor, "B C H W"], asked: Asked | None = None) -> Any:
        asked = asked or self.last
        if asked.part == "attention":
            raise ValueError("pixels attend to nothing")
        geometry = Geometry.of(images, self.spec.stride)
        bottom, right = geometry.padding[0]
        patches = F.pixel_unshuffle(F.pad(images, (0, right, 0, bottom)), self.spec.stride)
        registers = images.new_zeros(len(images), 0, self.spec.dim)
        return asked.answer({each: Features(None, registers, patches, geometry) for each in asked.wanted})


def pixels() -> BackboneModule:
    nano = load_backbone("nano", "random")
    assert isinstance(nano.preprocess, Preprocess)
    return Pixels(nano.preprocess, nano.spec.stride)


# The features, their source, and the arguments of `train` that differ.
ROWS: dict[str, tuple[Callable[[], BackboneModule], dict[str, object]]] = {
    "nano, frozen": (lambda: load_backbone("nano"), {}),
    "nano, untrained": (lambda: load_backbone("nano", "random"), {"weights": "random"}),
    "raw pixels": (pixels, {"backbone": "pixels", "head": "linear", "options": {"norm": False}}),
    "nano, fine-tuned": (lambda: load_backbone("nano"), {"finetune": True}),
}


def measure(args: argparse.Namespace) -> None:
    classes = Classes.of(args.data, args.ignore)
    pairs, held_out = (find_pairs(args.data / split) for split in ("train", "val"))
    check_pairs(pairs, classes)
    print("| features | mIoU |", *(f"{name} |" for name in classes.names))
    print("| --- |" + " --- |" * (len(classes.names) + 1))
    for row, (make, changes) in ROWS.items():
        torch.manual_seed(args.seed)
        backbone = make()
        out = args.out / row.replace(", ", "-").replace(" ", "-")
        changed = argparse.Namespace(**{**vars(args), **changes, "out": out})
        iou = 100 * segment.evaluate(segment.fit_segmenter(backbone, pairs, classes, changed), held_out)
        print(f"| {row} | {iou.nanmean():.1f} |", *(f"{value:.1f} |" for value in iou.tolist()), flush=True)


if __name__ == "__main__":
    arguments = segment.parser().parse_args(["train", *sys.argv[1:]])
    raise SystemExit(exit_code(lambda: measure(arguments)))
