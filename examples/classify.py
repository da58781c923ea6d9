"""Classify photos, with the classifier of a checkpoint or with one of your own.

    python examples/classify.py photos --model hf:google/vit-base-patch16-224
    python examples/finetune.py labelled --out runs/mine        # sub-folders are the classes; makes a classifier
    python examples/classify.py photos --finetuned runs/mine

It prints the most likely class of each photo and its probability, and names photos that cannot be read. On the command
line, `vitbackbone classify` does the same with a checkpoint, and `vitbackbone predict` with a probe.
"""

import argparse
import json
import sys
from pathlib import Path

from torch import nn

from heads import attach, checkpoint_head, imagenet_labels, load_head
from vitbackbone import evaluating, list_inputs, load_backbone, load_checkpoint

Classifier = tuple[nn.Module, list[str], int | None]  # the model, the names of its classes, the resolution


def published(name: str) -> Classifier:
    """Load a checkpoint with its own classifier."""
    checkpoint = load_checkpoint(name)
    head = checkpoint_head(checkpoint)
    names = checkpoint.labels or imagenet_labels(head.num_classes) or map(str, range(head.num_classes))
    return attach(checkpoint.backbone, {"classes": head}), list(names), None


def finetuned(run: Path) -> Classifier:
    """Load the classifier that `finetune.py` wrote."""
    result, weights = json.loads((run / "result.json").read_text()), run / "backbone.safetensors"
    backbone = load_backbone(result["backbone"], weights if weights.exists() else result["weights"])
    model = attach(backbone, {"classes": load_head(run / "head", backbone)})
    return model, result["classes"], result["resolution"]


def main(arguments: list[str] | None = None) -> list[tuple[str, str, float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", help="a folder, or a quoted glob")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", help="a checkpoint with a classifier, as for load_backbone")
    which.add_argument("--finetuned", type=Path, metavar="RUN", help="folder that finetune.py wrote")
    args = parser.parse_args(arguments)
    model, names, resolution = published(args.model) if args.model else finetuned(args.finetuned)
    inputs, rows = list_inputs(args.photos), []
    with evaluating(model):
        for path, file in zip(inputs.paths, inputs.files(0, len(inputs)), strict=True):
            try:
                image = model.backbone.preprocess(file, resolution)
            except (OSError, ValueError) as error:
                print(f"{path}\tfailed: {error}", file=sys.stderr)
                continue
            probability, best = model(image[None])["classes"].softmax(dim=1)[0].max(dim=0)
            rows.append((path, names[best], probability.item()))
            print(f"{path}\t{names[best]}\t{probability:.3f}")
    return rows


if __name__ == "__main__":
    main()
