"""Kernels for images of another number of channels."""

import math

from jaxtyping import Float
from torch import Tensor


def inflate_kernel(kernel: Float[Tensor, "O C ..."], channels: int) -> Float[Tensor, "O N ..."]:
    """Fit a kernel of RGB images to `channels` channels, by timm's rule (`adapt_input_conv`).

    One channel has the sum of the three kernels. n channels repeat the kernels of red, green and blue, times 3 / n, so
    that the response to a grey image stays.
    """
    own = kernel.shape[1]
    if channels == 1:
        return kernel.sum(dim=1, keepdim=True)
    times = (1, math.ceil(channels / own), *(1,) * (kernel.ndim - 2))
    return kernel.repeat(times)[:, :channels] * (own / channels)
