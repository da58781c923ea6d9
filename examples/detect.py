"""Train a detector on a ViT to find shapes that are drawn into photos.

    python examples/detect.py --out runs/detect                          # two photos that scikit-learn brings
    python examples/detect.py --out runs/detect --photos FOLDER          # or a parquet file with the column `image`

Every scene is a piece of a photo with circles, squares and triangles, whose boxes are known exactly. The right third of
every photo is held out, and AP50 is measured on its scenes. OUT/found.png shows some of them, with true boxes in white
and detected boxes in the colour of their score.
"""

import argparse
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import colour_bar, image, panels, save
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images
from torch import Tensor, nn
from torchmetrics.detection import MeanAveragePrecision
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.transforms.v2.functional import to_image
from training import Settings, backbone_groups, fit, head_groups

from heads import as_torchvision, create_head
from vitbackbone import load_backbone

SHAPES = ("circle", "square", "triangle")  # labels 1, 2 and 3: 0 is the background
SIZE = 64  # pixels a side of a scene
HELD_OUT_SCENES = 200
BATCH_SIZE = 8
VISIBLE = 50  # least difference of 255 between the colour of a shape and its background
SURE = 0.5  # boxes with a lower score are not drawn
COLOURS = "autumn"
Target = dict[str, Tensor]
Batch = tuple[list[Tensor], list[Target]]


def read_photos(source: Path | None) -> list[Image.Image]:
    """Read photos from a folder, a parquet file or scikit-learn. Exits with a message if there are none."""
    if source is None:
        return [Image.fromarray(pixels) for pixels in load_sample_images().images]
    if source.is_dir():
        found = sorted(path for path in source.iterdir() if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
        if not found:
            raise SystemExit(f"{source} holds no .jpg, .jpeg or .png")
        return [Image.open(path).convert("RGB") for path in found]
    from pyarrow import parquet

    column = parquet.read_table(source, columns=["image"])["image"]
    return [Image.open(io.BytesIO(photo)).convert("RGB") for photo in column.to_pylist()]


def split(photo: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Return the part to train on, and the right third, which is held out."""
    cut = photo.width * 2 // 3
    return photo.crop((0, 0, cut, photo.height)), photo.crop((cut, 0, *photo.size))


def scene(photo: Image.Image, rng: np.random.Generator) -> tuple[Tensor, Target]:
    """Draw one to three shapes, which do not touch, into a piece of a photo (3, SIZE, SIZE) in [0, 1]."""
    side = rng.integers(min(SIZE, *photo.size), min(photo.size) + 1)
    left, top = (rng.integers(0, length - side + 1) for length in photo.size)
    image = photo.resize((SIZE, SIZE), box=(left, top, left + side, top + side))
    draw = ImageDraw.Draw(image)
    boxes: list[tuple[int, ...]] = []
    labels: list[int] = []
    count = rng.integers(1, 4)
    while len(boxes) < count:
        width, height = rng.integers(12, 33, size=2).tolist()
        x, y = rng.integers(0, SIZE - width), rng.integers(0, SIZE - height)
        if any(x < x1 and x0 < x + width and y < y1 and y0 < y + height for x0, y0, x1, y1 in boxes):
            continue
        label, colour = int(rng.integers(1, len(SHAPES) + 1)), tuple(rng.integers(0, 256, size=3).tolist())
        if np.abs(np.mean(image.crop((x, y, x + width, y + height)), axis=(0, 1)) - colour).max() < VISIBLE:
            continue
        last_x, last_y = x + width - 1, y + height - 1  # the last pixels of the shape
        if SHAPES[label - 1] == "circle":
            draw.ellipse((x, y, last_x, last_y), fill=colour)
        elif SHAPES[label - 1] == "square":
            draw.rectangle((x, y, last_x, last_y), fill=colour)
        else:
            draw.polygon([(x, last_y), (last_x, last_y), (x + width // 2, y)], fill=colour)
        boxes.append((int(x), int(y), int(x) + width, int(y) + height))
        labels.append(label)
    target = {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.tensor(labels)}
    return to_image(image).float() / 255, target


def scenes(photos: Sequence[Image.Image], count: int, seed: list[int]) -> Batch:
    rng = np.random.default_rng(seed)
    images, targets = zip(*(scene(photos[rng.integers(len(photos))], rng) for _ in range(count)), strict=True)
    return list(images), list(targets)


def make_detector() -> FasterRCNN:
    backbone = load_backbone("nano")
    pyramid = create_head("simple_pyramid", backbone.spec, channels=128)  # half of the default
    body = as_torchvision(backbone, pyramid)
    sizes = tuple((4 * stride,) for stride in (4, 8, 16, 32, 64))  # half of the default too: the shapes are small
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    few = {"box_batch_size_per_image": 32, "rpn_post_nms_top_n_train": 100, "rpn_post_nms_top_n_test": 50}
    kwargs = {**body.detector_kwargs, "rpn_anchor_generator": anchors, **few}
    # As loaded, the backbone is in eval mode: it learns, but the batch norms of its stem keep their statistics.
    return FasterRCNN(body, num_classes=1 + len(SHAPES), min_size=SIZE, max_size=SIZE, **kwargs)


@torch.inference_mode()
def find(detector: FasterRCNN, images: list[Tensor]) -> list[Target]:
    """Boxes (N, 4), labels (N,) and scores (N,) of each image, best first."""
    detector.eval()
    return [found for i in range(0, len(images), 10) for found in detector(images[i : i + 10])]


def draw(images: list[Tensor], drawn: list[Target], found: list[Target], path: Path) -> None:
    """Write a picture of scenes with the boxes that were drawn, and those found with a score above `SURE`."""
    columns = min(4, len(images))
    figure, axes = panels(-(-len(images) // columns), columns, side=2.2)
    norm = colour_bar(figure, axes, COLOURS, SURE, 1, "score of a detected box")
    for axis, pixels, true, seen in zip(axes.flat, images, drawn, found, strict=False):
        image(axis, pixels.permute(1, 2, 0).numpy())
        for colour, width in (("black", 4.5), ("white", 2.5)):  # visible on any background
            outline(axis, true["boxes"], [colour] * len(true["boxes"]), width)
        sure = seen["scores"] > SURE
        scores, labels = seen["scores"][sure].tolist(), seen["labels"][sure].tolist()
        boxes = seen["boxes"][sure]
        outline(axis, boxes, [colormaps[COLOURS](norm(score)) for score in scores], 1.5)
        for (left, top, *_), label in zip(boxes.tolist(), labels, strict=True):
            axis.text(left, top - 1, SHAPES[label - 1], fontsize=7, color="white", backgroundcolor="#000000a0")
    figure.suptitle("Shapes in held-out photos: true boxes in white, detected boxes in colour", fontsize=11)
    save(figure, path)


def outline(axis: Axes, boxes: Tensor, colours: Sequence[Any], width: float) -> None:
    for (left, top, right, bottom), colour in zip(boxes.tolist(), colours, strict=True):
        corner = (left - 0.5, top - 0.5)  # corner of a pixel; its centre has whole coordinates
        axis.add_patch(Rectangle(corner, right - left, bottom - top, fill=False, edgecolor=colour, linewidth=width))


def main(args: argparse.Namespace) -> float:
    parts, kept = zip(*map(split, read_photos(args.photos)), strict=True)
    torch.manual_seed(args.seed)
    detector = make_detector()
    settings = Settings(args.steps, lr=5e-4, seed=args.seed)
    body = detector.backbone
    groups = head_groups(nn.ModuleList([body.attached.heads, detector.rpn, detector.roi_heads]), settings)
    groups += backbone_groups(body.attached.backbone, settings, layer_decay=0.8)

    def loss(batch: Batch) -> Tensor:
        losses: dict[str, Tensor] = detector(*batch)
        return torch.stack(list(losses.values())).sum()

    def batch(step: int) -> Batch:
        return scenes(parts, BATCH_SIZE, [args.seed, step])

    fit(detector, groups, batch, loss, settings, args.out)

    images, drawn = scenes(kept, HELD_OUT_SCENES, [args.seed, args.steps])
    found = find(detector, images)
    draw(images[:8], drawn[:8], found[:8], args.out / "found.png")
    metric = MeanAveragePrecision(iou_thresholds=[0.5], class_metrics=True)
    metric.update(found, drawn)
    result: dict[str, Any] = metric.compute()
    print(f"AP50 {result['map']:.3f} on {HELD_OUT_SCENES} held-out scenes")
    for label, value in zip(result["classes"].tolist(), result["map_per_class"].tolist(), strict=True):
        print(f"  {SHAPES[label - 1]:<8} {value:.3f}")
    return float(result["map"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of photos, or a parquet file with the column `image`")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint and found.png")
    parser.add_argument("--steps", type=int, default=800, help="training steps (default: 800)")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    main(parser.parse_args())
