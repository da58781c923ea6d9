"""Write your own head in ten lines, register it by name, and train, save and load it like any other.

    python examples/own_head.py --out runs/own

This head finds the place of the digit in the picture. A package of yours lists its heads in its `pyproject.toml`:

    [project.entry-points."vitbackbone.heads"]
    where = "your_package:Where"
"""

import argparse
from pathlib import Path

import torch
from drawn import SIZE, Batch, Pictures
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from training import Settings, fit, head_groups

from heads import Head, Needs, attach, create_head, freeze, load_head, register_head, save_head
from vitbackbone import BackboneSpec, Features, load_backbone


@register_head("where")
class Where(Head):
    """The position (x, y) of an object, from 0 to 1 of the image: the mean of the patches, weighted by a softmax."""

    def __init__(self, spec: BackboneSpec, layer: int = -1) -> None:
        super().__init__(spec, Needs((layer,)))
        self.score = nn.Sequential(nn.Linear(spec.dim, 64), nn.GELU(), nn.Linear(64, 1))

    def forward(self, features: Features) -> Tensor:
        weights = rearrange(self.score(features.tokens).softmax(dim=1), "B (h w) 1 -> B h w", h=features.grid[0])
        h, w = features.grid
        x = (weights.sum(dim=1) * (torch.arange(w) + 0.5) / w).sum(dim=1)
        y = (weights.sum(dim=2) * (torch.arange(h) + 0.5) / h).sum(dim=1)
        return torch.stack([x, y], dim=1)


def main(out: Path, steps: int) -> None:
    torch.manual_seed(0)
    backbone = freeze(load_backbone("nano"))
    pictures = Pictures(backbone.preprocess)
    head = create_head("where", backbone.spec, layer=2)
    model = attach(backbone, {"where": head})

    def loss(batch: Batch) -> Tensor:
        return F.l1_loss(model(batch.images)["where"], batch.middles)

    settings = Settings(steps=steps, lr=3e-3)
    fit(head, head_groups(head, settings), pictures.draw, loss, settings, out)
    save_head(head, out, backbone)

    batch = pictures.draw(0, 200, test=True)
    with torch.inference_mode():
        found = attach(backbone, {"where": load_head(out, backbone)})(batch.images)["where"]
    off, guess = ((SIZE * (where - batch.middles)).norm(dim=1).median() for where in (found, torch.tensor([0.5, 0.5])))
    print(f"half of the digits are found within {off:.1f} pixels of {SIZE} (always the centre: {guess:.1f})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/own"), help="folder for the head (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: 400)")
    args = parser.parse_args()
    main(args.out, args.steps)
