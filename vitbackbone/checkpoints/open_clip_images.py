"""The image tower of an `open_clip_config.json`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.huggingface import Depth, Epsilon, Width
from vitbackbone.checkpoints.huggingface.records import LARGEST, Pair, Side
from vitbackbone.checkpoints.open_clip import ActivationOptions, NormOptions, OpenClip, activation
from vitbackbone.checkpoints.shards import FindFile
from vitbackbone.checkpoints.timm_directory import TimmDirectory
from vitbackbone.checkpoints.zoo import ZOO, Entry
from vitbackbone.files import SHORT, Record, check_record, read_json
from vitbackbone.images import CLIP_MEAN, CLIP_STD, Preprocess
from vitbackbone.model import Pool, Resampling, ViTConfig

POOLS: dict[str, Pool] = {"token": "cls", "avg": "mean", "map": "map"}
RESIZED = Resampling("bicubic", antialias=True)  # open_clip, model.py, `resize_pos_embed`


def _triple(value: Any) -> Any:
    return (value,) * 3 if isinstance(value, int | float) else tuple(value) if isinstance(value, list) else value


Three = Annotated[tuple[float, float, float], BeforeValidator(_triple)]


class VisionRecord(Record):
    """`vision_cfg`, with the defaults of open_clip's `CLIPVisionCfg`."""

    layers: Depth = 12
    width: Width = 768
    head_width: Annotated[int, Field(ge=1, le=1 << 14)] = 64
    mlp_ratio: Annotated[float, Field(gt=0, le=100)] = 4.0
    patch_size: Side = 16
    image_size: Pair = (224, 224)
    ls_init_value: float | None = None
    no_ln_pre: bool = False
    final_ln_after_pool: bool = False
    pool_type: Literal["tok", "avg"] = "tok"
    act_kwargs: ActivationOptions | None = None
    norm_kwargs: NormOptions | None = None
    timm_model_name: str | None = None
    timm_pool: str = "avg"
    timm_proj: Literal["", "linear", "none"] | None = "linear"
    timm_proj_bias: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "VisionRecord":
        if self.width % self.head_width:
            raise ValueError(f"width={self.width}, which head_width={self.head_width} does not divide")
        if self.layers * self.width**2 * (4 + 2 * self.mlp_ratio) > LARGEST:
            raise ValueError(f"layers={self.layers} and width={self.width}, more parameters than any model has")
        return self


class _Preprocessing(Record):
    mean: Three = CLIP_MEAN
    std: Three = CLIP_STD
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"


class _Whole(Record):
    preprocess_cfg: _Preprocessing = Field(default_factory=_Preprocessing)


# Settings of `vision_cfg` that build another network than `ViT`
UNKNOWN = (
    *("attentional_pool", "block_type", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner"),
    *("scale_attn", "scale_fc"),
)


class OpenClipDirectory:
    """A directory or repository as open_clip writes it. Its image tower is a Vision Transformer of its own or of timm.

    Raises `ValueError` that names the file and the setting, if the tower is another.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, file: Path, find_file: FindFile) -> None:
        self.file, self.find_file = file, find_file
        self.model = read_json(file, OpenClip).model_cfg
        for name in UNKNOWN:
            if self.model.vision_cfg.get(name):
                raise ValueError(f"{file} has vision_cfg.{name}={SHORT.repr(self.model.vision_cfg[name])}")
        given = {key: value for key, value in self.model.vision_cfg.items() if value is not None or key == "timm_proj"}
        self.vision = check_record(given, VisionRecord, str(file), "model_cfg.vision_cfg")

    def entry(self, tower: str | None = None) -> Entry:
        """Return the entry of the image tower, without the weights."""
        config, layout = self._of_timm() if self.vision.timm_model_name else (self._own(), "open_clip_vit")
        settings = read_json(self.file, _Whole).preprocess_cfg
        preprocess = Preprocess(
            image_size=self.vision.image_size,
            crop_pct=1.0,
            crop_mode="squash" if settings.resize_mode == "squash" else "center",
            interpolation="bilinear" if settings.interpolation == "bilinear" else "bicubic",
            mean=settings.mean,
            std=settings.std,
        )
        return Entry(config, layout, preprocess, "", str(self.file.parent), on_hub=False)

    def _own(self) -> ViTConfig:
        vision = self.vision
        late = vision.pool_type == "avg" and vision.final_ln_after_pool
        eps: Epsilon = vision.norm_kwargs.eps if vision.norm_kwargs else NormOptions().eps
        height, width = (side // vision.patch_size * vision.patch_size for side in vision.image_size)
        return ViTConfig(
            image_size=(height, width),
            patch_size=vision.patch_size,
            dim=vision.width,
            depth=vision.layers,
            num_heads=vision.width // vision.head_width,
            mlp_dim=int(vision.width * vision.mlp_ratio),
            mlp=activation(self.model.quick_gelu, vision.act_kwargs),
            patch_bias=False,
            pre_norm=not vision.no_ln_pre,
            resampling=RESIZED,
            layer_scale=vision.ls_init_value is not None,
            norm_eps=eps,
            final_norm=not late,
            fc_norm=late,
            pool="cls" if vision.pool_type == "tok" else "mean",
            projection_dim=self.model.embed_dim,
        )

    def _of_the_zoo(self) -> Entry | None:
        """Return the entry of the same architecture and pooling that is known by name, or None."""
        pool = POOLS.get(self.vision.timm_pool)
        for name, entry in ZOO.items():
            same = name.partition(".")[0] == self.vision.timm_model_name
            if same and isinstance(entry.config, ViTConfig) and entry.config.pool == pool:
                return entry
        return None

    def _of_timm(self) -> tuple[ViTConfig, str]:
        vision, name = self.vision, self.vision.timm_model_name
        # With a projection of its own, open_clip builds the network with timm's pooling and then sets another one
        own = vision.timm_proj == "linear"
        arguments = {} if own else {"global_pool": vision.timm_pool}
        saved = {"architecture": name, "model_args": arguments}
        found = TimmDirectory(self.file.parent, saved, self.find_file).entry()
        if not isinstance(found.config, ViTConfig):
            found = self._of_the_zoo() or found
        layout = f"open_clip {found.format}"
        if not isinstance(found.config, ViTConfig) or layout not in FORMATS:
            raise ValueError(
                f"{self.file} has vision_cfg.timm_model_name={SHORT.repr(name)}, an image tower whose projection is "
                f"not known here; timm:{name} loads it without one"
            )
        if vision.timm_proj == "none":
            return replace(found.config, projection_dim=0), layout
        bias = vision.timm_proj_bias if own else True  # timm's head has a bias
        config = replace(found.config, projection_dim=self.model.embed_dim, projection_bias=bias)
        return replace(config, pool=POOLS.get(vision.timm_pool, config.pool)) if own else config, layout
