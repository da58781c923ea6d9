"""The GPU page: the forward beside timm and transformers, and a folder of photos from disk to features, on one GPU.

    python -m benchmarks.cuda --out docs/performance-cuda.md   # under nine minutes on one GPU
    python -m benchmarks.cuda --toy --out page.md              # a tiny model, on any device

All contestants hold the same weights (transformers: its own, as the names differ) and run in one process, in turn.
Each is timed by CUDA events, several turns each, and the median counts. Nothing is compiled inside the timer. Closeness
is the least cosine of a token to the same network in float32, measured in the same run.

The claims of the page: at least 55 % of the measured bfloat16 peak for L/16 at batch 256, and from a folder to features
at least 90 % of the lesser of decoding and forward.
"""

import argparse
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import timm
import torch
import transformers
from torch import Tensor

import vitbackbone
from benchmarks.folder import photos
from benchmarks.peers import from_timm, in_transformers
from benchmarks.timing import DEVICE, ON_GPU, machine, markdown, noise
from vitbackbone import Photo, ViTConfig, extract, optimize
from vitbackbone.images import Decoding, ImageTransform
from vitbackbone.inspection import costs

CASES = (  # model, batch; the first ones first, as far as the time goes
    ("vit_large_patch16_224.augreg_in21k", 256),
    ("vit_base_patch16_224.augreg_in21k", 256),
    ("vit_base_patch16_224.augreg_in21k", 1),
    ("vit_large_patch14_dinov2.lvd142m", 64),
    ("vit_large_patch14_dinov2.lvd142m", 256),
    ("vit_large_patch16_224.augreg_in21k", 64),
    ("vit_base_patch16_224.augreg_in21k", 64),
)
TOY = (("vit_tiny_patch16_224.augreg_in21k", 2),)
TURNS, SECONDS = 3, 2.0  # that each contestant has on a batch, and how long a turn is
BUDGET = 270.0  # seconds for the forwards; a case that would begin later is left out, and the page says so
END = 480.0  # seconds after which no decoding begins
FOLDER = "vit_small_patch16_224.augreg_in21k"  # the model of the folder
DECODINGS: tuple[Decoding, ...] = ("exact", "fast", "draft", "gpu") if ON_GPU else ("exact", "fast", "draft")
QUERY = "clocks.sm,clocks.max.sm,clocks.mem,power.draw,power.limit,temperature.gpu,clocks_event_reasons.active"

Run = Callable[[Tensor], object]


@dataclass(frozen=True)
class Timed:
    """One contestant on one batch."""

    name: str
    seconds: float  # the median of a forward
    cosine: float  # the least cosine of a token to float32


def event_seconds(run: Run, x: Tensor, seconds: float) -> float:
    """Return the seconds of one forward, the mean over a turn."""
    count, began = 0, time.perf_counter()
    if not ON_GPU:
        while not count or time.perf_counter() - began < seconds:
            run(x)
            count += 1
        return (time.perf_counter() - began) / count
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    while time.perf_counter() - began < seconds:
        for _ in range(4):
            run(x)
        count += 4
        last.record()
        last.synchronize()
    return first.elapsed_time(last) / 1000 / count


def peak(seconds: float) -> float:
    """Return the operations a second of a bfloat16 matrix product, after the clock has settled under load."""
    side = 8192 if ON_GPU else 512
    a, b = (noise(side, side, seed=seed).bfloat16() for seed in (0, 1))
    event_seconds(lambda _: a @ b, a, seconds)
    return 2 * side**3 / statistics.median(event_seconds(lambda _: a @ b, a, 0.5) for _ in range(TURNS))


def tokens(output: object) -> Tensor:
    """Return the tokens (B, N, D) in a contestant's result."""
    output = getattr(output, "last_hidden_state", output)  # of transformers
    if isinstance(output, Tensor):
        return output.float()
    patches = output.patches.flatten(2).mT  # type: ignore[attr-defined]
    prefix = [] if output.cls is None else [output.cls[:, None]]  # type: ignore[attr-defined]
    return torch.cat([*prefix, output.registers, patches], 1).float()  # type: ignore[attr-defined]


def graphed(run: Run, x: Tensor) -> Run:
    """Return a function that replays a CUDA graph of `run`, for inputs of the size of `x`."""
    held = x.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run(held)

    def replay(given: Tensor) -> object:
        held.copy_(given)
        graph.replay()
        return found  # the same memory each time

    return replay


def contestants(name: str, x: Tensor, toy: bool) -> tuple[dict[str, Run], dict[str, Run], ViTConfig, str]:
    """Return everyone who runs in bfloat16, the float32 network of each, the configuration and our route."""
    theirs, backbone = from_timm(name)
    config = backbone.config
    assert isinstance(config, ViTConfig)
    half, _ = from_timm(name)
    half = half.bfloat16()
    hf = in_transformers(config)
    fast = optimize(backbone, "bf16", sample=x[:4])
    compiled = torch.compile(half, dynamic=False, backend="eager" if toy else "inductor")
    everyone: dict[str, Run] = {
        "timm": lambda x: half(x.bfloat16()),
        "timm, compiled": lambda x: compiled(x.bfloat16()),
        "transformers": lambda x: autocast(hf, x),
        "ours": fast,
    }
    if ON_GPU:
        everyone["timm, CUDA graph"] = graphed(everyone["timm"], x)
    exact = {who: hf if who == "transformers" else theirs for who in everyone}
    return everyone, exact, config, fast.runtime.route


def autocast(run: Run, x: Tensor) -> object:
    with torch.autocast(DEVICE.type, torch.bfloat16):
        return run(x)


def case(name: str, batch: int, seconds: float, toy: bool) -> tuple[list[Timed], ViTConfig, str]:
    """Time everyone on one batch."""
    config_size = timm.create_model(name, pretrained=False, num_classes=0).default_cfg["input_size"][1:]
    x = noise(batch, 3, *config_size)
    runs, exact, config, route = contestants(name, x, toy)
    few = min(8, batch)
    cosines = {}
    for who, run in runs.items():
        for _ in range(3):  # compiles, records
            run(x)
        got, want = tokens(run(x))[:few], tokens(exact[who](x[:few]))
        cosines[who] = torch.cosine_similarity(got, want, dim=-1).min().item()
    times: dict[str, list[float]] = {who: [] for who in runs}
    for _ in range(TURNS):
        for who, run in runs.items():
            times[who].append(event_seconds(run, x, seconds))
    return [Timed(who, statistics.median(each), cosines[who]) for who, each in times.items()], config, route


def forward_section(cases: tuple[tuple[str, int], ...], began: float, seconds: float, toy: bool) -> str:
    """Return the table of the forward."""
    top = peak(5 * seconds)
    rows, left_out, routes = [], [], set()
    for name, batch in cases:
        if time.perf_counter() - began > BUDGET:
            left_out.append(f"{name} at batch {batch}")
            continue
        torch._dynamo.reset()
        timed, config, route = case(name, batch, seconds, toy)
        routes.add(route)
        with torch.inference_mode(False):  # its counters hook into modules that are made here
            flops = costs(config, config.image_size, batch).flops
        base = next(each for each in timed if each.name == "timm, compiled")
        for each in timed:
            rates = f"{1000 * each.seconds:.2f}", f"{batch / each.seconds:,.0f}"
            shares = f"{base.seconds / each.seconds:.2f}", f"{flops / each.seconds / top:.0%}"
            rows.append((name, batch, each.name, *rates, *shares, f"{each.cosine:.5f}"))
            print(*rows[-1], sep=" | ", flush=True)
    header = ["model", "batch", "", "ms", "images/s", "against timm, compiled", "share of the peak", "least cosine"]
    words = [
        f"Measured peak: {top / 1e12:.0f} TFLOP/s, a bfloat16 matrix product under load. All run in bfloat16. "
        f"Our route: {', '.join(sorted(routes))}."
    ]
    words += [f"Left out, as the time was up: {', '.join(left_out)}."] if left_out else []
    return "\n\n".join([*words, markdown(header, rows)])


def _decode(preprocess: ImageTransform, decoding: Decoding, data: bytes) -> Tensor:
    return preprocess.pixels(Photo(data), decoding=decoding)


def folder_section(count: int, batch: int, began_all: float, seconds: float) -> str:
    """Return the rates of decoding, of the forward, and of both together through `extract`."""
    cores = os.cpu_count() or 1
    _, backbone = from_timm(FOLDER)
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "photos"
        source.mkdir()
        photos(source, count)
        data = [path.read_bytes() for path in sorted(source.iterdir())[: 16 * cores]]
        fast = optimize(backbone, "bf16", sample=noise(4, 3, 224, 224))
        x = noise(batch, 3, 224, 224)
        for _ in range(3):
            fast(x)
        forward = batch / event_seconds(fast, x, seconds)
        torch.set_num_threads(1)

        def embed(folder: Path, out: str, decoding: Decoding) -> None:
            extract(
                fast,
                folder,
                Path(temporary) / out,
                decoding=decoding,
                workers=0 if decoding == "gpu" else cores,  # the process that computes decodes
                batch_size=batch,
                device=DEVICE,
                progress=False,
            )

        few = Path(temporary) / "few"
        few.mkdir()
        photos(few, min(count, 2 * batch))
        embed(few, "compiled", "exact")  # compiles what a forward without patches needs
        rows, left_out = [], []
        for decoding in DECODINGS:
            if time.perf_counter() - began_all > END:
                left_out.append(decoding)
                continue
            with ThreadPoolExecutor(1 if decoding == "gpu" else cores) as pool:
                began = time.perf_counter()
                list(pool.map(partial(_decode, backbone.preprocess, decoding), data))
                decode = len(data) / (time.perf_counter() - began)
            began = time.perf_counter()
            embed(source, decoding, decoding)
            both = count / (time.perf_counter() - began)
            rows.append(
                (decoding, f"{decode:,.0f}", f"{forward:,.0f}", f"{both:,.0f}", f"{both / min(decode, forward):.0%}")
            )
            print(*rows[-1], sep=" | ", flush=True)
    words = f"{count:,} JPEGs of 1 to 2 megapixels, {FOLDER}, CLS, {cores} cores decode{', or nvJPEG' * ON_GPU}."
    words += f" Left out, as the time was up: {', '.join(left_out)}." if left_out else ""
    return f"{words}\n\n" + markdown(
        ["decoding", "decode, images/s", "forward, images/s", "both, images/s", "of the lesser"], rows
    )


def versions() -> str:
    """Return the versions of everything that computes."""
    found = [f"Python {platform.python_version()}", f"torch {torch.__version__}", f"timm {timm.__version__}"]
    found += [f"transformers {transformers.__version__}", f"vitbackbone {vitbackbone.__version__}"]
    if ON_GPU:
        driver = subprocess.run(
            ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=False,
        )
        found += [f"CUDA {torch.version.cuda}", f"cuDNN {torch.backends.cudnn.version()}"]
        found += [f"driver {driver.stdout.strip()}"]
    return ", ".join(found)


def state() -> str:
    """Return the clocks, the power and the throttle reasons, as the driver tells them."""
    if not ON_GPU:
        return "no GPU"
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    return f"{QUERY}: {told.stdout.strip() or told.stderr.strip()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the page")
    parser.add_argument("--toy", action="store_true", help="a tiny model and few photos, on any device")
    parser.add_argument("--photos", type=int, default=4000, metavar="N", help="photos in the folder (default: 4000)")
    args = parser.parse_args()
    began = time.perf_counter()
    seconds = 0.01 if args.toy else SECONDS
    with torch.inference_mode():
        before = state()
        table = forward_section(TOY if args.toy else CASES, began, seconds, args.toy)
    after = state()
    parts = [
        "# Performance on a GPU",
        f"`python -m benchmarks.cuda` on {machine()}: {versions()}.",
        f"At the start, {before}. After the forwards, {after}.",
        "## Forward",
        table,
        "## From a folder to features",
    ]
    args.out.write_text("\n\n".join(parts) + "\n")  # what is there already is kept if the rest fails
    parts.append(folder_section(6 if args.toy else args.photos, 2 if args.toy else 256, began, seconds))
    args.out.write_text("\n\n".join(parts) + "\n")
    print(f"{args.out} after {time.perf_counter() - began:.0f} s")


if __name__ == "__main__":
    main()
