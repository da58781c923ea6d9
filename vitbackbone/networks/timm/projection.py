"""The layers that carry a timm network's pooled vector into the space of texts.

open_clip, timm_model.py, `TimmModel`: the network's own classifier, or layers after the pooling.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

from torch import nn

from vitbackbone.model import check_kinds

ProjectionKind = Literal["classifier", "linear", "mlp"]


@dataclass(frozen=True)
class Projection:
    """The projection of a timm network in an image-text model. Raises `ValueError` on unknown values.

    `kind`: `"classifier"` is timm's own classifier, which has `dim` outputs. The others stand after the pooling. They
    are one layer, or two with GELU between them, the first twice as wide as the second.
    """

    dim: int  # width of the vectors
    kind: ProjectionKind = "classifier"
    bias: bool = False  # whether the last layer has a bias; timm decides for a classifier
    pool: str = ""  # timm's pooling in front of the layers; "" is the network's own

    def __post_init__(self) -> None:
        check_kinds(self, {"kind": ProjectionKind})
        if self.dim < 1:
            raise ValueError(f"Projection: dim={self.dim}; want at least 1")

    @property
    def num_classes(self) -> int:
        """The outputs of the network's classifier; 0: none."""
        return self.dim if self.kind == "classifier" else 0

    def set_pool(self, model: Any) -> None:
        """Set the pooling of a network whose vector the layers read, as open_clip does after the constructor."""
        if self.kind != "classifier" and self.pool:
            model.reset_classifier(0, global_pool=self.pool)

    def layers(self, width: int) -> nn.Module:
        """Return the layers after a pooled vector of `width` numbers, untrained."""
        if self.kind == "classifier":
            return nn.Identity()
        if self.kind == "linear":
            return nn.Linear(width, self.dim, bias=self.bias)
        first, last = nn.Linear(width, 2 * self.dim), nn.Linear(2 * self.dim, self.dim, bias=self.bias)
        return nn.Sequential(OrderedDict(fc1=first, act=nn.GELU(), fc2=last))
