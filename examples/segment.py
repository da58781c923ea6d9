"""Semantic segmentation: train a head on the features of a backbone, measure it, and paint its classes over photos.

    python examples/segment.py train DATA --backbone nano --head multilayer --out runs/camvid
    python examples/segment.py eval DATA/val --head runs/camvid
    python examples/segment.py predict photo.jpg --head runs/camvid --out prediction.png

DATA has `train/` and `val/`, each with `images/NAME.jpg` and `labels/NAME.png` of the same size, whose pixels are class
indices. `DATA/classes.txt` names the classes, one on each line. Without it they are the eleven of CamVid. To resume an
interrupted training, run the same command again.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from figures import palette
from PIL import Image, ImageDraw, ImageFont, ImageOps
from safetensors.torch import load_file, save_file
from segmentation_data import Classes, Pair, augmentation, check_pairs, draw_batch, find_pairs, read_pair, windows
from torch import Tensor
from torchmetrics.classification import MulticlassJaccardIndex
from tqdm import tqdm
from training import Settings, backbone_groups, exit_code, fit, head_groups, set_drop_path

from heads import Attached, attach, create_head, freeze, load_head, save_head
from vitbackbone import (
    BackboneModule,
    Record,
    ViT,
    evaluating,
    load_backbone,
    load_image,
    publish,
    publish_text,
    read_json,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAME = "segmentation"  # the name under which the head is attached
PAINT = 0.6  # share of the class's colour in a pixel; the rest is the photo
RECORD, WEIGHTS = "segment.json", "backbone.safetensors"  # beside the head's own files


# ---- train --------------------------------------------------------------------------------------------------------


def train(args: argparse.Namespace) -> None:
    classes = Classes.of(args.data, args.ignore)
    pairs, held_out = (find_pairs(args.data / split) for split in ("train", "val"))
    check_pairs(pairs, classes)
    torch.manual_seed(args.seed)  # random weights are the same when a run is resumed
    backbone = load_backbone(args.backbone, args.weights)
    segmenter = fit_segmenter(backbone, pairs, classes, args)
    save(segmenter, args.out, args.backbone, own_weights=args.finetune or args.weights is not None)
    print(f"saved to {args.out}; on {args.data / 'val'}:\n{table(evaluate(segmenter, held_out), classes)}")


def fit_segmenter(
    backbone: BackboneModule, pairs: list[Pair], classes: Classes, args: argparse.Namespace
) -> "Segmenter":
    """Train a head, and with `args.finetune` the backbone too."""
    head = create_head(args.head, backbone.spec, num_classes=len(classes.names), **args.options)
    head.ignore_index = classes.ignore
    model = attach(backbone, {NAME: head}, (args.crop, args.crop)).to(DEVICE)
    task = ("backbone", "weights", "head", "options", "batch_size", "crop", "finetune", "layer_decay", "drop_path")
    settings = Settings(
        args.steps,
        args.lr or (1e-3 if args.finetune else 1e-2),
        seed=args.seed,
        precision=args.precision,
        save_every=args.save_every,
        task={key: str(getattr(args, key)) for key in task} | asdict(classes),
    )
    groups = head_groups(head, settings)
    if args.finetune:
        if not isinstance(backbone, ViT):
            raise ValueError(f"--finetune trains the blocks of a ViT, and {args.backbone} has none; leave it out")
        set_drop_path(backbone, args.drop_path)
        groups += backbone_groups(backbone, settings, args.layer_decay)
    else:
        freeze(backbone)
    augment = augmentation(colours=args.finetune)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        head.anneal(step / args.steps)
        return draw_batch(pairs, args.batch_size, args.crop, augment, classes, backbone.preprocess)

    def loss(batch: tuple[Tensor, Tensor]) -> Tensor:
        return model(batch[0].to(DEVICE), targets={NAME: batch[1].to(DEVICE)})[NAME]

    model.train()
    fit(model if args.finetune else head, groups, batch, loss, settings, args.out)
    return Segmenter(model, classes, args.crop)


# ---- use ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Segmenter:
    model: Attached
    classes: Classes
    window: int  # pixels a side: as large as the crops that the head was trained on

    def __call__(self, photo: Image.Image) -> Tensor:
        """Return the class of each pixel (H, W) at full resolution, by the sum of the scores of overlapping windows.

        Windows have the size of the training crops, so a token attends to as many others as in training.
        """
        image = self.model.backbone.preprocess(photo, (photo.height, photo.width), keep_aspect=True).to(DEVICE)
        side = self.window
        corners = windows(photo.height, photo.width, side)
        with evaluating(self.model):
            parts = torch.stack([image[:, top : top + side, left : left + side] for top, left in corners])
            scores = self.model(parts)[NAME]
            total = scores.new_zeros(scores.shape[1], photo.height, photo.width)
            for (top, left), part in zip(corners, scores, strict=True):
                total[:, top : top + side, left : left + side] += part
            return total.argmax(dim=0)


class Saved(Record):
    """The fields of `segment.json`."""

    backbone: str  # as for `load_backbone`
    own_weights: bool  # whether the backbone's weights are in the folder
    window: int
    names: tuple[str, ...]
    ignore: int


def save(segmenter: Segmenter, folder: Path, name: str, own_weights: bool) -> None:
    """Write the head, and also the backbone if its weights differ from `load_backbone(name)`."""
    backbone = segmenter.model.backbone
    save_head(segmenter.model.heads[NAME], folder, backbone)
    if own_weights:
        with publish(folder / WEIGHTS) as temporary:
            save_file({key: value.contiguous() for key, value in backbone.state_dict().items()}, temporary)
    classes = asdict(segmenter.classes)
    saved = Saved(backbone=name, own_weights=own_weights, window=segmenter.window, **classes)
    publish_text(folder / RECORD, saved.model_dump_json(indent=2) + "\n")


def load(folder: Path) -> Segmenter:
    """Load what `save` wrote. Raises `ValueError` if the folder holds something else."""
    try:
        saved = read_json(folder / RECORD, Saved)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no head that `segment.py train` wrote: {error}") from error
    backbone = load_backbone(saved.backbone, "random" if saved.own_weights else None)
    if saved.own_weights:
        backbone.load_state_dict(load_file(folder / WEIGHTS))
    model = attach(backbone, {NAME: load_head(folder, backbone)}, (saved.window, saved.window))
    return Segmenter(model.to(DEVICE), Classes(saved.names, saved.ignore), saved.window)


def evaluate(segmenter: Segmenter, pairs: list[Pair]) -> Tensor:
    """Return the IoU of each class over all pixels of a split.

    It is NaN for an ignored class, and for a class that is neither in the labels nor predicted.
    """
    classes = segmenter.classes
    metric = MulticlassJaccardIndex(
        len(classes.names), average="none", ignore_index=classes.ignore, zero_division=float("nan")
    )
    for pair in tqdm(pairs, desc="evaluating", unit="photo"):
        photo, label = read_pair(pair, classes)
        metric.update(segmenter(photo).cpu(), label)
    iou = metric.compute()
    if classes.ignore < len(iou):
        iou[classes.ignore] = torch.nan  # it may be predicted by mistake
    return iou


def table(iou: Tensor, classes: Classes) -> str:
    rows = [f"{name:24}{100 * value:5.1f}" for name, value in zip(classes.names, iou.tolist(), strict=True)]
    return "\n".join([f"{'class':24}{'IoU %':>5}", *rows, f"{'mIoU':24}{100 * iou.nanmean():5.1f}"])


def picture(photo: Image.Image, labels: Tensor, classes: Classes) -> Image.Image:
    """Paint the grey photo in the colours of its classes, with a legend below in the colours as they appear."""
    where = labels.cpu().numpy()
    paint = Image.fromarray(palette(len(classes.names))[where])
    painted = Image.blend(ImageOps.autocontrast(photo.convert("L"), cutoff=1).convert("RGB"), paint, PAINT)
    found = np.unique(where).tolist()
    text = max(11, photo.width // 36)
    font = ImageFont.load_default(text)
    wide = round(2.5 * text + max(font.getlength(classes.names[index]) for index in found))
    columns = max(1, photo.width // wide)
    out = Image.new("RGB", (photo.width, photo.height + 2 * text * -(-len(found) // columns)), "white")
    out.paste(painted)
    draw, pixels = ImageDraw.Draw(out), np.asarray(painted)
    for i, index in enumerate(found):
        x, y = i % columns * wide + text // 2, photo.height + i // columns * 2 * text + text // 2
        seen = tuple(pixels[where == index].mean(axis=0).round().astype(int).tolist())
        draw.rectangle((x, y, x + text, y + text), fill=seen)
        draw.text((x + 1.5 * text, y + text / 2), classes.names[index], fill="black", font=font, anchor="lm")
    return out


def evaluate_split(args: argparse.Namespace) -> None:
    segmenter = load(args.head)
    print(table(evaluate(segmenter, find_pairs(args.split)), segmenter.classes))


def predict(args: argparse.Namespace) -> None:
    segmenter = load(args.head)
    photo = load_image(args.image)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture(photo, segmenter(photo), segmenter.classes).save(args.out)
    print(args.out)


# ---- arguments ----------------------------------------------------------------------------------------------------


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = whole.add_subparsers(required=True, metavar="COMMAND")

    p = commands.add_parser("train", help="train a head, and the backbone if asked, and measure it on val")
    p.set_defaults(run=train)
    p.add_argument("data", type=Path, metavar="DATA", help="folder with train/ and val/")
    p.add_argument(
        "--backbone", default="nano", metavar="NAME", help="a name of `vitbackbone models` (default: %(default)s)"
    )
    p.add_argument(
        "--weights", metavar="FILE", help="weights file of the backbone, or 'random' (default: the published weights)"
    )
    p.add_argument(
        "--head", default="multilayer", metavar="NAME", help="a head for segmentation (default: %(default)s)"
    )
    p.add_argument(
        "--options", type=json.loads, default={}, metavar="JSON", help='options of the head, such as {"dropout": 0.1}'
    )
    p.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the head and checkpoints")
    p.add_argument("--ignore", type=int, metavar="N", help="label to leave out (default: the one after the classes)")
    p.add_argument("--steps", type=int, default=300, help="training steps (default: %(default)s)")
    p.add_argument(
        "--batch-size", type=int, default=16, metavar="PHOTOS", help="photos in one step (default: %(default)s)"
    )
    p.add_argument(
        "--crop", type=int, default=128, metavar="PIXELS", help="side of the training crops (default: %(default)s)"
    )
    p.add_argument("--lr", type=float, help="peak learning rate (default: 0.01, or 0.001 with --finetune)")
    p.add_argument("--finetune", action="store_true", help="train the backbone too")
    p.add_argument(
        "--layer-decay",
        type=float,
        default=0.75,
        help="factor on the rate from each block to the one before (default: %(default)s)",
    )
    p.add_argument(
        "--drop-path",
        type=float,
        default=0.1,
        help="stochastic depth of the last block, with --finetune (default: %(default)s)",
    )
    p.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="precision of the training (default: %(default)s)"
    )
    p.add_argument(
        "--save-every", type=int, default=100, metavar="STEPS", help="steps between checkpoints (default: %(default)s)"
    )
    p.add_argument("--seed", type=int, default=0, help="seed of everything random (default: %(default)s)")

    p = commands.add_parser("eval", help="print mIoU and the IoU of each class")
    p.set_defaults(run=evaluate_split)
    p.add_argument("split", type=Path, metavar="SPLIT", help="folder with images/ and labels/")
    p.add_argument("--head", type=Path, required=True, metavar="DIR", help="folder that `train` wrote")

    p = commands.add_parser("predict", help="paint the classes over a photo")
    p.set_defaults(run=predict)
    p.add_argument("image", type=Path, metavar="IMAGE", help="a photo")
    p.add_argument("--head", type=Path, required=True, metavar="DIR", help="folder that `train` wrote")
    p.add_argument("--out", type=Path, required=True, metavar="PNG", help="the picture to write")
    return whole


if __name__ == "__main__":
    arguments = parser().parse_args()
    raise SystemExit(exit_code(lambda: arguments.run(arguments)))
