"""The record of a model that is known by name."""

from dataclasses import dataclass, replace
from typing import Literal

from vitbackbone.checkpoints.huggingface import PLAIN
from vitbackbone.images import Preprocess
from vitbackbone.model import Resampling, Rotary, ViTConfig
from vitbackbone.networks import FusedConfig, TimmConfig, TransformersConfig

Triple = tuple[float, float, float]
Positions = Literal["native", "timm", "hf"]

TIMM_RESAMPLING = Resampling("bicubic", antialias=True, relative="geometric")  # timm/layers/pos_embed.py


@dataclass(frozen=True)
class Entry:
    """A named model. Its `config` has the policies of the weights' authors, which are called native."""

    config: ViTConfig | TimmConfig | TransformersConfig | FusedConfig
    format: str  # a key of formats.FORMATS
    preprocess: Preprocess
    licence: str
    source: str  # a Hub repository, or a URL for a download by hand
    hf: Resampling = PLAIN  # transformers' policy for this family
    timm: Resampling = TIMM_RESAMPLING  # timm's policy for this model
    on_hub: bool = True  # whether `source` is a Hub repository
    num_classes: int = 0  # outputs of the head that comes with the weights
    timm_rotary: Rotary | None = None  # timm's rotary positions, if they differ at other sizes from the authors'
    classifier: tuple[str, ...] | None = None  # the head's layers, for a timm model whose keys are converted by name

    def at_other_sizes(self, positions: Positions) -> ViTConfig | TimmConfig:
        """Return the configuration that follows the policy `positions` at other sizes than the native one."""
        if isinstance(self.config, ViTConfig):
            policies = {"native": self.config.resampling, "timm": self.timm, "hf": self.hf}
            rotary = (self.timm_rotary if positions == "timm" else None) or self.config.rotary
            return replace(self.config, resampling=policies[positions], rotary=rotary)
        if isinstance(self.config, TimmConfig):
            if positions == "hf" and self.config.windows == "timm" and not self.format.startswith("hf_"):
                raise ValueError(f"positions='hf': transformers has none for {self.config.architecture}; use 'native'")
            return replace(self.config, windows="timm", antialias=True) if positions == "timm" else self.config
        if isinstance(self.config, TransformersConfig):
            raise ValueError(
                "this encoder runs in transformers' own code, which chooses its positions; leave positions out"
            )
        raise ValueError("a fused backbone uses the positions of its members; leave positions out")


def evaluation(side: int, crop_pct: float, mean: Triple, std: Triple) -> Preprocess:
    """Return timm's evaluation transform for most models."""
    return Preprocess((side, side), crop_pct, "center", "bicubic", mean, std)
