"""Fine-tune a pretrained backbone on classes of your own: replace the head, then train all of it, adapters or the head.

    python examples/finetune.py photos --out runs/photos                   # sub-folders of `photos` are the classes
    python examples/finetune.py photos --out runs/lora --mode lora --backbone vit_small_patch14_dinov2.lvd142m
    python examples/finetune.py train.parquet --rows 9::10 --labels 0.1 --out runs/tenth    # a tenth of the labels

`--mode full` trains the backbone too, with higher learning rates for deeper layers. `lora` trains low-rank adapters of
its attention (Hu et al. 2022) and merges them into its weights at the end. `frozen` trains only the head. `scratch` is
`full` on random weights, for comparison. A parquet file has the columns `image` (JPEG or PNG bytes) and `label`.

OUT gets the head (`heads.load_head`), the new weights `backbone.safetensors` (`load_backbone(NAME, weights=...)`) and
`result.json`. `frozen` writes no weights, because it does not change them. To resume an interrupted run, run the same
command again.
"""

import argparse
import hashlib
import io
import json
import re
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm import tqdm
from training import Groups, Settings, backbone_groups, fit, head_groups, set_drop_path

from heads import Head, accuracy_interval, attach, create_head, freeze, save_head
from vitbackbone import (
    BackboneModule,
    ViT,
    evaluating,
    export_weights,
    list_inputs,
    load_backbone,
    load_image,
    publish,
    publish_text,
)
from vitbackbone.checkpoints import find_entry

LR = {"full": 5e-4, "lora": 3e-3, "frozen": 1e-2, "scratch": 1e-3}  # peak learning rate of each mode
ADAPTED = r"blocks\.\d+\.attn\.(qkv|proj)"  # the linear layers that get a LoRA adapter


# ---- data ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Photos:
    """Photos with their classes, not decoded yet."""

    sources: list[str] | list[bytes]  # paths, or the bytes of image files
    labels: NDArray[np.int64]  # indices into `names`
    names: list[str]

    def image(self, row: int) -> Image.Image:
        source = self.sources[row]
        return load_image(source if isinstance(source, str) else Image.open(io.BytesIO(source)))


def read_photos(data: Path, rows: slice) -> Photos:
    """Read the rows that have a class from a folder of classes or a parquet file.

    Exits with a message if there are fewer than two classes.
    """
    if data.suffix == ".parquet":
        table = pq.read_table(data, columns=["image", "label"])
        sources, labels = table["image"].to_pylist(), table["label"].to_numpy().astype(np.int64)
        names = [str(i) for i in range(labels.max() + 1)]
    else:
        inputs = list_inputs(data)
        sources, labels, names = inputs.files(0, len(inputs)), np.array(inputs.labels), list(inputs.class_names)
    chosen = np.arange(len(labels))[rows]
    known = chosen[labels[chosen] >= 0]
    if len(known) < len(chosen):
        print(f"{data}: {len(chosen) - len(known)} photos have no class; they are left out", file=sys.stderr)
    photos = Photos([sources[row] for row in known], labels[known], names)
    if len(set(photos.labels)) < 2:
        raise SystemExit(f"{data}: want a sub-folder of photos for each of at least two classes")
    return photos


def copies(photos: Photos) -> NDArray[np.int64]:
    """Return a number for each photo, equal for exact copies."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(_content(source), len(numbers)) for source in photos.sources])


def _content(source: str | bytes) -> str:
    """Return a checksum of a photo's file. A file that cannot be read equals no other."""
    try:
        return hashlib.sha256(source if isinstance(source, bytes) else Path(source).read_bytes()).hexdigest()
    except OSError:
        return f"unread {source!r}"


def draw(
    labels: NDArray[np.int64], share: float, seed: int, groups: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Return a mask of a share of each class, at least one photo. `groups` are drawn whole, such as copies."""
    if groups is not None:
        first = np.sort(np.unique(groups, return_index=True)[1])
        return np.isin(groups, groups[first[draw(labels[first], share, seed)]])
    rng, mask = np.random.default_rng(seed), np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        mask[rows[: max(1, round(len(rows) * share))]] = True
    return mask


class Batches:
    """The training batch of each step: augmented photos and labels, sometimes mixed. It depends only on the number."""

    def __init__(
        self, photos: Photos, rows: NDArray[np.int64], backbone: BackboneModule, args: argparse.Namespace
    ) -> None:
        self.photos, self.rows, self.preprocess, self.args = photos, rows, backbone.preprocess, args
        self.device = next(backbone.parameters()).device
        self.size = args.resolution or backbone.spec.image_size
        self.augment = v2.Compose(
            [
                v2.RandomResizedCrop(self.size, scale=(0.4, 1), interpolation=v2.InterpolationMode.BICUBIC),
                v2.RandomHorizontalFlip(args.flip),
            ]
        )
        classes = len(photos.names)
        self.mix = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=classes), v2.CutMix(num_classes=classes)])
        self.order = lru_cache(maxsize=2)(self._order)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng((self.args.seed, epoch)).permutation(self.rows)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return images (B, 3, H, W), and class indices (B,) or, if mixed, probabilities (B, K)."""
        places = range(step * self.args.batch_size, (step + 1) * self.args.batch_size)
        rows = [self.order(place // len(self.rows))[place % len(self.rows)] for place in places]
        images = [self.preprocess(self.augment(self.photos.image(row)), self.size, keep_aspect=True) for row in rows]
        batch = torch.stack(images).to(self.device), torch.tensor(self.photos.labels[rows], device=self.device)
        return self.mix(*batch) if torch.rand(()) < self.args.mix else batch


# ---- model --------------------------------------------------------------------------------------------------------


def add_adapters(backbone: ViT, rank: int) -> Any:
    """Add LoRA adapters by peft, which freezes the backbone's own weights. `merge_and_unload()` merges them."""
    from peft import LoraConfig, get_peft_model

    if backbone.config.qkv_bias == "qv":
        raise SystemExit(
            f"--mode lora: {backbone.spec.name} adds biases of its own to queries and values, which an "
            "adapter of `qkv` does not see; use --mode full"
        )
    return get_peft_model(backbone, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=ADAPTED))


def groups_of(backbone: BackboneModule, head: Head, settings: Settings, args: argparse.Namespace) -> Groups:
    """Return the parameters to train, with their learning rates, and freeze the rest of the backbone."""
    if args.mode == "frozen":
        freeze(backbone)
        return head_groups(head, settings)
    if args.mode == "lora":
        return [*head_groups(backbone, settings), *head_groups(head, settings)]
    decay = args.layer_decay if args.mode == "full" else 1.0
    return [*backbone_groups(backbone, settings, decay), *head_groups(head, settings)]


def accuracy(model: nn.Module, photos: Photos, rows: NDArray[np.int64], args: argparse.Namespace) -> tuple[int, int]:
    """Return the number of photos that are classified correctly, and the number of all photos."""
    correct, device = 0, next(model.parameters()).device
    with evaluating(model):
        for part in tqdm(np.array_split(rows, -(-len(rows) // args.batch_size)), desc="test", leave=False):
            images = [model.backbone.preprocess(photos.image(row), args.resolution) for row in part]
            logits = model(torch.stack(images).to(device))["classes"]
            correct += int((logits.argmax(dim=1).cpu().numpy() == photos.labels[part]).sum())
    return correct, len(rows)


def claim(args: argparse.Namespace) -> None:
    """Make the folder of the run. Exits with a message if it holds a run with other options."""
    options = {name: str(value) for name, value in vars(args).items() if name != "out"}
    record = args.out / "options.json"
    if record.exists():
        there = json.loads(record.read_text())
        different = [f"{key} {there.get(key)}, not {now}" for key, now in options.items() if there.get(key) != now]
        if different:
            raise SystemExit(f"{args.out} holds a run with {'; '.join(different)}; give another --out, or delete it")
    args.out.mkdir(parents=True, exist_ok=True)
    publish_text(record, json.dumps(options, indent=2) + "\n")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Train, save, and return the content of `result.json`."""
    photos = read_photos(args.data, args.rows)
    test = draw(photos.labels, args.test, seed=0, groups=copies(photos))
    if test.all():
        raise SystemExit(f"{args.data}: nothing is left to train on; want at least two photos of each class")
    train = np.flatnonzero(~test)
    train = train[draw(photos.labels[train], args.labels, args.seed)]

    claim(args)
    torch.manual_seed(args.seed)
    weights = "random" if args.mode == "scratch" else args.weights
    backbone = load_backbone(args.backbone, weights)
    if args.mode != "frozen" and not isinstance(backbone, ViT):
        raise SystemExit(f"--mode {args.mode}: {args.backbone} is not a plain Vision Transformer; use --mode frozen")
    head = create_head("mlp", backbone.spec, num_classes=len(photos.names))
    if args.mode != "frozen":
        set_drop_path(backbone, args.drop_path)
    adapters = add_adapters(backbone, args.rank) if args.mode == "lora" else None
    model = attach(backbone, {"classes": head}).to("cuda" if torch.cuda.is_available() else "cpu").train()

    if args.mode == "lora":
        backbone.patch_embed.eval()  # a stem with batch norms keeps its statistics, like its weights

    settings = Settings(args.steps, args.lr or LR[args.mode], seed=args.seed, precision=args.precision)
    batches = Batches(photos, train, backbone, args)
    groups = groups_of(backbone, head, settings, args)
    fit(model, groups, batches, lambda batch: model(batch[0], {"classes": batch[1]})["classes"], settings, args.out)
    if adapters is not None:
        adapters.merge_and_unload()

    correct, total = accuracy(model, photos, np.flatnonzero(test), args)
    save_head(head, args.out / "head", backbone)
    if args.mode != "frozen":
        tensors = export_weights(backbone, find_entry(args.backbone).format)
        with publish(args.out / "backbone.safetensors") as temporary:
            save_file({name: t.cpu().contiguous() for name, t in tensors.items()}, temporary)
    result = {
        "backbone": args.backbone,
        "weights": args.weights,  # the initial weights; None for the published ones
        "resolution": args.resolution,
        "mode": args.mode,
        "trained_on": len(train),
        "tested_on": total,
        "accuracy": correct / total,
        "interval": accuracy_interval(correct, total),  # 95 %
        "classes": photos.names,
    }
    publish_text(args.out / "result.json", json.dumps(result, indent=2) + "\n")
    low, high = (100 * bound for bound in result["interval"])
    print(
        f"{args.mode}: {len(train)} photos, accuracy {100 * correct / total:.1f} % ({low:.1f} to {high:.1f}) on {total}"
    )
    return result


def _rows(text: str) -> slice:
    if not re.fullmatch(r"\d*:\d*(:[1-9]\d*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r}; want START:STOP:STEP, such as 9::10")
    return slice(*(int(part) if part else None for part in text.split(":")))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    rates = ", ".join(f"{rate} for {mode}" for mode, rate in LR.items())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder whose sub-folders are classes, or a parquet file")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint, head, weights and result")
    parser.add_argument("--backbone", default="nano", help="a backbone, as for load_backbone (default: %(default)s)")
    parser.add_argument("--weights", help="weights file of the backbone (default: the published weights)")
    parser.add_argument("--mode", choices=list(LR), default="full", help="what is trained; see above (default: full)")
    parser.add_argument("--steps", type=int, default=500, help="training steps (default: 500)")
    parser.add_argument("--batch-size", type=int, default=64, help="images in one step (default: 64)")
    parser.add_argument("--lr", type=float, help=f"peak learning rate (default: {rates})")
    parser.add_argument(
        "--layer-decay",
        type=float,
        default=0.75,
        help="factor on the rate from each block to the one before, with `full` (default: %(default)s)",
    )
    parser.add_argument(
        "--drop-path", type=float, default=0.1, help="stochastic depth of the last block (default: %(default)s)"
    )
    parser.add_argument(
        "--mix", type=float, default=0.5, help="share of batches with Mixup or CutMix (default: %(default)s)"
    )
    parser.add_argument(
        "--flip",
        type=float,
        default=0.5,
        help="share of photos that are mirrored; give 0 for text or digits (default: %(default)s)",
    )
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapters of `lora` (default: %(default)s)")
    parser.add_argument(
        "--labels",
        type=float,
        default=1.0,
        help="share of the training photos of each class to use (default: %(default)s)",
    )
    parser.add_argument(
        "--test",
        type=float,
        default=0.2,
        help="share of each class to measure on; copies stay together (default: %(default)s)",
    )
    parser.add_argument(
        "--rows", type=_rows, default=slice(None), help="START:STOP:STEP of the photos, such as 9::10 (default: all)"
    )
    parser.add_argument("--resolution", type=int, help="input side in pixels (default: the checkpoint's own)")
    parser.add_argument(
        "--precision", choices=["fp32", "bf16"], default="fp32", help="precision of training (default: fp32)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random (default: 0)")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    run(parse())
