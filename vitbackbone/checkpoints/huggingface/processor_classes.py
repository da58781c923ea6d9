"""The image processor classes of transformers: the settings that a `preprocessor_config.json` may leave out."""

from dataclasses import dataclass, field, replace
from typing import Any

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.images import (
    CLIP_MEAN,
    CLIP_STD,
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Interpolation,
    Preprocess,
    ResizeLibrary,
)

VIT_EVAL = Preprocess((224, 224), 1.0, "squash", "bilinear", HALF, HALF, crop_rounding="down")
DEIT_EVAL = Preprocess((224, 224), 224 / 256, "squash", "bicubic", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down")
DINOV2_EVAL = replace(DEIT_EVAL, crop_mode="center")
DINOV3_EVAL = replace(VIT_EVAL, mean=IMAGENET_MEAN, std=IMAGENET_STD, resampling="torchvision")
SIGLIP_EVAL = replace(VIT_EVAL, interpolation="bicubic")
CLIP_EVAL = Preprocess((224, 224), 1.0, "center", "bicubic", CLIP_MEAN, CLIP_STD, crop_rounding="down")
SWIN_EVAL = replace(SIGLIP_EVAL, mean=IMAGENET_MEAN, std=IMAGENET_STD)
SAM_EVAL = Preprocess((1024, 1024), 1.0, "pad", "bilinear", IMAGENET_MEAN, IMAGENET_STD, crop_rounding="down")

# PIL.Image.Resampling, as the files number it
RESAMPLE: dict[int, Interpolation] = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
BILINEAR, BICUBIC = 2, 3


@dataclass(frozen=True)
class Processor:
    """An image processor class of transformers: the defaults of the settings that a file may leave out."""

    resample: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: Any
    crop_size: Any = None
    do_center_crop: bool = False
    default_to_square: bool = True  # whether `size` as one number means a square or the shorter edge
    own: Json = field(default_factory=dict)  # settings that only this class has, with their defaults
    resampling: ResizeLibrary = "pillow"  # for files that do not name one
    rescaled: bool = False  # whether the network itself turns its input x into 2x - 1, which ours does not

    def defaults(self) -> dict[str, Any]:
        return {
            "resample": self.resample,
            "image_mean": self.mean,
            "image_std": self.std,
            "size": self.size,
            "crop_size": self.crop_size,
            "do_center_crop": self.do_center_crop,
            "default_to_square": self.default_to_square,
            "do_resize": True,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "do_pad": False,
            "pad_size": None,
            **self.own,
        }


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


_SHORT_224 = {"shortest_edge": 224}
_CLIP = Processor(BICUBIC, CLIP_MEAN, CLIP_STD, _SHORT_224, square(224), True, default_to_square=False)
_VIT = Processor(BILINEAR, HALF, HALF, square(224))
_DINOV3 = replace(_VIT, mean=IMAGENET_MEAN, std=IMAGENET_STD, resampling="torchvision")  # it has no other
_MASKS = {"mask_size": None, "mask_pad_size": None}
_SAM = {"do_pad": True, "pad_size": square(1024), "mask_size": None, "mask_pad_size": None}
_QWEN = {"min_pixels": None, "max_pixels": None, "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2}
_BOUNDS = {"shortest_edge": 56**2, "longest_edge": 28**2 * 1280}
_TILES = {
    "max_image_size": {"longest_edge": 364},
    "do_image_splitting": True,
    "do_pad": True,
    "return_row_col_info": False,
    "video_sampling": None,
}
_QWEN2_VL = Processor(BICUBIC, CLIP_MEAN, CLIP_STD, _BOUNDS, default_to_square=False, own=_QWEN)
_IDEFICS3 = Processor(1, HALF, HALF, {"longest_edge": 4 * 364}, default_to_square=False, own=_TILES)
_SOFT = {"patch_size": 16, "max_soft_tokens": 280, "pooling_kernel_size": 3}
_KIMI = {"max_patches": 16384, "patch_size": 14, "merge_size": 2}
_SQUARE_PATCH = {"patch_size": {"height": 16, "width": 16}, "do_pad": True, "pad_size": None}
_EDGES = {"shortest_edge": 378, "longest_edge": 980}
_NAFLEX = {"patch_size": 16, "max_num_patches": 256}
_EFFICIENTNET = {"rescale_offset": False, "include_top": True}

PROCESSORS: dict[str, Processor] = {
    "ViTImageProcessor": _VIT,
    "DeiTImageProcessor": Processor(BICUBIC, HALF, HALF, square(256), square(224), True),
    "BeitImageProcessor": Processor(BICUBIC, HALF, HALF, square(224), square(224)),
    "BitImageProcessor": _CLIP,
    "CLIPImageProcessor": _CLIP,
    "ChineseCLIPImageProcessor": _CLIP,
    "ViTHybridImageProcessor": _CLIP,
    "BlipImageProcessor": Processor(BICUBIC, CLIP_MEAN, CLIP_STD, square(384)),
    "SiglipImageProcessor": Processor(BICUBIC, HALF, HALF, square(224), default_to_square=False),
    "PvtImageProcessor": Processor(BICUBIC, IMAGENET_MEAN, IMAGENET_STD, square(224)),
    "LevitImageProcessor": replace(_CLIP, mean=IMAGENET_MEAN, std=IMAGENET_STD),
    "PoolFormerImageProcessor": replace(_CLIP, mean=IMAGENET_MEAN, std=IMAGENET_STD, own={"crop_pct": 0.9}),
    "ConvNextImageProcessor": Processor(
        BICUBIC, HALF, HALF, {"shortest_edge": 384}, default_to_square=False, own={"crop_pct": 224 / 256}
    ),
    "EfficientNetImageProcessor": Processor(BICUBIC, HALF, HALF, square(346), square(289), own=_EFFICIENTNET),
    "DINOv3ViTImageProcessor": _DINOV3,
    "Siglip2ImageProcessor": Processor(BILINEAR, HALF, HALF, None, own=_NAFLEX),
    "Qwen2VLImageProcessor": _QWEN2_VL,
    "Idefics3ImageProcessor": _IDEFICS3,
    "SmolVLMImageProcessor": _IDEFICS3,
    "Gemma4ImageProcessor": Processor(
        BICUBIC, HALF, HALF, None, own={**_SOFT, "do_normalize": False}, resampling="torchvision", rescaled=True
    ),
    "PixtralImageProcessor": Processor(BICUBIC, CLIP_MEAN, CLIP_STD, {"longest_edge": 1024}, own=_SQUARE_PATCH),
    "Kimi_K25ImageProcessor": Processor(
        BICUBIC, HALF, HALF, {"max_height": 512, "max_width": 512}, own=_KIMI, resampling="torchvision"
    ),
    "Llama4ImageProcessor": Processor(
        BILINEAR,
        HALF,
        HALF,
        square(336),
        own={"max_patches": 16, "resize_to_max_canvas": False},
        resampling="torchvision",
    ),
    "Idefics2ImageProcessor": Processor(
        BILINEAR, HALF, HALF, _EDGES, default_to_square=False, own={"do_image_splitting": False, "do_pad": True}
    ),
    "Tipsv2ImageProcessor": Processor(
        BILINEAR, HALF, HALF, square(448), own={"do_normalize": False}, resampling="torchvision"
    ),
    "Sam3ImageProcessor": Processor(BILINEAR, HALF, HALF, square(1008), own=_MASKS, resampling="torchvision"),
    "Sam2ImageProcessor": Processor(
        BILINEAR, IMAGENET_MEAN, IMAGENET_STD, square(1024), own=_MASKS, resampling="torchvision"
    ),
    "SamImageProcessor": Processor(BILINEAR, IMAGENET_MEAN, IMAGENET_STD, {"longest_edge": 1024}, own=_SAM),
}

# The class that transformers uses if a file names none, by the default preprocessing of the model type
UNNAMED: dict[Preprocess, str] = {
    VIT_EVAL: "ViTImageProcessor",
    SWIN_EVAL: "ViTImageProcessor",
    DEIT_EVAL: "DeiTImageProcessor",
    SIGLIP_EVAL: "BeitImageProcessor",  # SigLIP's differs only in the meaning of `size` as one number
    CLIP_EVAL: "CLIPImageProcessor",
    DINOV2_EVAL: "BitImageProcessor",
    DINOV3_EVAL: "DINOv3ViTImageProcessor",
    SAM_EVAL: "SamImageProcessor",
}

# Settings that change no pixel of an RGB photo
NO_EFFECT = {
    *("image_processor_type", "feature_extractor_type", "processor_class", "auto_map", "transformers_version"),
    *("_valid_processor_keys", "do_convert_rgb", "do_reduce_labels", "reduce_labels", "device", "return_tensors"),
    *("data_format", "input_data_format", "disable_grouping", "image_seq_length", "model_input_names", "use_fast"),
    *("num_channels", "name_or_path", "_name_or_path", "backend"),
}
