"""The options of loading a backbone, and what is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor

from vitbackbone.checkpoints.channels import with_channels, with_wavelengths
from vitbackbone.checkpoints.other_sizes import Size, at_size
from vitbackbone.checkpoints.zoo import Positions
from vitbackbone.contract import BackboneModule
from vitbackbone.model import Indivisible, ViTConfig
from vitbackbone.networks import TimmConfig

DTYPES = ("float32", "float16", "bfloat16", "float64")


@dataclass(frozen=True)
class Checkpoint:
    """A backbone, and the classifier that the checkpoint has beside it."""

    backbone: BackboneModule
    head: dict[str, Tensor]  # the classifier's parameters, under the prefixes of `rules.HEADS`; {} if none
    labels: tuple[str, ...]  # class names in the order of the head's outputs; () if there are none


@dataclass(frozen=True)
class Options:
    """The keyword arguments of `load_backbone`. Raises `ValueError` on an unknown value."""

    positions: Positions
    indivisible: Indivisible
    image_size: Size | None
    dtype: str | torch.dtype | None
    device: str | torch.device | None
    tower: str | None
    part: str | None
    in_chans: int | None = None
    wavelengths: Sequence[float] | None = None
    adaptor: str | None = None

    def __post_init__(self) -> None:
        if self.positions not in get_args(Positions):
            raise ValueError(f"positions={self.positions!r}; want one of {', '.join(get_args(Positions))}")
        if self.dtype is not None and str(self.dtype).removeprefix("torch.") not in DTYPES:
            raise ValueError(f"dtype={self.dtype}; want one of {', '.join(DTYPES)}")

    def apply(self, config: ViTConfig | TimmConfig) -> ViTConfig | TimmConfig:
        """Return the configuration with the options that belong to it."""
        sized = replace(at_size(config, self.image_size), indivisible=self.indivisible)
        if self.wavelengths is not None:
            return with_wavelengths(sized, tuple(self.wavelengths))
        return with_channels(sized, self.in_chans)

    def move(self, checkpoint: Checkpoint) -> Checkpoint:
        """Move the parameters to the device and dtype."""
        if self.dtype is None and self.device is None:
            return checkpoint
        dtype = None if self.dtype is None else getattr(torch, str(self.dtype).removeprefix("torch."))
        head = {key: tensor.to(device=self.device, dtype=dtype) for key, tensor in checkpoint.head.items()}
        return replace(checkpoint, backbone=checkpoint.backbone.to(device=self.device, dtype=dtype), head=head)
