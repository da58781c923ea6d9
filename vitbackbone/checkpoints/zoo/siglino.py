"""SigLino (Chaybouti et al. 2026, AMoE), distilled from SigLIP 2 and DINOv3, in the authors' files.

They must be downloaded by hand. Features are the network's own, and not its predictions of the teachers' features.
"""

from dataclasses import dataclass

from vitbackbone.checkpoints.zoo.entry import Entry
from vitbackbone.images import HALF, Preprocess
from vitbackbone.model import BranchNorm, Experts, Rotary, ViTConfig

_FILES = "https://github.com/tiiuae/amoe/releases/download/AMoE-checkpoint"
_LEAST, _MOST = 128 * 128, 256 * 256  # pixels of an image by default


@dataclass(frozen=True)
class _Size:
    """The sizes of a network. `hidden`: the hidden width of the MLP, or of each expert."""

    dim: int
    depth: int
    heads: int
    width: int  # of a head
    hidden: int
    experts: Experts | None = None
    norms: BranchNorm = "before"


_ROWS = {
    "siglino_moe_0.3b": (_Size(768, 18, 8, 128, 384, Experts(28, 6)), "amoe-0.3B.pt"),
    "siglino_moe_0.15b": (_Size(768, 18, 8, 128, 384, Experts(28, 2)), "amoe-0.15B.pt"),
    "siglino_0.6b": (_Size(1280, 18, 16, 80, 5120), "dense-0.6B.pt"),
    "siglino_70m": (_Size(512, 12, 8, 64, 2048, norms="plain"), "dense-70M.pt"),
    "siglino_30m": (_Size(384, 12, 6, 64, 1536, norms="plain"), "dense-30M.pt"),
}


def _entry(size: _Size, file: str) -> Entry:
    config = ViTConfig(
        image_size=(256, 256),
        dim=size.dim,
        depth=size.depth,
        num_heads=size.heads,
        head_dim=size.width,
        mlp_dim=size.hidden,
        mlp="swiglu",
        mlp_bias=False,
        experts=size.experts,
        patch_bias=False,
        num_registers=4,
        position="none",
        rotary=Rotary(20.0, "golden", "neighbours", heads=size.heads),
        qkv_bias="none",
        proj_bias=False,
        qk_norm="plain",
        sinks=True,
        norm="rms",
        branch_norm=size.norms,
        norm_eps=1e-5,
    )
    preprocess = Preprocess(
        (256, 256), 1.0, "area", "bicubic", HALF, HALF, multiple=16, least_pixels=_LEAST, most_pixels=_MOST
    )
    return Entry(config, "siglino", preprocess, "not stated", f"{_FILES}/{file}", on_hub=False)


SIGLINO: dict[str, Entry] = {name: _entry(*row) for name, row in _ROWS.items()}
