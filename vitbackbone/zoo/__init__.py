"""The models known by name: configuration, key layout, preprocessing, resampling policies, source and licence.

Data only. Names are those people know: timm's, the authors' own, and `hf:` with a Hugging Face repository.
"""

from vitbackbone.config import ViTConfig
from vitbackbone.preprocess import IMAGENET_MEAN, IMAGENET_STD
from vitbackbone.zoo.authors import AUTHORS
from vitbackbone.zoo.entry import Entry, evaluation
from vitbackbone.zoo.huggingface import HUGGING_FACE
from vitbackbone.zoo.timm import TIMM

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

ZOO: dict[str, Entry] = {"nano": NANO, **TIMM, **AUTHORS, **HUGGING_FACE}

__all__ = ["ZOO", "Entry"]
