"""Checkpoints: names, directories and files to backbones, and back to files."""

from vitbackbone.checkpoints.export import export_weights, save_pretrained
from vitbackbone.checkpoints.load import (
    Checkpoint,
    WeightsUnavailable,
    find_entry,
    list_backbones,
    load_backbone,
    load_checkpoint,
)
from vitbackbone.checkpoints.rules import ConversionError
from vitbackbone.checkpoints.zoo import ADAPTED, ZOO, Entry

__all__ = [
    "ADAPTED",
    "ZOO",
    "Checkpoint",
    "ConversionError",
    "Entry",
    "WeightsUnavailable",
    "export_weights",
    "find_entry",
    "list_backbones",
    "load_backbone",
    "load_checkpoint",
    "save_pretrained",
]
