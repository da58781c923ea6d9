"""CUDA graphs: what a GPU is told to do for one shape of images is recorded once and then replayed by a single call.
With few images the CPU takes longer to launch the kernels of a ViT one by one than the GPU to run them.

Axes: `B` batch, `D` width.
"""

from collections.abc import Callable, Set

import torch
from jaxtyping import Float
from torch import Tensor

from vitbackbone.features import Images, Wanted
from vitbackbone.kernels import FastLinear
from vitbackbone.position import rotary_table
from vitbackbone.vit import ViT

Compute = Callable[[], dict[Wanted, Tensor]]
Key = tuple[object, ...]

PIXELS = 2**21  # of a batch, 41 images at 224: with more, the kernels take longer than their launches
SHAPES = 8  # that are kept, as each keeps the memory of its tokens


class Recording:
    """The kernels that make tokens of images of one shape."""

    def __init__(self, vit: ViT, images: Tensor, wanted: Set[Wanted], prefix: bool) -> None:
        with torch.inference_mode(False), torch.no_grad():
            self.images = images.clone()

            def run() -> dict[Wanted, Tensor]:
                return vit.tokens(self.images, wanted, prefix)

            self.tables = _tables(vit, images)  # which is only asked for again: what is replayed reads their memory
            current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
            aside.wait_stream(current)
            with torch.cuda.stream(aside):
                run()  # what is made at the first call, such as a compiled kernel, is not to be recorded
            current.wait_stream(aside)
            self.graph = torch.cuda.CUDAGraph()
            # Other threads go on, such as one that pins memory.
            with torch.cuda.graph(self.graph, capture_error_mode="thread_local"):
                self.tokens = run()

    def __call__(self, images: Tensor) -> dict[Wanted, Float[Tensor, "B _ D"]]:
        with torch.inference_mode(False), torch.no_grad():
            self.images.copy_(images)
            self.graph.replay()
        return {each: x.clone() for each, x in self.tokens.items()}  # the next replay writes over them


class Recordings:
    """`ViT.tokens`, recorded for each shape of images the second time that it comes, and replayed from then on. Images
    of several sizes, large batches and all that takes gradients run as ever.

    The recordings are of one stream each, and of the latest `SHAPES` shapes.
    """

    def __init__(self) -> None:
        self.recordings: dict[Key, Recording | None] = {}  # None: seen once
        self.linears: list[FastLinear] | None = None

    def __call__(self, vit: ViT, images: Images, wanted: Set[Wanted], prefix: bool = False) -> dict[Wanted, Tensor]:
        if not isinstance(images, Tensor) or not _worthwhile(images):
            return vit.tokens(images, wanted, prefix)
        if self.linears is None:
            self.linears = [module for module in vit.modules() if isinstance(module, FastLinear)]
        for linear in self.linears:  # which a replay does not call
            linear.check(images)
        key = (images.shape, images.dtype, images.device, frozenset(wanted), prefix, _stream())
        if key not in self.recordings:
            self.recordings[key] = None
            while len(self.recordings) > SHAPES:
                self.recordings.pop(next(iter(self.recordings)))
            return vit.tokens(images, wanted, prefix)
        recording = self.recordings[key]
        if recording is None:
            recording = self.recordings[key] = Recording(vit, images, wanted, prefix)
        return recording(images)


def _stream() -> int:
    return torch.cuda.current_stream().cuda_stream


def _worthwhile(images: Tensor) -> bool:
    learns = torch.is_grad_enabled() and images.requires_grad
    return images.is_cuda and images.numel() <= 3 * PIXELS and not learns and not torch.is_autocast_enabled("cuda")


def _tables(vit: ViT, images: Tensor) -> list[Tensor]:
    """Of positions and of the angles that all blocks ask for."""
    config, size = vit.config, images.shape[-2:]
    grid = (-(-size[0] // config.patch_size), -(-size[1] // config.patch_size))
    tables = [] if vit.pos_embed is None else [vit.pos_embed(grid)]
    if config.rotary is not None:
        tables.append(rotary_table(config.rotary, config.dim // config.num_heads, grid, images.device))
    return tables
