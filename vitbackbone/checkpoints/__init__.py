"""Checkpoints: loading backbones by name, from directories and from files, and exporting them."""

from vitbackbone.checkpoints.export import export_weights, save_pretrained
from vitbackbone.checkpoints.faults import ConversionError
from vitbackbone.checkpoints.hub import WeightsUnavailable
from vitbackbone.checkpoints.load import find_entry, list_backbones, load_backbone, load_checkpoint
from vitbackbone.checkpoints.options import Checkpoint
from vitbackbone.checkpoints.resolve import read_published
from vitbackbone.checkpoints.tensor_files import read_weights
from vitbackbone.checkpoints.text.load import load_text
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
    "load_text",
    "read_published",
    "read_weights",
    "save_pretrained",
]
