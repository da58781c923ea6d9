"""Behaviour cloning with a Vision Transformer: an arm learns from demonstrations to reach the red disc among others.

    python examples/policy.py --out runs/policy

The task is drawn here: a table seen from above, four discs of different colours, an arm whose tip moves at a bounded
velocity, and an expert that goes straight to the red disc. The policy sees an image of 64 x 64 pixels and the tip's own
position. The backbone is frozen: the demonstrations go through it once, and only a head and an MLP learn. For
comparison, the same MLP learns from the position alone, which does not tell where the red disc is. A film of one
episode of each is written to OUT.
"""

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.nn import functional as F
from training import Settings, fit, head_groups

from heads import CameraEncoder, CameraTokens, accuracy_interval, create_head, freeze
from vitbackbone import load_backbone

SIZE = 64  # pixels
COLOURS = ("#c02020", "#2050c0", "#209040", "#d0a010")  # the first is the target's
SPEED, REACH, LIMIT = 0.12, 0.06, 25  # per step and the distance that counts as reached, in table widths; steps
BATCH = 100


class Scenes:
    """Many tables at once: `discs` (n, 4, 2) and `tip` (n, 2), as (x, y) in [0, 1]."""

    def __init__(self, count: int, rng: np.random.Generator) -> None:
        corners = np.stack(np.meshgrid([0.3, 0.7], [0.25, 0.65]), axis=-1).reshape(4, 2)  # apart, in a random order
        self.discs = rng.permuted(np.tile(np.arange(4), (count, 1)), axis=1)
        self.discs = corners[self.discs] + rng.uniform(-0.12, 0.12, (count, 4, 2))
        self.tip = rng.uniform(0.1, 0.9, (count, 2))

    def draw(self, i: int, scale: int = 1) -> Image.Image:
        side = SIZE * scale * 2  # twice as large, for smooth edges
        image = Image.new("RGB", (side, side), "#d8d0c0")
        draw = ImageDraw.Draw(image)
        for (x, y), colour in zip(self.discs[i] * side, COLOURS, strict=True):
            draw.ellipse((x - side / 16, y - side / 16, x + side / 16, y + side / 16), fill=colour)
        x, y = self.tip[i] * side
        draw.line((side / 2, side, x, y), fill="#404040", width=side // 32)
        draw.ellipse((x - side / 40, y - side / 40, x + side / 40, y + side / 40), fill="black")
        return image.resize((SIZE * scale, SIZE * scale), Image.Resampling.BOX)

    def expert(self) -> np.ndarray:
        """Return velocities (n, 2) in units of SPEED: straight to the red disc, slower within a step of it."""
        way = (self.discs[:, 0] - self.tip) / SPEED
        return way / np.maximum(np.linalg.norm(way, axis=1, keepdims=True), 1)

    def move(self, velocity: np.ndarray) -> None:
        velocity = velocity / np.maximum(np.linalg.norm(velocity, axis=1, keepdims=True), 1)
        self.tip = np.clip(self.tip + SPEED * velocity, 0, 1)

    @property
    def reached(self) -> np.ndarray:
        return np.linalg.norm(self.discs[:, 0] - self.tip, axis=1) < REACH


class Policy(nn.Module):
    """Velocities (B, 2), computed from the tip's position (B, 2) and, with an encoder, the camera's tokens."""

    def __init__(self, encoder: CameraEncoder | None) -> None:
        super().__init__()
        self.head = encoder.head("top") if encoder else None
        seen = encoder.width * encoder.slices["top"].stop if encoder else 0
        self.mlp = nn.Sequential(nn.Linear(2 + seen, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 2))

    def forward(self, tip: Tensor, seen: CameraTokens | None) -> Tensor:
        return self.mlp(tip if seen is None else torch.cat([tip, seen.tokens.flatten(1)], dim=1))


def evaluate(act: Callable[[Scenes, np.ndarray], np.ndarray], episodes: int, film: Path) -> int:
    """Return how many new scenes are solved. `act` gives the velocities of some scenes by their numbers."""
    scenes, frames = Scenes(episodes, np.random.default_rng(1)), []
    done = scenes.reached
    for _ in range(LIMIT):
        frames.append(scenes.draw(0, scale=4))
        velocities, active = np.zeros_like(scenes.tip), np.flatnonzero(~done)
        if len(active):
            velocities[active] = act(scenes, active)
        scenes.move(velocities)
        done |= scenes.reached
    frames[0].save(film, save_all=True, append_images=frames[1:], duration=120)
    return int(done.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the films")
    parser.add_argument("--backbone", default="nano", help="as for load_backbone (default: nano)")
    parser.add_argument(
        "--head",
        default="spatial_softmax",
        help="head that encodes the image, such as map_pool or policy_neck (default: %(default)s)",
    )
    parser.add_argument(
        "--demonstrations",
        type=int,
        default=1500,
        help="images to learn from, each with the velocity that the expert chooses (default: %(default)s)",
    )
    parser.add_argument("--steps", type=int, default=1500, help="training steps (default: %(default)s)")
    parser.add_argument("--episodes", type=int, default=200, help="new scenes to evaluate on (default: %(default)s)")
    arguments = parser.parse_args()

    backbone = freeze(load_backbone(arguments.backbone))
    torch.manual_seed(0)
    head = create_head(arguments.head, backbone.spec, norm=backbone.spec.has_norm)
    encoder = CameraEncoder({"top": (SIZE, SIZE)}, backbone, head)

    def look(scenes: Scenes, which: Iterable[int]) -> Tensor:
        return torch.stack([backbone.preprocess(scenes.draw(i), resolution=SIZE) for i in which])

    shown = Scenes(arguments.demonstrations, np.random.default_rng(0))
    tip, velocity = (torch.tensor(x, dtype=torch.float32) for x in (shown.tip, shown.expert()))
    batches = torch.arange(len(tip)).split(BATCH)
    kept = [encoder.features({"top": look(shown, rows.tolist())}) for rows in batches]  # once, for all steps
    for name, sees in {"with vision": True, "without vision": False}.items():
        policy = Policy(encoder if sees else None)

        def loss(step: int, policy: Policy = policy, sees: bool = sees) -> Tensor:
            i = step % len(batches)
            seen = encoder.tokens(kept[i]) if sees else None
            return F.mse_loss(policy(tip[batches[i]], seen), velocity[batches[i]])

        @torch.inference_mode()
        def act(scenes: Scenes, which: np.ndarray, policy: Policy = policy, sees: bool = sees) -> np.ndarray:
            seen = encoder({"top": look(scenes, which)}) if sees else None
            return policy(torch.tensor(scenes.tip[which], dtype=torch.float32), seen).numpy()

        settings, out = Settings(arguments.steps, lr=2e-3), arguments.out / name.replace(" ", "-")
        fit(policy, head_groups(policy, settings), int, loss, settings, out)
        reached = evaluate(act, arguments.episodes, out.with_suffix(".gif"))
        low, high = accuracy_interval(reached, arguments.episodes)
        rate = f"{reached / arguments.episodes:.1%} of {arguments.episodes} episodes"
        print(f"{name}: reached in {rate} (95% interval {low:.1%} to {high:.1%})")


if __name__ == "__main__":
    main()
