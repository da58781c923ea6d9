"""The models known by name: configuration, key layout, preprocessing, resampling policies, source and licence.

This is data only. Names are timm's, the authors' own, and `hf:` with a Hugging Face repository.
"""

from vitbackbone.checkpoints.zoo.adapted import ADAPTED
from vitbackbone.checkpoints.zoo.authors import AUTHORS
from vitbackbone.checkpoints.zoo.clay import CLAY
from vitbackbone.checkpoints.zoo.depth import DEPTH
from vitbackbone.checkpoints.zoo.entry import Entry, Positions, evaluation
from vitbackbone.checkpoints.zoo.eva import EVA
from vitbackbone.checkpoints.zoo.franca import FRANCA
from vitbackbone.checkpoints.zoo.huggingface import HUGGING_FACE
from vitbackbone.checkpoints.zoo.language import LANGUAGE
from vitbackbone.checkpoints.zoo.naflex import NAFLEX
from vitbackbone.checkpoints.zoo.pathology import PATHOLOGY
from vitbackbone.checkpoints.zoo.repositories import REPOSITORIES
from vitbackbone.checkpoints.zoo.satellites import SATELLITES
from vitbackbone.checkpoints.zoo.siglino import SIGLINO
from vitbackbone.checkpoints.zoo.terramind import TERRAMIND
from vitbackbone.checkpoints.zoo.text import OPENAI_TEXT, TEXT_REPOSITORIES
from vitbackbone.checkpoints.zoo.timm import TIMM
from vitbackbone.checkpoints.zoo.tipsv2 import TIPSV2
from vitbackbone.checkpoints.zoo.video import VIDEO
from vitbackbone.images import IMAGENET_MEAN, IMAGENET_STD
from vitbackbone.model import ViTConfig
from vitbackbone.networks import FusedConfig

# The built-in backbone; its card is weights/README.md
NANO = Entry(
    config=ViTConfig(
        image_size=(32, 32),
        patch_size=4,
        dim=192,
        depth=5,
        num_heads=3,
        mlp_dim=768,
        stem=((64, 1), (64, 2), (128, 1), (128, 2), (192, 1)),
    ),
    format="native",
    preprocess=evaluation(32, 1.0, IMAGENET_MEAN, IMAGENET_STD),
    licence="apache-2.0",
    source="built in",
    on_hub=False,
)

# OpenVLA's encoder (Kim et al. 2024): DINOv2 with registers and SigLIP, each without its last block
OPENVLA = Entry(
    config=FusedConfig(
        members=(
            ("vit_large_patch14_reg4_dinov2.lvd142m", -2, False),
            ("vit_so400m_patch14_siglip_224.webli", -2, False),
        ),
        image_size=(224, 224),
    ),
    format="openvla",
    preprocess=evaluation(224, 1.0, IMAGENET_MEAN, IMAGENET_STD),
    licence="apache-2.0",
    source="its two members; or openvla/openvla-7b, by hand",
    on_hub=False,
)

ZOO: dict[str, Entry] = {
    "nano": NANO,
    **TIMM,
    **EVA,
    **TIPSV2,
    **NAFLEX,
    **PATHOLOGY,
    **AUTHORS,
    **FRANCA,
    **HUGGING_FACE,
    **LANGUAGE,
    **REPOSITORIES,
    **VIDEO,
    **SATELLITES,
    **TERRAMIND,
    **CLAY,
    **DEPTH,
    **SIGLINO,
    "openvla": OPENVLA,
}

__all__ = ["ADAPTED", "OPENAI_TEXT", "TEXT_REPOSITORIES", "ZOO", "Entry", "Positions"]
