"""V-JEPA 2 and 2.1, from Hugging Face and in the authors' files, which must be downloaded by hand."""

from dataclasses import replace

from vitbackbone.checkpoints.formats.vjepa import TAPS
from vitbackbone.checkpoints.huggingface.vjepa import ROTARY, VJEPA_EVAL
from vitbackbone.checkpoints.zoo.entry import Entry
from vitbackbone.model import Rotary, ViTConfig

#       dim  depth heads mlp_dim
_SIZES = {
    "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096),
    "H": (1280, 32, 16, 5120),
    "g": (1408, 40, 22, 6144),
    "G": (1664, 48, 26, 8192),
}
#    repository                             size pixels licence: the card's, or facebookresearch/vjepa2's
_REPOSITORIES = {
    "facebook/vjepa2-vitl-fpc64-256": ("L", 256, "mit"),
    "facebook/vjepa2-vith-fpc64-256": ("H", 256, "mit"),
    "facebook/vjepa2-vitg-fpc64-256": ("g", 256, "mit"),
    "facebook/vjepa2-vitg-fpc64-384": ("g", 384, "apache-2.0"),
}
#    authors' name         size pixels file
_FILES = {
    "vjepa2_vit_large": ("L", 256, "vitl.pt"),
    "vjepa2_vit_huge": ("H", 256, "vith.pt"),
    "vjepa2_vit_giant": ("g", 256, "vitg.pt"),
    "vjepa2_vit_giant_384": ("g", 384, "vitg-384.pt"),
}
_FILES_2_1 = {
    "vjepa2_1_vit_base_384": ("B", "vjepa2_1_vitb_dist_vitG_384.pt"),
    "vjepa2_1_vit_large_384": ("L", "vjepa2_1_vitl_dist_vitG_384.pt"),
    "vjepa2_1_vit_giant_384": ("g", "vjepa2_1_vitg_384.pt"),
    "vjepa2_1_vit_gigantic_384": ("G", "vjepa2_1_vitG_384.pt"),
}
_URL = "https://dl.fbaipublicfiles.com/vjepa2"
# Positions of time count the steps; positions of rows and columns span pretraining's 16 x 16 patches at every size
ROTARY_2_1 = Rotary(10000.0, "corners", "neighbours", reference=(16, 16), time=True)


def _config(size: str, pixels: int) -> ViTConfig:
    dim, depth, heads, mlp_dim = _SIZES[size]
    return ViTConfig(
        image_size=(pixels, pixels),
        dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_dim=mlp_dim,
        tubelet=2,
        cls=False,
        position="none",
        rotary=ROTARY,
        pool="mean",
    )


def _entry(config: ViTConfig, layout: str, licence: str, source: str, on_hub: bool) -> Entry:
    preprocess = replace(VJEPA_EVAL, image_size=config.image_size)
    return Entry(config, layout, preprocess, licence, source, config.resampling, on_hub=on_hub)


def _entry_2_1(size: str, file: str) -> Entry:
    config = _config(size, 384)
    config = replace(config, rotary=ROTARY_2_1, image_patches=True, tap_norms=TAPS[config.depth])
    return _entry(config, f"vjepa2_1_{config.depth}", "mit", f"{_URL}/{file}", False)


VIDEO: dict[str, Entry] = {
    **{
        f"hf:{name}": _entry(_config(size, pixels), "hf_vjepa2", licence, name, True)
        for name, (size, pixels, licence) in _REPOSITORIES.items()
    },
    **{name: _entry(_config(*row[:2]), "vjepa2", "mit", f"{_URL}/{row[2]}", False) for name, row in _FILES.items()},
    **{name: _entry_2_1(*row) for name, row in _FILES_2_1.items()},
}
