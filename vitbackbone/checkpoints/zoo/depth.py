"""The encoders of Depth Anything 3 (Lin et al. 2025), of one view of a scene.

The features with the final norm are those that upstream exports (`export_feat_layers`). Its depth head reads another
pair: the output of the last block that attends within the view, beside the one with the norm.
"""

from dataclasses import replace

from vitbackbone.checkpoints.huggingface import PLAIN
from vitbackbone.checkpoints.zoo.entry import Entry, evaluation
from vitbackbone.checkpoints.zoo.timm import dinov2_config
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD
from vitbackbone.model import Rotary, Views

#    name        size  first block for views, licence (ByteDance-Seed/Depth-Anything-3, configs and README.md)
_ROWS = {
    "da3_small": ("S", 4, "apache-2.0"),
    "da3_base": ("B", 4, "apache-2.0"),
    "da3_large": ("L", 8, "cc-by-nc-4.0"),
    "da3_giant": ("g", 13, "cc-by-nc-4.0"),
}


def _entry(name: str, size: str, start: int, licence: str) -> Entry:
    config = replace(dinov2_config(size, 0), rotary=Rotary(100.0, "index", "halves", offset=1.0), views=Views(start))
    preprocess = evaluation(518, 1.0, IMAGENET_MEAN, IMAGENET_STD)
    source = f"depth-anything/{name.upper().replace('_', '-')}"
    return Entry(config, "da3", preprocess, licence, source, PLAIN)


DEPTH: dict[str, Entry] = {name: _entry(name, *row) for name, row in _ROWS.items()}
