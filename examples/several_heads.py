"""Several heads on one backbone: one forward tells which digit is in a picture and which pixels are its ink.

    python examples/several_heads.py --out runs/several

The blocks of the backbone run once for both heads, and none past the deepest that a head reads.
"""

import argparse
from pathlib import Path

import torch
from drawn import Batch, Pictures
from figures import colour_bar, image, panels, save
from torch import Tensor
from training import Settings, fit, head_groups

from heads import attach, create_head, freeze, save_head
from vitbackbone import load_backbone

COLOURS = "magma"


def main(out: Path, steps: int) -> None:
    torch.manual_seed(0)
    backbone = freeze(load_backbone("nano"))
    pictures = Pictures(backbone.preprocess)
    heads = {
        "digit": create_head("concat", backbone.spec, num_classes=10, layers="last4"),
        "ink": create_head("multilayer", backbone.spec, num_classes=2),
    }
    model = attach(backbone, heads)
    ran: list[int] = []
    for i, block in enumerate(backbone.blocks):
        block.register_forward_hook(lambda *_, i=i: ran.append(i))
    model(pictures.draw(0).images)
    print(f"one forward for {' and '.join(heads)}: blocks {ran} of {backbone.spec.depth}")

    def loss(batch: Batch) -> Tensor:
        losses = model.train()(batch.images, targets={"digit": batch.digits, "ink": batch.ink})
        return losses["digit"] + losses["ink"]

    settings = Settings(steps=steps, lr=1e-2)
    fit(model.heads, head_groups(model.heads, settings), pictures.draw, loss, settings, out)

    batch = pictures.draw(0, 200, test=True)
    with torch.inference_mode():
        output = model.eval()(batch.images)
    found, ink = output["ink"].argmax(1) == 1, batch.ink == 1
    print(f"digits: {(output['digit'].argmax(1) == batch.digits).float().mean():.3f} right (guessing: 0.1)")
    print(f"ink: IoU {(found & ink).sum() / (found | ink).sum():.3f} (everything: {ink.float().mean():.3f})")
    for name, head in heads.items():
        save_head(head, out / name, backbone)
    sheet(batch, output["digit"].argmax(1), output["ink"].softmax(1)[:, 1], out / "several.png")


def sheet(batch: Batch, digits: Tensor, ink: Tensor, path: Path) -> None:
    """Write eight pictures with their digits, true ink (B, 48, 48), and the probability of ink that was found."""
    figure, axes = panels(3, 8, side=1.1)
    norm = colour_bar(figure, axes, COLOURS, 0, 1, "probability of ink")
    low, high = batch.images.amin(), batch.images.amax()
    photos = ((batch.images - low) / (high - low)).permute(0, 2, 3, 1)
    for i, (photo, true, seen) in enumerate(axes.T):
        photo.set_title(f"{digits[i]} (true: {batch.digits[i]})", fontsize=8)
        image(photo, photos[i].numpy())
        image(true, batch.ink[i].numpy(), cmap=COLOURS, norm=norm)
        image(seen, ink[i].numpy(), cmap=COLOURS, norm=norm)
    for axis, title in zip(axes[:, 0], ("picture", "true ink", "ink found"), strict=True):
        axis.text(-0.08, 0.5, title, rotation=90, ha="right", va="center", transform=axis.transAxes, fontsize=8)
    save(figure, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/several"),
        help="folder for the heads and the picture (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=400, help="training steps (default: 400)")
    args = parser.parse_args()
    main(args.out, args.steps)
