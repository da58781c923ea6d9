"""The mean corruption error of ImageNet-C (Hendrycks and Dietterich 2019)."""

from collections.abc import Mapping

# Mean error of AlexNet over the five severities (hendrycks/robustness, ImageNet-C/test.py).
ALEXNET = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
# The four kinds that only DINOv3's code averages too.
EXTRAS = {"speckle_noise": 0.845388, "gaussian_blur": 0.787108, "spatter": 0.717512, "saturate": 0.658248}


def corruption_errors(errors: Mapping[str, float], alexnet: Mapping[str, float]) -> dict[str, float]:
    """Return the error of each corruption, averaged over severities, divided by AlexNet's.

    Raises `ValueError` if a corruption is missing.
    """
    missing = [name for name in alexnet if name not in errors]
    if missing:
        raise ValueError(f"no error for {len(missing)} of {len(alexnet)} corruptions: {', '.join(missing)}")
    return {name: errors[name] / alexnet[name] for name in alexnet}


def mean_corruption_error(errors: Mapping[str, float], alexnet: Mapping[str, float] = ALEXNET) -> float:
    """Return the mCE: `corruption_errors` averaged. `errors` are fractions, by the name of the corruption."""
    each = corruption_errors(errors, alexnet)
    return sum(each.values()) / len(each)
