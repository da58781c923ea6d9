"""Small networks of transformers in the adapter that several test files share, every parameter randomised."""

import json

from tests.helpers import randomise
from vitbackbone.networks import TransformersBackbone, TransformersConfig

VIT = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
SETTINGS: dict[str, dict[str, object]] = {
    "hf vit": {"model_type": "vit_msn", "image_size": 32, "patch_size": 8, **VIT},
    "hf cnn": {"model_type": "convnextv2", "image_size": 64, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1]},
}
BACKBONES = {
    name: randomise(TransformersBackbone(TransformersConfig(json.dumps(settings)), name=name))
    for name, settings in SETTINGS.items()
}
