"""Projectors of patches to tokens of a language model, between the vision encoder of a VLA and its transformer.

Axes: `B` batch, `D` width, `N` tokens, `L` width of the language model, `h w` patch grid.

In a batch of images of different sizes, `features.valid` is False for the tokens that show only padding.
"""

from itertools import pairwise
from typing import Literal

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from heads.base import Head, Needs
from heads.options import Count
from vitbackbone import BackboneSpec, Features

Form = Literal["linear", "mlp", "fused"]
Projection = Literal["none", "linear", "mlp"]


class TokenProjector(Head):
    """A projector that maps each patch by itself to a token of the language model: (B, h*w, L), row-major.

    `width` is L. `form` is one of `"linear"`, one layer; `"mlp"`, D -> L -> GELU -> L, as in LLaVA-1.5 and in OpenVLA
    with one encoder; and `"fused"`, D -> 4D -> GELU -> L -> GELU -> L, as in OpenVLA with two encoders
    (prismatic-vlms, prismatic/util/nn_utils.py). `layer` is 0-based, negative from the end.

    Raises `ValueError` on an unknown form.
    """

    def __init__(
        self, spec: BackboneSpec, width: Count, form: Form = "mlp", layer: int = -1, norm: bool = True
    ) -> None:
        super().__init__(spec, Needs((layer,), norm, pooled=False))
        dim = spec.dims[self.layers[0]]
        widths = {"linear": (dim, width), "mlp": (dim, width, width), "fused": (dim, 4 * dim, width, width)}[form]
        self.projection = _mlp(*widths)

    def forward(self, features: Features) -> Float[Tensor, "B N L"]:
        return self.projection(features.tokens)


class OpenVLAProjector(TokenProjector):
    """OpenVLA's projector on its two encoders (Kim et al. 2024), for `load_backbone("openvla")`.

    This backbone gives the second to last blocks of DINOv2 and SigLIP, both without the final norm.
    """

    def __init__(self, spec: BackboneSpec, width: Count = 4096) -> None:
        super().__init__(spec, width, form="fused", norm=False)


class SpaceToDepth(Head):
    """A head that merges each square of `factor` x `factor` patches into one token: (B, h*w / factor², factor² D).

    The channels of a token are row-major within its square. Grids may have any aspect, if `factor` divides their
    sides. On square grids it equals the "pixel shuffle" of InternVL (version 2), SmolVLM and nanoVLM.

    `projection` to `width` channels is one of `"none"`; `"linear"`, without bias, as in SmolVLM and nanoVLM (nanoVLM,
    models/modality_projector.py); and `"mlp"`, LayerNorm -> linear -> GELU -> linear, as in InternVL.

    Raises `ValueError` on an unknown projection, on a projection without `width`, and on `width` without a projection.
    """

    def __init__(
        self,
        spec: BackboneSpec,
        factor: Count = 2,
        projection: Projection = "none",
        width: Count | None = None,
        layer: int = -1,
        norm: bool = True,
    ) -> None:
        super().__init__(spec, Needs((layer,), norm, grid_multiple=factor, pooled=False))
        if (projection == "none") != (width is None):
            raise ValueError(f"SpaceToDepth: projection={projection!r} with width={width}; want both or neither")
        self.factor = factor
        dim = spec.dims[self.layers[0]] * factor**2
        self.projection: nn.Module
        if width is None:
            self.projection = nn.Identity()
        elif projection == "linear":
            self.projection = nn.Linear(dim, width, bias=False)
            nn.init.normal_(self.projection.weight, std=0.02)
        else:
            self.projection = nn.Sequential(nn.LayerNorm(dim), _mlp(dim, width, width))

    def forward(self, features: Features) -> Float[Tensor, "B N L"]:
        s = self.factor
        tokens = rearrange(features.patches, "B D (h s1) (w s2) -> B (h w) (s1 s2 D)", s1=s, s2=s)
        return self.projection(tokens)


def _mlp(*widths: int) -> nn.Sequential:
    """Make linear layers from each width to the next, with the exact GELU between them."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.GELU(), nn.Linear(before, after)]
    return nn.Sequential(*layers[1:])
