"""TerraMind 1.0 (Jakubik et al. 2025), an encoder for several kinds of satellite images, in the authors' files.

A row reads one kind of image, as upstream does with one modality. Several kinds together have no row.
"""

from dataclasses import replace
from typing import Any

from vitbackbone.checkpoints.huggingface import PLAIN
from vitbackbone.checkpoints.zoo.entry import Entry, evaluation
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD
from vitbackbone.model import vit_config

_SWIGLU: dict[str, Any] = {"mlp": "swiglu", "qkv_bias": "none", "proj_bias": False, "mlp_bias": False}
#    size    variant  settings
_SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("Ti/16", {}),
    "small": ("S/16", {}),
    "base": ("B/16", {**_SWIGLU, "mlp_dim": 2048}),
    "large": ("L/16", {**_SWIGLU, "mlp_dim": 2730}),
}

# Means and deviations of the channels, from terratorch's terramind_register.py: reflectance times 10,000 of all bands
# of Sentinel-2 in order (L2A lacks the cirrus band), bytes of red, green and blue, decibels of VV and VH, and metres
_KINDS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "sentinel_2_l2a": (
        (1390.458, 1503.317, 1718.197, 1853.91, 2199.1, 2779.975, 2987.011, 3083.234, 3132.22, 3162.988, 2424.884,
         1857.648),
        (2106.761, 2141.107, 2038.973, 2134.138, 2085.321, 1889.926, 1820.257, 1871.918, 1753.829, 1797.379, 1434.261,
         1334.311),
    ),
    "sentinel_2_l1c": (
        (2357.089, 2137.385, 2018.788, 2082.986, 2295.651, 2854.537, 3122.849, 3040.56, 3306.481, 1473.847, 506.07,
         2472.825, 1838.929),
        (1624.683, 1675.806, 1557.708, 1833.702, 1823.738, 1733.977, 1732.131, 1679.732, 1727.26, 1024.687, 442.165,
         1331.411, 1160.419),
    ),
    "sentinel_2_rgb": ((87.271, 80.931, 66.667), (58.767, 47.663, 42.631)),
    "sentinel_1_grd": ((-12.599, -20.293), (5.195, 5.89)),
    "sentinel_1_rtc": ((-10.93, -17.329), (4.391, 4.459)),
    "dem": ((670.665,), (951.272,)),
}  # fmt: skip
_FILES = "https://huggingface.co/ibm-esa-geospatial/TerraMind-1.0-{0}/resolve/main/TerraMind_v1_{0}.pt"


def _terramind(size: str, kind: str) -> Entry:
    (variant, settings), (mean, std) = _SIZES[size], _KINDS[kind]
    config = vit_config(variant, channels=len(mean), cls=False, pool="mean", resampling=PLAIN, **settings)
    preprocess = replace(evaluation(224, 1.0, IMAGENET_MEAN, IMAGENET_STD), mean=mean, std=std, scale=1.0)
    return Entry(config, f"terramind_{kind}", preprocess, "apache-2.0", _FILES.format(size), on_hub=False)


TERRAMIND: dict[str, Entry] = {
    f"terramind_v1_{size}.{kind}": _terramind(size, kind) for size in _SIZES for kind in _KINDS
}
