"""Measure batches of images of mixed sizes, and time and memory from 196 to 16,384 tokens.

python -m benchmarks.sizes mixed
python -m benchmarks.sizes resolution --sides 224 448 896
"""

import argparse
from dataclasses import dataclass
from functools import partial

import timm
import torch
from timm.data.naflex_transforms import patchify_image
from torch import Tensor, nn

from benchmarks.peers import from_timm
from benchmarks.timing import DEVICE, Contestants, exponent, machine, markdown, medians, noise, peak_memory
from vitbackbone import optimize

MODEL = "vit_small_patch16_224.augreg_in21k"
MIXED = [(224, 224), (304, 400), (240, 320), (384, 384), (224, 320), (256, 256), (320, 240), (400, 304)]  # (H, W)
SIDES = [224, 448, 896, 1344, 2048]  # 196, 784, 3136, 7056 and 16,384 patches of 16 pixels
PATCH = 16


# ---- mixed sizes --------------------------------------------------------------------------------------------------


def padded() -> nn.Module:
    """timm's ViT for native sizes, of the same width and depth. It pads a batch to its longest image, with a mask."""
    shape = {"embed_dim": 384, "num_heads": 6, "depth": 12}
    return timm.create_model("naflexvit_base_patch16_gap", pretrained=False, num_classes=0, **shape).eval().to(DEVICE)


def run_padded(model: nn.Module, images: list[Tensor]) -> Tensor:
    each = [patchify_image(image, (PATCH, PATCH)) for image in images]  # patches, their places, which are real
    longest = max(len(patches) for patches, _, _ in each)
    patches = torch.zeros(len(images), longest, 3 * PATCH**2, device=DEVICE)
    places = torch.zeros(len(images), longest, 2, dtype=torch.long, device=DEVICE)
    real = torch.zeros(len(images), longest, dtype=torch.bool, device=DEVICE)
    for i, (of_image, at, _) in enumerate(each):
        patches[i, : len(of_image)], places[i, : len(of_image)], real[i, : len(of_image)] = of_image, at, True
    return model.forward_features(patches, patch_coord=places, patch_valid=real)


def mixed(seconds: float) -> str:
    _, backbone = from_timm(MODEL)
    fast, native = optimize(backbone), optimize(backbone, engine="native")
    one_size = timm.create_model(MODEL, pretrained=False, num_classes=0, dynamic_img_size=True).eval().to(DEVICE)
    images = [noise(3, *size, seed=i) for i, size in enumerate(MIXED)]
    naflex = padded()
    contestants: Contestants = {
        "timm's NaFlexViT, padded with a mask": partial(run_padded, naflex, images),
        "timm, one image at a time": lambda: [one_size.forward_features(image[None]) for image in images],
        "ours, as it is": partial(backbone, images),
        "ours, torch": partial(native, images),
        f"ours, by {fast.runtime.route}": partial(fast, images),
    }
    t = medians(contestants, seconds)
    first = next(iter(t.values()))
    tokens = [h * w // PATCH**2 for h, w in MIXED]
    waste = max(tokens) * len(tokens) / sum(tokens)
    rows = [(name, f"{1000 * value:.0f}", f"{first / value:.2f}") for name, value in t.items()]
    return (
        f"ViT-S/16 on {len(MIXED)} images of {min(tokens)} to {max(tokens)} patches; padding makes "
        f"{waste:.2f} times as many.\n\n{markdown(['', 'ms', 'against padding'], rows)}"
    )


# ---- resolution ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    patches: int
    seconds: float
    theirs: float  # timm's seconds
    memory: float  # MiB beside the weights


def resolution(sides: list[int], seconds: float) -> tuple[str, list[Size]]:
    _, backbone = from_timm(MODEL)
    fast = optimize(backbone)
    theirs = timm.create_model(MODEL, pretrained=False, num_classes=0, dynamic_img_size=True).eval().to(DEVICE)
    found = []
    for side in sides:
        x = noise(1, 3, side, side)
        memory = peak_memory(partial(fast, x))
        least = 3 if side < 1000 else 1
        t = medians({"ours": partial(fast, x), "timm": partial(theirs.forward_features, x)}, seconds, least)
        found.append(Size((side // PATCH) ** 2, t["ours"], t["timm"], memory))
    rows = [
        (side, f"{size.patches:,}", f"{size.seconds:.3f}", f"{size.theirs / size.seconds:.2f}", f"{size.memory:.0f}")
        for side, size in zip(sides, found, strict=True)
    ]
    patches = [size.patches for size in found]
    last = found[-3:]
    text = markdown(["pixels", "patches", "s", "against timm", "MiB"], rows)
    if len(found) > 2:
        late = [size.patches for size in last]
        text += (
            f"\n\nTime grows with patches to the power {exponent(patches, [s.seconds for s in found]):.2f}, over the "
            f"last three sizes {exponent(late, [s.seconds for s in last]):.2f}; memory over those "
            f"{exponent(late, [s.memory for s in last]):.2f}."
        )
    return f"ViT-S/16, one image, by {fast.runtime.route}.\n\n{text}", found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["mixed", "resolution"])
    parser.add_argument("--sides", nargs="+", type=int, default=SIDES, metavar="PIXELS")
    parser.add_argument("--seconds", type=float, default=30, help="seconds for each table row")
    args = parser.parse_args()
    print(f"{machine()}, {torch.get_num_threads()} threads\n", flush=True)
    with torch.inference_mode():
        print(mixed(args.seconds) if args.what == "mixed" else resolution(args.sides, args.seconds)[0])


if __name__ == "__main__":
    main()
