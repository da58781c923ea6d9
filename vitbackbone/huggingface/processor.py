"""`preprocessor_config.json` to and from `Preprocess`, and the defaults of transformers' image processors."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from vitbackbone.huggingface.fields import Json, get, sides
from vitbackbone.preprocess import CLIP_MEAN, CLIP_STD, HALF, IMAGENET_MEAN, IMAGENET_STD, Preprocess
from vitbackbone.resize import Interpolation

VIT_EVAL = Preprocess((224, 224), 1.0, "squash", "bilinear", HALF, HALF, crop_rounding="down")
DEIT_EVAL = Preprocess((224, 224), 224 / 256, "squash", "bicubic", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down")
DINOV2_EVAL = replace(DEIT_EVAL, crop_mode="center")
DINOV3_EVAL = replace(VIT_EVAL, mean=IMAGENET_MEAN, std=IMAGENET_STD)
SIGLIP_EVAL = replace(VIT_EVAL, interpolation="bicubic")
CLIP_EVAL = Preprocess((224, 224), 1.0, "center", "bicubic", CLIP_MEAN, CLIP_STD, crop_rounding="down")
SWIN_EVAL = replace(SIGLIP_EVAL, mean=IMAGENET_MEAN, std=IMAGENET_STD)
# transformers pads SAM's photos at the right and bottom instead
SAM_EVAL = Preprocess((1024, 1024), 1.0, "squash", "bilinear", IMAGENET_MEAN, IMAGENET_STD)

# PIL.Image.Resampling, as the files number it
RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}


def read_preprocess(processor: Json, default: Preprocess) -> Preprocess:
    """The settings of a `preprocessor_config.json`; `default` is its model type's.

    `size` is {height, width}, {shortest_edge}, or a number, which means what the model type's processor does with it.
    Raises `ValueError` on a setting that cannot be followed.
    """
    for key, wanted in {"do_resize": True, "do_rescale": True, "rescale_factor": 1 / 255}.items():
        if abs(get(processor, key, wanted) - wanted) > 1e-6:
            raise ValueError(f"preprocessor_config.json has {key}={processor[key]}; only {wanted} is supported")
    size = get(processor, "size", None)
    crop_mode = default.crop_mode
    if size is None:
        resized = default.scaled(default.image_size)
    elif isinstance(size, Mapping) and "longest_edge" in size:
        raise ValueError(
            f"preprocessor_config.json has size={dict(size)}, which pads at the right and bottom: not supported. Take "
            "a directory without that file, or an authors' or timm's name of the model"
        )
    elif isinstance(size, Mapping) and "shortest_edge" in size:
        resized, crop_mode = sides(size["shortest_edge"]), "center"
        if processor.get("do_center_crop") is False:
            raise ValueError(
                "preprocessor_config.json keeps the aspect and crops nothing, so that every photo has its own size; "
                "want do_center_crop=true. `preprocess(photo, keep_aspect=True)` does the other"
            )
    else:
        resized = sides(size)
        if isinstance(size, Mapping):
            crop_mode = "squash"
    image_size = resized
    if get(processor, "do_center_crop", default.crop_pct < 1):
        image_size = sides(get(processor, "crop_size", default.image_size))
    if image_size[0] * resized[1] != image_size[1] * resized[0] or image_size[0] > resized[0]:
        raise ValueError(
            f"preprocessor_config.json crops {image_size} from {resized}; want the same shape, and smaller"
        )
    resample = get(processor, "resample", None)
    if resample is not None and resample not in RESAMPLE:
        raise ValueError(f"preprocessor_config.json has resample={resample}; want one of {RESAMPLE}")
    normalise = get(processor, "do_normalize", True)
    return replace(
        default,
        image_size=image_size,
        crop_pct=image_size[0] / resized[0],
        crop_mode=crop_mode,
        interpolation=default.interpolation if resample is None else RESAMPLE[resample],
        mean=tuple(get(processor, "image_mean", default.mean)) if normalise else (0.0, 0.0, 0.0),
        std=tuple(get(processor, "image_std", default.std)) if normalise else (1.0, 1.0, 1.0),
    )


def write_preprocess(preprocess: Preprocess) -> dict[str, Any]:
    """A `preprocessor_config.json`, for the processor of transformers that does these steps."""
    resized = preprocess.scaled(preprocess.image_size)
    squash, crop = preprocess.crop_mode == "squash", resized != preprocess.image_size
    kind = ("DeiTImageProcessor" if crop else "ViTImageProcessor") if squash else "BitImageProcessor"
    return {
        "image_processor_type": kind,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": resized[0], "width": resized[1]} if squash else {"shortest_edge": resized[0]},
        "resample": next(number for number, name in RESAMPLE.items() if name == preprocess.interpolation),
        "do_center_crop": crop or not squash,
        "crop_size": {"height": preprocess.image_size[0], "width": preprocess.image_size[1]},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(preprocess.mean),
        "image_std": list(preprocess.std),
    }
