"""EoMT (Kerssies et al. 2025, "Your ViT is secretly an image segmentation model"): queries beside the tokens of the
backbone's last blocks.

    [queries, CLS and registers, patches] -> last blocks -> a mask and a class for each query

Axes: `B` batch, `D` width, `Q` queries, `N` all tokens, `K` classes, `h w` patch grid.
"""

import math
from typing import cast

import torch
from einops import einsum
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from heads.base import Needs
from heads.mask_loss import Masks, set_loss
from heads.options import Count
from heads.parallel import refuse_past_ddp
from heads.segmentation import Segmenter, check_labels, ignored
from heads.unread import Wanted
from vitbackbone import BackboneModule, BackboneSpec, Features, Layout, ViT

POWER = 0.9  # exponent of the annealing


class EoMT(Segmenter):
    """Segmentation by queries that go through the backbone's last `num_blocks` blocks.

    It is the only head that runs blocks of a backbone, so it must be attached to one. If the backbone is frozen,
    gradients still flow through it to the queries.

    The output (B, K, H, W) sums class probability times mask probability over the queries. `loss` is the `set_loss`
    after each of the blocks. In training, masked attention lets a query attend only to the patches of its mask. It is
    always on at first and never at the end: call `anneal` during training. In eval mode a query attends to all patches.
    """

    def __init__(self, spec: BackboneSpec, num_classes: Count, num_queries: Count = 100, num_blocks: Count = 4) -> None:
        super().__init__(spec, Needs((-num_blocks - 1,), norm=False, pooled=False), num_classes)
        width = spec.dim
        self.num_blocks = num_blocks
        self.queries = nn.Parameter(torch.randn(num_queries, width))
        self.classifier = nn.Linear(width, num_classes + 1)
        self.mask_mlp = nn.Sequential(
            nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)
        )
        doublings = max(1, math.floor(math.log2(spec.stride)) - 2)
        self.upscale = nn.Sequential(*(Upscale(width) for _ in range(doublings)))
        self.masked = (1.0,) * num_blocks  # probability of masked attention in each block
        self._bound: tuple[ViT, ...] = ()  # in a tuple, so that the backbone is not part of the head

    def bind(self, backbone: BackboneModule) -> None:
        """Take the backbone to run. Raises `ValueError` if its blocks cannot take queries."""
        if not isinstance(backbone, ViT):
            raise ValueError(
                f"EoMT runs the blocks of a plain ViT, and {backbone.spec.name} is a {type(backbone).__name__}; use a "
                "ViT such as DINOv2"
            )
        config = backbone.config
        if config.window or config.relative_position != "none":
            raise ValueError(
                "EoMT puts queries beside the patches, and queries have no place in the windows and relative positions "
                f"of {backbone.spec.name}; use a backbone without them, such as DINOv2"
            )
        self._bound = (backbone,)

    @property
    def used(self) -> frozenset[Wanted]:
        return super().used | {(self.spec.depth - 1, self.spec.has_norm)}

    def anneal(self, progress: float) -> None:
        """Set the probability of masked attention, at `progress` of the training from 0 to 1.

        It falls from 1 to 0 in one block after another, each within a sixth of the training. The first block starts at
        1/6, and the last ends at 5/6.
        """
        starts = [1 / 6 + i / (2 * max(1, self.num_blocks - 1)) for i in range(self.num_blocks)]
        left = [min(1.0, max(0.0, 1 - (progress - start) * 6)) for start in starts]
        self.masked = tuple(share**POWER for share in left)

    def predictions(self, features: Features) -> list[Masks]:
        """Return the queries' masks and classes: after the last block, and in training also before each block.

        Raises `ValueError` before the head is attached, and on images of different sizes.
        """
        if not self._bound:
            raise ValueError(
                "EoMT runs blocks of the backbone, and has none yet; call attach(backbone, {name: head}), or "
                "head.bind(backbone)"
            )
        if not features.geometry.one_size:
            raise ValueError("EoMT: the images are of different sizes; want one size, so crop or resize them")
        backbone, grid, batch = self._bound[0], features.grid, features.patches.shape[0]
        prefix = [features.registers] if features.cls is None else [features.cls[:, None], features.registers]
        x = torch.cat([self.queries.to(features.patches).expand(batch, -1, -1), *prefix, features.tokens], dim=1)
        found = []
        for block, masked in zip(backbone.blocks[-self.num_blocks :], self.masked, strict=True):
            mask = None
            if self.training:
                found.append(self._predict(x, grid))
                mask = self._mask(found[-1].masks, x.shape[1], grid, masked)
            x = block(x, Layout((grid,)), mask)
        return [*found, self._predict(x, grid)]

    def maps(self, *features: Features) -> Float[Tensor, "B K h w"]:
        last = self.predictions(features[0])[-1]
        size = features[0].geometry.padded_size
        masks = F.interpolate(last.masks, size=size, mode="bilinear", align_corners=False).sigmoid()
        return einsum(last.classes.softmax(dim=2)[:, :, :-1], masks, "B Q K, B Q h w -> B K h w")

    def loss(self, targets: Tensor, *features: Features, ignore_index: int | None = None) -> Tensor:
        """Return the sum of the `set_loss` of all `predictions`, given labels (B, H, W).

        Raises `ValueError` as `predictions` and `set_loss` do, and `RuntimeError` under DDP outside its forward.
        """
        refuse_past_ddp(self)
        given = self.ignore_index if ignore_index is None else ignore_index
        ignore_index = ignored(self.num_classes, given)
        predictions = self.predictions(features[0])
        geometry = features[0].geometry
        (height, width), (padded_height, padded_width) = geometry.size, geometry.padded_size
        check_labels(targets, (len(geometry.sizes), height, width), self.num_classes, ignore_index)
        labels = F.pad(
            targets.to(self.queries.device, torch.long),
            (0, padded_width - width, 0, padded_height - height),
            value=ignore_index,
        )
        return torch.stack([set_loss(each, labels, ignore_index) for each in predictions]).sum()

    def _predict(self, x: Float[Tensor, "B N D"], grid: tuple[int, int]) -> Masks:
        norm = self._bound[0].norm
        x = x if norm is None else norm(x)
        queries = x[:, : len(self.queries)]
        patches = self.upscale(x[:, -grid[0] * grid[1] :].mT.unflatten(2, grid))
        masks = einsum(self.mask_mlp(queries), patches, "B Q D, B D h w -> B Q h w")
        return Masks(masks, self.classifier(queries))

    def _mask(
        self, masks: Float[Tensor, "B Q _ _"], tokens: int, grid: tuple[int, int], masked: float
    ) -> Bool[Tensor, "B 1 N N"] | None:
        """Return the attention mask, True where a token attends to another.

        All tokens attend to all, except that each query, with probability `masked`, attends to no patch outside its
        mask. None stands for no mask.
        """
        if masked == 0:
            return None
        batch, count = masks.shape[:2]
        inside = F.interpolate(masks, size=grid, mode="bilinear", align_corners=False).flatten(2) > 0
        free = torch.rand(batch, count, 1, device=masks.device) >= masked
        mask = torch.ones(batch, 1, tokens, tokens, dtype=torch.bool, device=masks.device)
        mask[:, 0, :count, -inside.shape[2] :] = inside | free
        return mask


class Upscale(nn.Module):
    """A block that doubles a map: transposed convolution, GELU, depthwise 3x3 convolution, norm of the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enlarge = nn.ConvTranspose2d(width, width, kernel_size=2, stride=2)
        self.smooth = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width, bias=False)
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Float[Tensor, "B D h w"]) -> Float[Tensor, "B D H W"]:
        x = self.smooth(F.gelu(self.enlarge(x)))
        return cast(Tensor, self.norm(x.movedim(1, 3))).movedim(3, 1)
