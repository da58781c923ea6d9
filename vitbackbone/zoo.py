from dataclasses import dataclass
from vitbackbone.config import ViTConfig
from vitbackbone.preprocess import Preprocess
@dataclass(frozen=True)
class Entry:
    config: ViTConfig
    preprocess: Preprocess
ZOO = {"nano": Entry(ViTConfig((32, 32), patch_size=4, dim=192, depth=5, num_heads=3, mlp_dim=768, stem=((64, 1), (64, 2), (128, 1), (128, 2), (192, 1))), Preprocess((32, 32), crop_pct=1.0))}
