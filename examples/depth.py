"""Train a depth head on `nano`, the built-in backbone, frozen, on scenes drawn with exactly known depth.

    python examples/depth.py --out runs/depth                    # DINOv2's linear bins
    python examples/depth.py --out runs/dpt --head dpt_depth     # DPT

Spheres and boxes stand on a plane, in front of a sky without depth. The head is measured on held-out scenes, and
compared with three guesses that ignore the image: the mean depth everywhere, the best constant depth, and the mean
depth at each pixel. OUT/depth.png shows scenes with true and predicted depth. `load_head` reads OUT/head.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from figures import colour_bar, image, panels, save
from scenes import FAR, scenes
from torch import Tensor
from training import Settings, fit, head_groups

from heads import attach, create_head, depth_metrics, freeze, save_head
from vitbackbone import load_backbone

COLOURS = "viridis_r"  # near is bright
HELD_OUT = 10**9  # number of the first held-out scene
HEADS = {
    "linear_depth": {"layers": "even4", "min_depth": 0.5, "max_depth": FAR},
    "dpt_depth": {"channels": 32, "min_depth": 0.5},
}


def picture(images: Tensor, true: Tensor, predicted: Tensor, path: Path) -> None:
    """Draw a row for each scene: image, true depth, predicted depth. Pixels of unknown depth are grey."""
    figure, axes = panels(len(images), 3, ["Image", "True depth", "Predicted depth"])
    norm = colour_bar(figure, axes[:, 1:], COLOURS, 0, FAR, "depth along the optical axis, in units of the scene")
    for (left, *maps), pixels, depth, guess in zip(axes, images, true[:, 0], predicted[:, 0], strict=True):
        image(left, pixels.permute(1, 2, 0).clip(0, 1).numpy())
        for axis, values in zip(maps, (depth, guess), strict=True):
            image(axis, np.full((*depth.shape, 3), 0.8))
            image(axis, np.ma.masked_where(depth.numpy() == 0, values.numpy()), cmap=COLOURS, norm=norm)
    save(figure, path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the head and the pictures")
    parser.add_argument(
        "--head", choices=HEADS, default="linear_depth", help="the head to train (default: linear_depth)"
    )
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: 400)")
    parser.add_argument("--batch-size", type=int, default=8, help="images in one step (default: 8)")
    parser.add_argument("--size", type=int, default=64, help="side of a scene in pixels (default: %(default)s)")
    parser.add_argument("--measured", type=int, default=64, help="scenes to measure on (default: %(default)s)")
    args = parser.parse_args()

    torch.manual_seed(0)
    backbone = freeze(load_backbone("nano"))
    head = create_head(args.head, backbone.spec, **HEADS[args.head])
    model = attach(backbone, {"depth": head})
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (backbone.preprocess.mean, backbone.preprocess.std))

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        images, depth = batch
        return model((images - mean) / std, targets={"depth": depth})["depth"]

    settings = Settings(steps=args.steps, lr=3e-3)
    model.train()
    fit(
        head,
        head_groups(head, settings),
        lambda step: scenes(step * args.batch_size, args.batch_size, args.size),
        loss,
        settings,
        args.out,
    )
    save_head(head, args.out / "head", backbone)

    model.eval()
    images, depth = scenes(HELD_OUT, args.measured, args.size)
    with torch.inference_mode():
        predicted = torch.cat([model((some - mean) / std)["depth"] for some in images.split(args.batch_size)])
    _, seen = scenes(0, 256, args.size)
    known = seen > 0
    everywhere = depth[depth > 0].mean() * torch.ones_like(depth)
    constants = [torch.full_like(depth, value) for value in np.linspace(1, FAR, 111)]
    at_each_pixel = (seen.sum(0) / known.sum(0).clamp(min=1)).clamp(min=0.5).expand_as(depth)
    rows = {
        args.head: depth_metrics(predicted, depth),
        "mean depth": depth_metrics(everywhere, depth),
        "best constant": min((depth_metrics(c, depth) for c in constants), key=lambda found: found.abs_rel),
        "mean at each pixel": depth_metrics(at_each_pixel, depth),
    }
    for name, found in rows.items():
        print(f"{name:<18}  {found}")
    picture(images[:6], depth[:6], predicted[:6], args.out / "depth.png")
    print(f"wrote {args.out / 'depth.png'}")


if __name__ == "__main__":
    main()
