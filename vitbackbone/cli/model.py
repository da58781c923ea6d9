"""The backbone that a command line names."""

import argparse
import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitbackbone.contract import BackboneModule

LOG = logging.getLogger("vitbackbone")
STRONGER = "vit_small_patch14_dinov2.lvd142m"


def load(args: argparse.Namespace) -> "BackboneModule":
    """Return the backbone of --model and --weights. Raises `ValueError` on an unknown name."""
    from vitbackbone.checkpoints import load_backbone

    if args.model == "nano":
        LOG.info("model: nano, the small built-in one; for real work give --model %s", STRONGER)
    return load_backbone(args.model, args.weights, **loading(args))


def loading(args: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of `load_backbone` beside the name and the weights."""
    return {"image_size": args.image_size, "tower": args.tower, "part": args.part}
