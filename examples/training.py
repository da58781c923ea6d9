"""Training for the examples: parameter groups, the learning rate, and a loop that can be resumed."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vitbackbone import ViT, publish, publish_text

Batch = TypeVar("Batch")
Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Settings:
    """Settings of a training run. A run can be resumed only with equal settings."""

    steps: int
    lr: float  # peak
    weight_decay: float = 0.05
    warmup: float = 0.05  # share of the steps over which the learning rate rises to its peak
    seed: int = 0
    precision: str = "fp32"  # or "bf16": autocast
    save_every: int = 200  # steps
    task: Mapping[str, Any] = field(default_factory=dict)  # what else decides the result: data, head, augmentation


def head_groups(head: nn.Module, settings: Settings) -> Groups:
    """Return the parameter groups of a head, or of any module with one learning rate."""
    return _decayed([(name, p) for name, p in head.named_parameters() if p.requires_grad], settings.lr, settings)


def backbone_groups(backbone: ViT, settings: Settings, layer_decay: float) -> Groups:
    """Return the parameter groups of a backbone.

    The learning rate falls by `layer_decay` from each block to the one before (Clark et al. 2020, ELECTRA; Bao et al.
    2021, BEiT). Tokens and positions count as the layer before the first block.
    """
    depth = backbone.config.depth
    layers: dict[int, list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in backbone.named_parameters():
        if parameter.requires_grad:
            parts = name.split(".")
            early = parts[0] in ("patch_embed", "pos_embed", "cls_token", "reg_token", "norm_pre")
            layer = int(parts[1]) + 1 if parts[0] == "blocks" else 0 if early else depth + 1
            layers.setdefault(layer, []).append((name, parameter))
    return [
        group
        for layer, named in layers.items()
        for group in _decayed(named, settings.lr * layer_decay ** (depth + 1 - layer), settings)
    ]


def _decayed(named: list[tuple[str, nn.Parameter]], lr: float, settings: Settings) -> Groups:
    """Split parameters into groups with weight decay, for matrices, and without: biases, norms, tokens, positions."""
    plain = [p for name, p in named if p.ndim < 2 or "token" in name or "pos_embed" in name]
    taken = {id(p) for p in plain}
    matrices = [p for _, p in named if id(p) not in taken]
    groups = [{"params": matrices, "lr": lr, "weight_decay": settings.weight_decay}]
    groups.append({"params": plain, "lr": lr, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def set_drop_path(backbone: ViT, rate: float) -> None:
    """Set stochastic depth: `rate` in the last block, falling linearly to 0 in the first (Huang et al. 2016)."""
    if not 0 <= rate < 1:
        raise ValueError(f"the rate of DropPath must be in [0, 1), got {rate}")
    for i, block in enumerate(backbone.blocks):
        block.drop_path.rate = rate * i / max(len(backbone.blocks) - 1, 1)


def schedule(progress: float, warmup: float) -> float:
    """Return the factor on the learning rate: linear warm-up, then a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 + 0.5 * math.cos(math.pi * (progress - warmup) / (1 - warmup))


def fit(
    model: nn.Module,
    groups: Groups,
    batch: Callable[[int], Batch],
    loss: Callable[[Batch], Tensor],
    settings: Settings,
    out: Path,
) -> None:
    """Train the parameters in `groups` with AdamW, and show rate, time left and loss.

    `model` is saved in the checkpoint `out/checkpoint.pt`, from which an interrupted run resumes. `batch` makes the
    batch of a step from its number alone, so a resumed run sees the same batches as an uninterrupted one. torch's
    generator is seeded by the step, too.
    Exits with a message if `out` holds a run of other settings; raises `ValueError` on a loss that is not finite.
    """
    optimizer = torch.optim.AdamW(groups)
    peaks = [group["lr"] for group in optimizer.param_groups]
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = out / "checkpoint.pt"
    device = groups[0]["params"][0].device
    first, average = 0, math.nan
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if state["settings"] != asdict(settings):
            raise SystemExit(
                f"{checkpoint} belongs to a run with {state['settings']}; give another --out, or delete it"
            )
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first, average = state["step"], state["average"]

    def save(step: int) -> None:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "average": average}
        with publish(checkpoint) as temporary:
            torch.save({**state, "settings": asdict(settings)}, temporary)

    half = torch.autocast(device.type, torch.bfloat16)
    bar = tqdm(range(first, settings.steps), initial=first, total=settings.steps, unit="step", mininterval=2)
    for step in bar:
        torch.manual_seed(settings.seed * 1_000_003 + step)
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * schedule((step + 1) / (settings.steps + 1), settings.warmup)
        with half if settings.precision == "bf16" else nullcontext():
            value = loss(batch(step))
        if not torch.isfinite(value):
            raise ValueError(f"the loss of step {step} is {value.item()}; try a lower learning rate than {settings.lr}")
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        average = value.item() if math.isnan(average) else 0.98 * average + 0.02 * value.item()
        bar.set_postfix(loss=f"{average:.3f}")
        if (step + 1) % settings.save_every == 0 or step + 1 == settings.steps:
            save(step + 1)
    publish_text(out / "training.json", json.dumps({**asdict(settings), "loss": average}, indent=2) + "\n")


def exit_code(run: Callable[[], None]) -> int:
    """Run an example from the command line, and return 0, 2 for wrong input, or 130 for Ctrl-C."""
    try:
        run()
        return 0
    except (ValueError, OSError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume from the last checkpoint", file=sys.stderr)
        return 130
