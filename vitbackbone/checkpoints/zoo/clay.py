"""Clay v1.5 (Clay Foundation 2024), a backbone for images of any satellite, in the authors' file.

A row is a satellite of its `configs/metadata.yaml`. Others take `wavelengths=` and their own means and deviations.
"""

from dataclasses import dataclass, replace

from vitbackbone.checkpoints.zoo.entry import Entry, evaluation
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD
from vitbackbone.model import ViTConfig, vit_config


@dataclass(frozen=True)
class Sensor:
    """The bands of a satellite's images: the side of a pixel in metres, and values in the units of its product."""

    metres: float
    wavelengths: tuple[float, ...]  # micrometres
    mean: tuple[float, ...]
    std: tuple[float, ...]


_LANDSAT = (0.65, 0.56, 0.48, 0.86, 1.6, 2.2)
SENSORS: dict[str, Sensor] = {
    "sentinel_2_l2a": Sensor(  # blue, green, red, red edge 1 to 3, two of near infrared, two of short-wave infrared
        10.0,
        (0.493, 0.56, 0.665, 0.704, 0.74, 0.783, 0.842, 0.865, 1.61, 2.19),
        (1105.0, 1355.0, 1552.0, 1887.0, 2422.0, 2630.0, 2743.0, 2785.0, 2388.0, 1835.0),
        (1809.0, 1757.0, 1888.0, 1870.0, 1732.0, 1697.0, 1742.0, 1648.0, 1470.0, 1379.0),
    ),
    "landsat_c2l1": Sensor(  # red, green, blue, near infrared, two of short-wave infrared
        30.0,
        _LANDSAT,
        (10678.0, 10563.0, 11083.0, 14792.0, 12276.0, 10114.0),
        (6025.0, 5411.0, 5468.0, 6746.0, 5897.0, 4850.0),
    ),
    "landsat_c2l2": Sensor(  # the same bands as surface reflectance
        30.0,
        _LANDSAT,
        (13705.0, 13310.0, 12474.0, 17801.0, 14615.0, 12701.0),
        (9578.0, 9408.0, 10144.0, 8277.0, 5300.0, 4522.0),
    ),
    "naip": Sensor(  # red, green, blue, near infrared
        1.0, (0.65, 0.56, 0.48, 0.842), (110.16, 115.41, 98.15, 139.04), (47.23, 39.82, 35.43, 49.86)
    ),
    "linz": Sensor(0.5, (0.635, 0.555, 0.465), (89.96, 99.46, 89.51), (41.83, 36.96, 31.45)),  # red, green, blue
    "sentinel_1_rtc": Sensor(10.0, (3.5, 4.0), (-12.113, -18.673), (8.314, 8.017)),  # vv, vh: stand-ins upstream
}
_FILE = "https://huggingface.co/made-with-clay/Clay/resolve/main/v1.5/clay-v1.5.ckpt"


def _clay(sensor: Sensor) -> Entry:
    config: ViTConfig = vit_config(
        "L/8",
        256,
        channels=len(sensor.wavelengths),
        wavelengths=sensor.wavelengths,
        position="ground",
        metres=sensor.metres,
        qkv_bias="none",
        proj_bias=False,
        norm_eps=1e-5,
    )
    preprocess = replace(evaluation(256, 1.0, IMAGENET_MEAN, IMAGENET_STD), mean=sensor.mean, std=sensor.std, scale=1.0)
    return Entry(config, "clay", preprocess, "apache-2.0", _FILE, on_hub=False)


CLAY: dict[str, Entry] = {f"clay_v1_5.{name}": _clay(sensor) for name, sensor in SENSORS.items()}
