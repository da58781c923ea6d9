"""Backbones for satellite images, in the authors' files. All must be downloaded by hand.

Their images have more bands than three, in the units of the mean and deviation: surface reflectance times 10,000 for
Prithvi.
"""

from dataclasses import replace

from vitbackbone.checkpoints.huggingface import PLAIN
from vitbackbone.checkpoints.zoo.entry import Entry, evaluation
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitbackbone.model import Resampling, ViTConfig, vit_config

CORNERS = Resampling("bicubic", align_corners=True)  # terratorch, models/backbones/prithvi_mae.py

# Harmonised Landsat and Sentinel-2: blue, green, red, narrow near infrared, two of short-wave infrared
_MEAN_1, _STD_1 = (775.0, 1081.0, 1229.0, 2497.0, 2204.0, 1611.0), (1282.0, 1270.0, 1399.0, 1368.0, 1292.0, 1155.0)
_MEAN_2, _STD_2 = (1087.0, 1342.0, 1433.0, 2734.0, 1958.0, 1363.0), (2248.0, 2179.0, 2178.0, 1850.0, 1242.0, 1049.0)
#    name                    variant  mean     std     repository and file
_PRITHVI = {
    "prithvi_eo_v1_100": ("B/16", _MEAN_1, _STD_1, "Prithvi-EO-1.0-100M/resolve/main/Prithvi_EO_V1_100M.pt"),
    "prithvi_eo_v2_300": ("L/16", _MEAN_2, _STD_2, "Prithvi-EO-2.0-300M/resolve/main/Prithvi_EO_V2_300M.pt"),
    "prithvi_eo_v2_300_tl": ("L/16", _MEAN_2, _STD_2, "Prithvi-EO-2.0-300M-TL/resolve/main/Prithvi_EO_V2_300M_TL.pt"),
    "prithvi_eo_v2_600": ("H/14", _MEAN_2, _STD_2, "Prithvi-EO-2.0-600M/resolve/main/Prithvi_EO_V2_600M.pt"),
    "prithvi_eo_v2_600_tl": ("H/14", _MEAN_2, _STD_2, "Prithvi-EO-2.0-600M-TL/resolve/main/Prithvi_EO_V2_600M_TL.pt"),
}
_PRITHVI_FILES = "https://huggingface.co/ibm-nasa-geospatial"

#    name                      variant
_SATMAE = {"satmae_vit_base_patch8_96.fmow_sentinel": "B/8", "satmae_vit_large_patch8_96.fmow_sentinel": "L/8"}
_DOFA = {"dofa_vit_base_patch16_224": "B/16", "dofa_vit_large_patch16_224": "L/16"}
RED_GREEN_BLUE = (0.665, 0.56, 0.49)  # micrometres


def _prithvi(variant: str, mean: tuple[float, ...], std: tuple[float, ...], file: str) -> Entry:
    config = vit_config(variant, channels=6, tubelet=1, position="clips", resampling=CORNERS)
    preprocess = replace(evaluation(224, 1.0, IMAGENET_MEAN, IMAGENET_STD), mean=mean, std=std, scale=1.0)
    return Entry(config, "prithvi", preprocess, "apache-2.0", f"{_PRITHVI_FILES}/{file}", CORNERS, on_hub=False)


def _satmae(variant: str) -> Entry:
    """Return SatMAE of ten bands of Sentinel-2, in three groups. Its mean and deviation are not part of the weights.
    Normalise the images by the statistics of the data set, as the authors do."""
    config = vit_config(variant, 96, channels=10, channel_groups=3, position_steps=3, resampling=PLAIN)
    preprocess = Preprocess((96, 96), 1.0, "center", "bicubic", (0.0,) * 10, (1.0,) * 10, scale=1.0)
    source = "https://zenodo.org/record/7338613, pretrain-vit-SIZE-e199.pth"
    return Entry(config, "satmae_groups", preprocess, "cc-by-nc-4.0", source, on_hub=False)


def _dofa(variant: str) -> Entry:
    config: ViTConfig = vit_config(variant, patch_padding=1, wavelengths=RED_GREEN_BLUE, resampling=PLAIN, pool="mean")
    preprocess = evaluation(224, 1.0, IMAGENET_MEAN, IMAGENET_STD)
    source = "https://huggingface.co/earthflow/DOFA, DOFA_ViT_SIZE_e100.pth"
    return Entry(config, "dofa", preprocess, "cc-by-4.0", source, on_hub=False)


SATELLITES: dict[str, Entry] = {
    **{name: _prithvi(*row) for name, row in _PRITHVI.items()},
    **{name: _satmae(variant) for name, variant in _SATMAE.items()},
    **{name: _dofa(variant) for name, variant in _DOFA.items()},
}
