"""Train `nano`, the built-in backbone, from scratch on CIFAR-10 (45,000 of its training photos; 5,000 are held out).

    python examples/train_nano.py train.parquet --out runs/nano            # resumes by itself if interrupted
    python examples/train_nano.py train.parquet --out runs/nano --epochs 2 --limit 2000    # a quick trial

`train.parquet` has the columns `image` (JPEG or PNG bytes) and `label`. The result is `OUT/nano.safetensors` in half
precision. The recipe has Muon on the matrices of the blocks and AdamW on the rest, warm-up and cosine, random crops and
flips, Mixup and CutMix, DropPath; small images first, full size last; in the second half, CLS learns to hold a
thumbnail.
"""

import argparse
import io
import math
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2
from tqdm import tqdm

from vitbackbone import publish
from vitbackbone.checkpoints import ZOO
from vitbackbone.contract import Features
from vitbackbone.model import ViT, ViTConfig

THUMBNAIL = 8  # pixels a side
HELD_OUT = 10  # every tenth photo is held out for validation


def read_photos(path: Path, limit: int | None) -> tuple[Tensor, Tensor]:
    """Read uint8 photos (N, 3, 32, 32) and labels (N,)."""
    table = pq.read_table(path, columns=["image", "label"]).slice(0, limit)
    photos = [np.asarray(Image.open(io.BytesIO(b)).convert("RGB")) for b in table["image"].to_pylist()]
    return torch.from_numpy(np.stack(photos)).permute(0, 3, 1, 2).contiguous(), torch.tensor(table["label"].to_pylist())


def normalised(photos: Tensor) -> Tensor:
    """Normalise uint8 photos (N, 3, H, W) for the backbone."""
    preprocess = ZOO["nano"].preprocess
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return (photos.float() / 255 - mean) / std


def augment(photos: Tensor, size: int) -> Tensor:
    """Random flip, zoom, stretch and shift in one resampling to (B, 3, size, size); one photo in ten turns grey."""
    n = len(photos)
    zoom = torch.empty(n, 1, device=photos.device).uniform_(0.65, 1.05)
    stretch = torch.empty(n, 1, device=photos.device).uniform_(-0.15, 0.15).exp()
    scale = torch.cat([zoom * stretch, zoom / stretch], dim=1)  # of (x, y)
    slack = (1 - scale).abs().clamp(min=0.125)  # at least two pixels of shift each way
    shift = (torch.rand_like(scale) * 2 - 1) * slack
    scale[:, 0] *= torch.randint(0, 2, (n,), device=photos.device) * 2 - 1
    theta = torch.cat([torch.diag_embed(scale), shift[:, :, None]], dim=2)
    grid = F.affine_grid(theta, [n, 3, size, size], align_corners=False)
    photos = F.grid_sample(photos, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    grey = photos.mean(dim=1, keepdim=True)
    return torch.where(torch.rand(n, 1, 1, 1, device=photos.device) < 0.1, grey, photos)


class Classifier(nn.Module):
    """`nano` with three linear heads, which are used only in training.

    One classifies by CLS. Another classifies by the mean of the patches, so that the patch tokens of the last block
    learn, too. The third predicts a grey thumbnail from CLS, because other tasks need to know where things are, and
    classes alone would not keep that in CLS.
    """

    def __init__(self, config: ViTConfig, num_classes: int) -> None:
        super().__init__()
        self.vit = ViT(config, ZOO["nano"].preprocess, "nano")
        self.cls_head = nn.Linear(config.dim, num_classes)
        self.mean_head = nn.Linear(config.dim, num_classes)
        self.thumbnail_head = nn.Linear(config.dim, THUMBNAIL**2)
        nn.init.zeros_(self.thumbnail_head.weight)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return class logits from CLS and from the patch mean, and the thumbnail from CLS."""
        features: Features = self.vit(images)
        patch_mean = features.patches.mean(dim=(2, 3))
        return self.cls_head(features.cls), self.mean_head(patch_mean), self.thumbnail_head(features.cls)


def thumbnail(images: Tensor) -> Tensor:
    """Average the grey values of images over an 8 x 8 grid: (B, 64)."""
    return F.adaptive_avg_pool2d(images.mean(dim=1, keepdim=True), THUMBNAIL).flatten(1)


def optimizers(model: Classifier, lr: float) -> list[torch.optim.Optimizer]:
    """Make Muon (Jordan et al. 2024) for the matrices of the blocks, and AdamW for all other parameters."""
    matrices = [p for p in model.vit.blocks.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if p.requires_grad and id(p) not in taken]
    decayed = [p for p in rest if p.ndim > 1]
    plain = [p for p in rest if p.ndim <= 1]
    adam = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    return [torch.optim.Muon(matrices, lr=lr, weight_decay=0.02), torch.optim.AdamW(adam, lr=lr / 10)]


def schedule(progress: float) -> float:
    """Return the factor on the learning rates: linear warm-up over the first 3 %, then a cosine to 0."""
    return progress / 0.03 if progress < 0.03 else 0.5 + 0.5 * math.cos(math.pi * (progress - 0.03) / 0.97)


def image_size(progress: float) -> int:
    """Return the side in pixels: three quarters of the full size for the first 40 %, at about half the cost."""
    return 24 if progress < 0.4 else 32


def thumbnail_weight(progress: float) -> float:
    """Return the weight of the thumbnail in the loss.

    It is 0 until the classes are roughly learned. It is largest at the end, when the learning rate is small and the
    classes suffer little.
    """
    if progress < 13 / 24:
        return 0.0
    return 0.5 if progress < 19 / 24 else 2.0


def has_bfloat16(device: torch.device) -> bool:
    """Return whether bfloat16 is fast. A CPU without its instructions computes it at an eighth of float32's speed."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # a private name, which may be gone
    return device.type != "cpu" or (supported is not None and supported())


@torch.inference_mode()
def accuracy(model: Classifier, photos: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the accuracy of the two classifying heads."""
    model.eval()
    hits = torch.zeros(2)
    for x, y in zip(photos.split(500), labels.split(500), strict=True):
        hits += torch.stack([(logits.argmax(1) == y).sum() for logits in model(x)[:2]]).cpu()
    return tuple((hits / len(labels)).tolist())


def train(args: argparse.Namespace) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(args.seed)
    zoo = ZOO["nano"]
    photos, labels = read_photos(args.data, args.limit)
    photos, labels = normalised(photos).to(device), labels.to(device)
    held = torch.arange(len(photos), device=device) % HELD_OUT == HELD_OUT - 1
    train_x, train_y, val_x, val_y = photos[~held], labels[~held], photos[held], labels[held]
    num_classes = int(labels.max()) + 1

    model = Classifier(ViTConfig(**{**vars(zoo.config), "drop_path": 0.05}), num_classes).to(device)
    opts = optimizers(model, args.lr)
    peaks = [[group["lr"] for group in opt.param_groups] for opt in opts]
    mix = v2.RandomChoice([v2.CutMix(num_classes=num_classes), v2.MixUp(alpha=0.3, num_classes=num_classes)])
    checkpoint = args.out / "checkpoint.pt"
    settings = {key: value for key, value in vars(args).items() if key not in ("data", "out")}
    args.out.mkdir(parents=True, exist_ok=True)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["settings"] != settings:
            raise SystemExit(
                f"{checkpoint} belongs to another run, {state['settings']}; give another --out for {settings}"
            )
        model.load_state_dict(state["model"])
        for opt, saved in zip(opts, state["optimizers"], strict=True):
            opt.load_state_dict(saved)
        first = state["epoch"]
        print(f"resuming after epoch {first}")

    steps = len(train_x) // args.batch_size
    if not steps:
        raise SystemExit(f"{len(train_x)} photos are less than one batch of {args.batch_size}; raise --limit")
    for epoch in range(first, args.epochs):
        torch.manual_seed(args.seed * 1000 + epoch)  # the same epoch, whether resumed or not
        model.train()
        began, total = time.time(), 0.0
        order = torch.randperm(len(train_x), device=device)
        bar = tqdm(order[: steps * args.batch_size].split(args.batch_size), desc=f"epoch {epoch + 1}", mininterval=5)
        for step, rows in enumerate(bar):
            progress = (epoch * steps + step) / (args.epochs * steps)
            x, y = augment(train_x[rows], image_size(progress)), train_y[rows]
            if progress < 0.85 and torch.rand(()) < 0.5:
                x, y = mix(x, y)
            for opt, peak in zip(opts, peaks, strict=True):
                for group, lr in zip(opt.param_groups, peak, strict=True):
                    group["lr"] = lr * schedule(progress)
            with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
                by_cls, by_mean, small = model(x)
                loss = F.cross_entropy(by_cls, y) + 0.5 * F.cross_entropy(by_mean, y)
                loss = loss + thumbnail_weight(progress) * F.mse_loss(small, thumbnail(x))
            model.zero_grad()
            loss.backward()
            for opt in opts:
                opt.step()
            total += loss.item()
        cls, patches = accuracy(model, val_x, val_y)
        minutes = (time.time() - began) / 60
        report = (
            f"epoch {epoch + 1}: loss {total / steps:.3f}, val {cls:.4f} (patch mean {patches:.4f}), {minutes:.1f} min"
        )
        print(report, flush=True)
        with (args.out / "log.txt").open("a") as log:
            log.write(report + "\n")
        state = {"model": model.state_dict(), "optimizers": [o.state_dict() for o in opts], "epoch": epoch + 1}
        state["settings"] = settings
        with publish(checkpoint) as temporary:
            torch.save(state, temporary)

    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.vit.state_dict().items()}
    with publish(args.out / "nano.safetensors") as temporary:
        save_file({k: v.contiguous().cpu() for k, v in weights.items()}, temporary)
    print(f"wrote {args.out / 'nano.safetensors'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="parquet file with the columns image and label")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, log and weights")
    parser.add_argument("--epochs", type=int, default=24, help="passes over the photos (default: 24)")
    parser.add_argument("--batch-size", type=int, default=250, help="images in one step (default: 250)")
    parser.add_argument(
        "--lr",
        type=float,
        default=0.02,
        help="peak learning rate of Muon; AdamW takes a tenth of it (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    parser.add_argument("--limit", type=int, default=None, help="use only the first LIMIT photos (default: all)")
    train(parser.parse_args())
