"""The image tower of an `open_clip_config.json`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.formats.open_clip import COCA_EPS
from vitbackbone.checkpoints.huggingface import Depth, Epsilon, Heads, Width
from vitbackbone.checkpoints.huggingface.records import LARGEST, Pair, Side
from vitbackbone.checkpoints.open_clip import ActivationOptions, NormOptions, OpenClip, activation
from vitbackbone.checkpoints.shards import FindFile
from vitbackbone.checkpoints.timm_directory import TimmDirectory
from vitbackbone.checkpoints.zoo import ZOO, Entry
from vitbackbone.files import SHORT, Record, check_record, read_json
from vitbackbone.images import CLIP_MEAN, CLIP_STD, Preprocess
from vitbackbone.model import Pool, Resampling, ViTConfig
from vitbackbone.networks import Projection, TimmConfig

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
    attentional_pool: bool = False
    attn_pooler_heads: Heads = 8
    pool_type: Literal["tok", "avg"] = "tok"
    act_kwargs: ActivationOptions | None = None
    norm_kwargs: NormOptions | None = None
    timm_model_name: str | None = None
    timm_pool: Annotated[str, Field(max_length=32)] = "avg"
    timm_proj: Literal["", "linear", "mlp", "none"] | None = "linear"
    timm_proj_bias: bool = False

    @model_validator(mode="after")
    def _fits(self) -> "VisionRecord":
        if self.timm_model_name and self.timm_pool in OPEN_CLIPS_OWN:
            raise ValueError(
                f"timm_pool='{self.timm_pool}', a pooling of open_clip's own that is not known here; want "
                "a pooling of timm"
            )
        if self.width % self.head_width:
            raise ValueError(f"width={self.width}, which head_width={self.head_width} does not divide")
        if self.layers * self.width**2 * (4 + 2 * self.mlp_ratio) > LARGEST:
            raise ValueError(f"layers={self.layers} and width={self.width}, more parameters than any model has")
        eps = self.norm_kwargs.eps if self.norm_kwargs else COCA_EPS
        if self.attentional_pool and (self.pool_type != "tok" or eps != COCA_EPS):
            raise ValueError(
                f"attentional_pool=true with pool_type='{self.pool_type}' and norm_kwargs.eps={eps}; want "
                f"'tok' and {COCA_EPS}"
            )
        return self


OPEN_CLIPS_OWN = ("abs_attn", "rot_attn")


class _Preprocessing(Record):
    mean: Three = CLIP_MEAN
    std: Three = CLIP_STD
    interpolation: Literal["bicubic", "bilinear", "random"] = "bicubic"
    resize_mode: Literal["shortest", "squash"] = "shortest"


class _Whole(Record):
    preprocess_cfg: _Preprocessing = Field(default_factory=_Preprocessing)


# Settings of `vision_cfg` that build another network than `ViT`
UNKNOWN = (
    *("block_type", "qk_norm", "scaled_cosine_attn", "scale_heads", "scale_attn_inner", "scale_attn", "scale_fc"),
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
        found = self._of_timm() if self.vision.timm_model_name else self._own()
        settings = read_json(self.file, _Whole).preprocess_cfg
        preprocess = Preprocess(
            image_size=self.vision.image_size,
            crop_pct=1.0,
            crop_mode="squash" if settings.resize_mode == "squash" else "center",
            interpolation="bilinear" if settings.interpolation == "bilinear" else "bicubic",
            mean=settings.mean,
            std=settings.std,
        )
        if isinstance(found.config, ViTConfig):
            preprocess = preprocess.in_patches(found.config.patch_size)
        elif isinstance(found.config, TimmConfig) and any(found.preprocess.unseen):
            preprocess = replace(preprocess, image_size=found.config.image_size, unseen=found.preprocess.unseen)
        source = str(self.file.parent)
        return Entry(found.config, found.format, preprocess, "", source, on_hub=False, classifier=found.classifier)

    def _own(self) -> Entry:
        vision = self.vision
        late = vision.pool_type == "avg" and vision.final_ln_after_pool
        pooling: dict[str, Any] = {"pool": "cls" if vision.pool_type == "tok" else "mean"}
        if vision.attentional_pool:
            heads = vision.attn_pooler_heads
            pooling = {"pool": "query", "pool_dim": self.model.embed_dim, "pool_heads": heads, "pool_prefix": True}
            pooling["pool_norm"] = True
        eps: Epsilon = vision.norm_kwargs.eps if vision.norm_kwargs else NormOptions().eps
        height, width = (side // vision.patch_size * vision.patch_size for side in vision.image_size)
        config = ViTConfig(
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
            **pooling,
            projection_dim=self.model.embed_dim,
        )
        layout = "open_clip_coca" if vision.attentional_pool else "open_clip_vit"
        return Entry(config, layout, Preprocess(image_size=config.image_size), "", "")

    def _of_the_zoo(self) -> Entry | None:
        """Return the entry of the same architecture and pooling that is known by name, or None."""
        pool = POOLS.get(self.vision.timm_pool)
        for name, entry in ZOO.items():
            same = name.partition(".")[0] == self.vision.timm_model_name
            if same and isinstance(entry.config, ViTConfig) and entry.config.pool == pool:
                return entry
        return None

    def _of_timm(self) -> Entry:
        """Return the entry of a network of timm: natively, if this package's `ViT` equals it, or in the adapter."""
        vision, name = self.vision, str(self.vision.timm_model_name)
        # With layers of its own, open_clip builds the network with timm's pooling and then sets another one
        own = vision.timm_proj in ("linear", "mlp")
        directory = TimmDirectory(self.file.parent, self._as_timm(name, own), self.find_file)
        found = directory.network()
        if not isinstance(found.config, ViTConfig):
            found = self._of_the_zoo() or found
        layout = f"open_clip {found.format}"
        pooled = not own or vision.timm_pool in ("", *POOLS)
        if not isinstance(found.config, ViTConfig) or layout not in FORMATS or vision.timm_proj == "mlp" or not pooled:
            adapted = directory.adapted()
            assert isinstance(adapted.config, TimmConfig)
            projected = replace(adapted.config, projection=self._projection())
            return replace(adapted, config=projected, classifier=())
        if vision.timm_proj == "none":
            return replace(found, config=replace(found.config, projection_dim=0), format=layout)
        bias = vision.timm_proj_bias if own else True  # timm's head has a bias
        config = replace(found.config, projection_dim=self.model.embed_dim, projection_bias=bias)
        config = replace(config, pool=POOLS.get(vision.timm_pool, config.pool)) if own else config
        return replace(found, config=config, format=layout, classifier=None)

    def _as_timm(self, name: str, own: bool) -> dict[str, Any]:
        """Return timm's `config.json` of the network. `own`: whether open_clip has layers after it."""
        import timm

        known: Any = timm.models.get_pretrained_cfg(name.partition(".")[0], allow_unregistered=True)
        settings = {} if known is None else {key: value for key, value in known.to_dict().items() if value is not None}
        sized = {"input_size": (3, *self.vision.image_size), "num_classes": 0}
        arguments = {} if own else {"global_pool": self.vision.timm_pool}
        return {"architecture": name, "pretrained_cfg": {**settings, **sized}, "model_args": arguments}

    def _projection(self) -> Projection | None:
        vision, width = self.vision, self.model.embed_dim
        if vision.timm_proj == "none":
            return None
        if not vision.timm_proj:
            return Projection(width)
        return Projection(width, vision.timm_proj, vision.timm_proj_bias, vision.timm_pool)
