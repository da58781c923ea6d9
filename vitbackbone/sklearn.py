"""The scikit-learn transformer from images to features.

Axes: `N` images, `F` features, `D` width of the backbone, `H W` pixels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from os import PathLike
from typing import Any, no_type_check

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from torch import Tensor

from vitbackbone.contract import (
    Backbone,
    BackboneModule,
    BackboneSpec,
    Features,
    device_of,
    evaluating,
    pool_cls,
    pool_mean,
)
from vitbackbone.images import Resolution, prepare_images

Images = Any  # a sequence of images; a column of pandas is one too, but no `Sequence`


def _cls_mean(*features: Features) -> Tensor:
    return torch.cat([*(pool_cls(each) for each in features), pool_mean(features[-1])], dim=1)


@dataclass(frozen=True)
class _Pooling:
    pool: Callable[..., Tensor]  # takes the features of each layer
    layers: int = 1  # how many layers are read, up to the requested one


POOLINGS = {
    "cls": _Pooling(pool_cls),
    "mean": _Pooling(pool_mean),
    "cls+mean": _Pooling(_cls_mean),
    "4cls+mean": _Pooling(_cls_mean, layers=4),
    "pooled": _Pooling(lambda features: features.pooled),
    "tokens": _Pooling(lambda features: features.tokens),
}


@no_type_check  # at run time: `fit` and `transform` refuse wrong arguments with errors of their own
class ImageFeatures(TransformerMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """A scikit-learn transformer from images to the features of a frozen backbone.

    It learns nothing, so `transform` needs no `fit`.

    `model`: a name as for `load_backbone`, or a backbone. A named backbone is loaded on first use and is left out of
    pickles. The last two stay in memory and are shared, so that the clones of a grid search do not load it again. A
    given backbone runs on its own device and gets its training mode back; cloning the estimator copies it.
    `pooling`: `"cls"`; `"mean"` of the patches; `"cls+mean"`, both in this order; `"4cls+mean"`, CLS of the last four
    layers up to `layer`, then the mean; or `"pooled"`, the checkpoint's own pooling. DINOv2's linear classifiers use
    the third or the fourth (facebookresearch/dinov2, eval/linear.py). `"tokens"` keeps the patches as (T, D), for
    `heads.AttentiveProbe`.
    `layer`: index of a block, negative from the end. The final norm is applied to it, if the checkpoint has one.
    `resolution`: input size in pixels, a side or (H, W); by default the checkpoint's own.
    `batch_size`: how many images are read and run at a time.
    `device`: where a named backbone runs.
    `max_pixels`: the most pixels that a photo may have; `PIL.Image.MAX_IMAGE_PIXELS` by default.

    Images are a sequence of image sources as for `Preprocess`, which may be mixed: paths, PIL images, the bytes of
    files, file objects, uint8 arrays (H, W, 3) or (H, W), uint8 tensors (3, H, W). They may also be one uint8 array
    (N, H, W, 3) or (N, H, W), or one uint8 tensor (N, 3, H, W). Floats are refused, because their range is unknown.
    Each image is prepared by `backbone.preprocess`.
    """

    def __init__(
        self,
        model: str | PathLike[str] | Backbone = "nano",
        pooling: str = "cls",
        layer: int = -1,
        resolution: Resolution | None = None,
        batch_size: int = 32,
        device: str = "cpu",
        max_pixels: int | None = None,
    ) -> None:
        self.model = model
        self.pooling = pooling
        self.layer = layer
        self.resolution = resolution
        self.batch_size = batch_size
        self.device = device
        self.max_pixels = max_pixels

    def fit(self, X: Images, y: object = None) -> "ImageFeatures":
        """Check the parameters and the type of `X`. Reads no image. Raises `ValueError` if one is wrong."""
        self._check(X)
        return self

    def transform(self, X: Images) -> NDArray[np.float32]:
        """Return the features (N, F) in float32. For `"tokens"` they are (N, T, D).

        F is D, 2 D for `"cls+mean"`, 5 D for `"4cls+mean"`, and the width of the checkpoint's pooling for `"pooled"`.
        Raises `ValueError` on wrong parameters, and on an image that cannot be read, naming it.
        """
        self._check(X)
        backbone = self._backbone()
        device = device_of(backbone) or torch.device(self.device)
        layers = self._layers(backbone.spec)
        batches = []
        images = list(X)
        with evaluating(backbone):
            for start in range(0, len(images), self.batch_size):
                batch = images[start : start + self.batch_size]
                made = prepare_images(backbone.preprocess, batch, self.resolution, False, self.max_pixels, first=start)
                inputs = [image.to(device) for image in made]
                given = torch.stack(inputs) if len({image.shape for image in inputs}) == 1 else inputs
                features = backbone.forward_layers(given, layers, norm=backbone.spec.norms(layers))
                batches.append(POOLINGS[self.pooling].pool(*features).float().cpu().numpy())
        return np.concatenate(batches)

    def get_feature_names_out(self, input_features: object = None) -> NDArray[np.object_]:
        """Return the name of each feature, (F,): `cls0`, `cls1`, ..., `mean0`, ..., or `layer8.cls0` of several layers.

        Loads the backbone. Raises `ValueError` for `"tokens"`, which have no columns.
        """
        if self.pooling == "tokens":
            raise ValueError('ImageFeatures(pooling="tokens") returns (N, T, D), which has no columns to name')
        spec = self._backbone().spec
        layers = self._layers(spec)
        first, *rest = self.pooling.split("+")
        parts = [*([first] if len(layers) == 1 else [f"layer{layer}.cls" for layer in layers]), *rest]
        widths = [spec.pooled_dims[layers[-1]]] if first == "pooled" else [spec.dims[i] for i in [*layers, layers[-1]]]
        sized = zip(parts, widths, strict=False)  # the mean is of the last layer
        return np.array([f"{part}{i}" for part, width in sized for i in range(width)], dtype=object)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        tags.transformer_tags.preserves_dtype = []  # float32, whatever comes in
        return tags

    def _backbone(self) -> Backbone:
        return _load(str(self.model), self.device) if isinstance(self.model, str | PathLike) else self.model

    def _layers(self, spec: BackboneSpec) -> list[int]:
        """Return the 0-based layers that the pooling reads."""
        (last,), count = spec.indices([self.layer]), POOLINGS[self.pooling].layers
        if last + 1 < count:
            raise ValueError(
                f"ImageFeatures: pooling={self.pooling!r} reads {count} layers, but {spec.name} has only {last + 1} "
                f"up to layer {last}; want a deeper layer"
            )
        return list(range(last + 1 - count, last + 1))

    def _check(self, X: Images) -> None:
        if self.pooling not in POOLINGS:
            raise ValueError(f"ImageFeatures: pooling={self.pooling!r}; want one of {', '.join(POOLINGS)}")
        for name, value in (("batch_size", self.batch_size), ("max_pixels", self.max_pixels)):
            if value is not None and value < 1:
                raise ValueError(f"ImageFeatures: {name} must be at least 1, got {value}")
        wanted = (
            "want a sequence of paths, PIL images, bytes, uint8 arrays or uint8 tensors; or one uint8 array "
            "(N, H, W, 3) or (N, H, W), or one uint8 tensor (N, 3, H, W)"
        )
        if isinstance(X, str | bytes | bytearray | PathLike | Image.Image) or not hasattr(X, "__len__"):
            raise ValueError(f"X is one {type(X).__name__}; {wanted}")
        if len(X) == 0:
            raise ValueError(f"X is empty; {wanted}")
        channels = 3 if isinstance(self.model, str | PathLike) else self.model.spec.in_chans
        if channels not in (1, 3) and isinstance(X, Tensor | np.ndarray) and _of_pixels(X):
            found = X.shape[1 if isinstance(X, Tensor) else -1] if X.ndim == 4 else None
            if found != channels:
                kind = "a tensor (N, C, H, W)" if isinstance(X, Tensor) else "an array (N, H, W, C)"
                raise ValueError(f"X has shape {tuple(X.shape)}; want {kind} of {channels} channels")
            return
        if isinstance(X, np.ndarray) and X.dtype.kind not in "OU":  # these hold paths, or images of several sizes
            one_image = X.ndim == 3 and X.shape[-1] == 3
            if X.dtype != np.uint8 or X.ndim not in (3, 4) or one_image:
                raise ValueError(f"X is an array of {X.dtype} {X.shape}; {wanted}. One image goes into a list")
        if isinstance(X, Tensor) and (X.dtype != torch.uint8 or X.ndim != 4 or X.shape[1] not in (1, 3)):
            raise ValueError(f"X is a tensor of {X.dtype} {tuple(X.shape)}; {wanted}. One image goes into a list")


def _of_pixels(X: Tensor | NDArray[Any]) -> bool:
    """Tell whether an array holds pixels. Others hold paths, or images of several sizes."""
    return isinstance(X, Tensor) or X.dtype.kind not in "OU"


@lru_cache(maxsize=2)  # two backbones to compare; each may take gigabytes
def _load(name: str, device: str) -> BackboneModule:
    from vitbackbone.checkpoints import load_backbone

    return load_backbone(name).to(device).eval()
