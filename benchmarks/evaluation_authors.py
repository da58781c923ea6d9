"""Compare `vitbackbone evaluate` with the authors' loops, written again here, on the same features and images.

    python -m benchmarks.evaluation_authors votes             # DINO's nearest neighbours, a pass for each k
    python -m benchmarks.evaluation_authors heads             # DINOv2's 52 linear heads, a module each
    python -m benchmarks.evaluation_authors scripts digits/   # nearest neighbours, all and few-shot, a script each

All times are CPU seconds of one thread, so that other work on the machine counts little. `digits/` is what
`benchmarks.evaluation_data` writes, or any folder {train,val}/CLASS/*.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import v2 as transforms

from vitbackbone import ViT, evaluate, evaluating, load_backbone
from vitbackbone.evaluation.linear_heads import LinearHeads, head_inputs
from vitbackbone.evaluation.metrics.votes import ROWS, nearest, unit, votes
from vitbackbone.evaluation.protocols.linear import RATES

KS, TEMPERATURE, CHUNKS = (10, 20, 100, 200), 0.07, 100


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Return the CPU seconds of the fastest of some calls."""
    found = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


def told(what: str, theirs: float, ours: float) -> None:
    print(f"{what}: the authors' loop {theirs:.2f} s, here {ours:.2f} s, {theirs / ours:.1f} times as fast")


def authors_votes(train: Tensor, labels: Tensor, queries: Tensor, classes: int, k: int) -> Tensor:
    """Return the ranked classes of each query, as DINO's script computes them for one k."""
    found = []
    for part in queries.split(max(len(queries) // CHUNKS, 1)):
        top, rows = (part @ train.T).topk(k)
        one_hot = torch.zeros(len(part) * k, classes).scatter_(1, labels[rows].reshape(-1, 1), 1)
        weighed = one_hot.reshape(len(part), k, classes) * (top / TEMPERATURE).exp()[:, :, None]
        found.append(weighed.sum(dim=1).argsort(dim=1, descending=True))
    return torch.cat(found)


def compare_votes(queries: int, training: int, width: int, classes: int) -> None:
    train, asked = (unit(torch.randn(count, width)) for count in (training, queries))
    labels = torch.randint(0, classes, (training,))
    blocks = [(start, train[start : start + ROWS]) for start in range(0, training, ROWS)]

    def theirs() -> list[Tensor]:
        return [authors_votes(train, labels, asked, classes, k) for k in KS]

    def ours() -> list[np.ndarray]:
        top, rows = nearest(asked, blocks, max(KS))
        near = labels[rows].numpy()
        return [votes(top[:, :k].numpy(), near[:, :k], classes, TEMPERATURE).argmax(axis=1) for k in KS]

    for one, other in zip(theirs(), ours(), strict=True):
        assert (one[:, 0].numpy() == other).all()
    told(f"votes of {queries:,} x {width} among {training:,} for k of {KS}", seconds(theirs, 1), seconds(ours, 1))


def compare_heads(batch: int, width: int, classes: int) -> None:
    """Compare a step of all heads on given features: four blocks and the mean of the patches."""
    widths = [width] * 4
    inputs = head_inputs((1, 4), (False, True), widths, width)
    heads = LinearHeads(inputs, RATES, classes, steps=100, momentum=0.9)
    modules = nn.ModuleList([nn.Linear(each.width, classes) for each in inputs for _ in RATES])
    rates = [rate for _ in inputs for rate in RATES]
    groups = [{"params": list(each.parameters()), "lr": rate} for each, rate in zip(modules, rates, strict=True)]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=0)
    features, labels = torch.randn(batch, 5 * width), torch.randint(0, classes, (batch,))

    def theirs() -> None:
        read = [each.of(features) for each in inputs for _ in RATES]
        losses = [F.cross_entropy(module(x), labels) for module, x in zip(modules, read, strict=True)]
        optimizer.zero_grad()
        torch.stack(losses).sum().backward()
        optimizer.step()

    told(f"a step of 52 heads on {batch} images", seconds(theirs), seconds(lambda: heads.step(features, labels, 0)))


def images(folder: Path) -> tuple[list[Path], Tensor]:
    names = sorted(each.name for each in folder.iterdir())
    files = [(file, label) for label, name in enumerate(names) for file in sorted((folder / name).iterdir())]
    return [file for file, _ in files], torch.tensor([label for _, label in files])


def extracted(backbone: ViT, files: Sequence[Path]) -> Tensor:
    """Return the CLS tokens of photos, read by torchvision as the scripts do."""
    own, side = backbone.preprocess, backbone.config.image_size[0]
    view = transforms.Compose(
        [
            transforms.Resize(side, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(side),
            transforms.ToImage(),
            transforms.ToDtype(torch.float32, scale=True),
            transforms.Normalize(own.mean, own.std),
        ]
    )
    found = []
    with evaluating(backbone):
        for start in range(0, len(files), 32):
            photos = [view(Image.open(file).convert("RGB")) for file in files[start : start + 32]]
            found.append(backbone(torch.stack(photos)).cls)
    return unit(torch.cat(found))


def few(labels: Tensor, count: int, tries: int) -> Iterator[Tensor]:
    for seed in range(tries):
        torch.manual_seed(seed)
        rows = [(labels == label).nonzero()[:, 0] for label in labels.unique()]
        yield torch.cat([each[torch.randperm(len(each))[:count]] for each in rows])


def compare_scripts(data: Path) -> None:
    backbone = load_backbone("nano")
    classes = len(list((data / "train").iterdir()))

    def script(shots: int, tries: int) -> None:
        (files, labels), (asked, _) = images(data / "train"), images(data / "val")
        train, queries = extracted(backbone, files), extracted(backbone, asked)
        for rows in few(labels, shots, tries) if shots else [torch.arange(len(labels))]:
            for k in KS:
                authors_votes(train[rows], labels[rows], queries, classes, min(k, len(rows)))

    def theirs() -> None:
        script(0, 1)
        script(10, 5)

    def ours() -> None:
        side = backbone.config.image_size[0]
        settings = {"view.short": side, "view.crop": side}
        with tempfile.TemporaryDirectory() as out:
            evaluate(["knn", "knn-few-shot"], backbone, {"folder": data}, out, settings=settings, progress=False)

    told(f"nearest neighbours, all and few-shot, on {data.name}", seconds(theirs, 1), seconds(ours, 1))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["votes", "heads", "scripts"])
    parser.add_argument("data", type=Path, nargs="?", help="of scripts: a folder {train,val}/CLASS/*")
    parser.add_argument("--queries", type=int, default=1000, help="of votes")
    parser.add_argument("--training", type=int, default=40_000, help="of votes")
    parser.add_argument("--batch", type=int, default=128, help="of heads: images of a step")
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if args.what == "votes":
        compare_votes(args.queries, args.training, 384, 1000)
    elif args.what == "heads":
        compare_heads(args.batch, 384, 1000)
    elif args.data is None:
        parser.error("scripts needs a folder {train,val}/CLASS/*")
    else:
        compare_scripts(args.data)
