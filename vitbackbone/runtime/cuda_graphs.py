"""CUDA graphs: the kernels for one shape of images are recorded once and then replayed by a single call.
With few images, the CPU takes longer to launch the kernels of a ViT one by one than the GPU takes to run them.

Axes: `B` batch, `D` width.
"""

import torch
from torch import Tensor

from vitbackbone.contract import Asked, Geometry, Images
from vitbackbone.model import Tokens, ViT, rotary_table
from vitbackbone.runtime.kernels import FastLinear

Key = tuple[object, ...]

PIXELS = 2**21  # largest batch, 41 images at 224: in larger ones the kernels take longer than their launches
SHAPES = 8  # recordings that are kept; each holds the memory of its tokens


class Recording:
    """The recorded kernels that turn images of one shape into tokens."""

    def __init__(self, vit: ViT, images: Tensor, geometry: Geometry, asked: Asked) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.images = images.clone()

            def run() -> Tokens:
                return vit.tokens(self.images, geometry, asked)

            self.tables = _tables(vit, geometry, images.device)  # kept: a replay reads their memory
            current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                run()  # a first call compiles kernels, for example, which must not be recorded
            current.wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            # Other threads may use the GPU meanwhile, such as one that pins memory.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.tokens = run()

    def __call__(self, images: Tensor) -> Tokens:
        with torch.inference_mode(False), torch.no_grad():
            self.images.copy_(images)
            self.graph.replay()
        return {each: x.clone() for each, x in self.tokens.items()}  # the next replay writes over them


class Recordings:
    """An engine that records `ViT.tokens` when a shape of images comes for the second time, and replays it afterwards.

    Images of several sizes, large batches and calls that need gradients are not recorded. A recording belongs to one
    CUDA stream. The recordings of the latest `SHAPES` shapes are kept.
    """

    def __init__(self) -> None:
        self.recordings: dict[Key, Recording | None] = {}  # None: seen once
        self.linears: list[FastLinear] | None = None

    def __call__(self, vit: ViT, images: Images, geometry: Geometry, asked: Asked) -> Tokens:
        if not isinstance(images, Tensor) or not _worthwhile(images):
            return vit.tokens(images, geometry, asked)
        if self.linears is None:
            self.linears = [module for module in vit.modules() if isinstance(module, FastLinear)]
        for linear in self.linears:  # a replay does not call them
            linear.check(images)
        key = (images.shape, images.dtype, images.device, frozenset(asked.wanted), asked.part, _stream())
        if key not in self.recordings:
            self.recordings[key] = None
            while len(self.recordings) > SHAPES:
                self.recordings.pop(next(iter(self.recordings)))
            return vit.tokens(images, geometry, asked)
        recording = self.recordings[key]
        if recording is None:
            recording = self.recordings[key] = Recording(vit, images, geometry, asked)
        return recording(images)


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def _worthwhile(images: Tensor) -> bool:
    learns = torch.is_grad_enabled() and images.requires_grad
    return images.is_cuda and images.numel() <= 3 * PIXELS and not learns and not torch.is_autocast_enabled("cuda")


def _tables(vit: ViT, geometry: Geometry, device: torch.device) -> list[Tensor]:
    """Return the position table and the table of rotary angles that the blocks read."""
    config, grid = vit.config, geometry.grid
    tables = [] if vit.pos_embed is None else [vit.pos_embed(grid, None, geometry.steps or 1)]
    if config.rotary is not None:
        tables.append(rotary_table(config.rotary, config.head_width, grid, device, geometry.steps or 1))
    return tables
