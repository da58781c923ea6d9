"""JPEGs that a GPU decodes, whose pixels are nvJPEG's and not Pillow's.

torchvision lets nvJPEG enlarge the colours of a JPEG to the nearest pixel, where the decoders of the CPU interpolate.
So pixels beside a coloured edge differ by up to 45 of 255, and by about 1 on average.
"""

import torch
from jaxtyping import UInt8
from torch import Tensor

from vitbackbone.images.fast import JPEGS, Kind

DEVICE = "cuda"
END = b"\xff\xd9"  # ends a whole JPEG; a GPU may paint the rest of a truncated one grey without an error
PADDING = 4096  # bytes at the end of the file that are searched for it


def decode_on_gpu(data: bytes, kind: Kind, size: tuple[int, int]) -> UInt8[Tensor, "3 H W"] | None:
    """Decode a JPEG as it is stored, and return it in the memory of the CPU. Return None if the CPU must decode it.

    `size`: (H, W) by its header as Pillow reads it, checked against the limit of pixels.
    """
    if kind not in JPEGS or not data[-PADDING:].rstrip(b"\0").endswith(END):
        return None
    from torchvision.io import ImageReadMode, decode_jpeg

    try:
        picture = decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB, DEVICE).cpu()
    except RuntimeError:  # a file that nvJPEG does not take, such as one with arithmetic coding
        return None
    return picture if picture.shape[1:] == size else None
