"""What is known of a model by name."""

from dataclasses import dataclass, replace
from typing import Literal

from vitbackbone.checkpoints.huggingface import PLAIN
from vitbackbone.images import Preprocess
from vitbackbone.model import Resampling, ViTConfig
from vitbackbone.networks import FusedConfig, TimmConfig

Triple = tuple[float, float, float]
Positions = Literal["native", "timm", "hf"]

TIMM_RESAMPLING = Resampling("bicubic", antialias=True, relative="geometric")  # timm/layers/pos_embed.py


@dataclass(frozen=True)
class Entry:
    """One named model. `config` has the native policies: what the authors of the weights run."""

    config: ViTConfig | TimmConfig | FusedConfig
    format: str  # a key of formats.FORMATS
    preprocess: Preprocess
    licence: str
    source: str  # what to say where the weights come from: a Hub repository, or a URL for a download by hand
    hf: Resampling = PLAIN  # transformers' policy for this family
    on_hub: bool = True  # whether `source` is a Hub repository
    num_classes: int = 0  # of the head that comes with the weights
    classifier: tuple[str, ...] | None = None  # its layers' names, of a timm model whose keys go by name

    def at_other_sizes(self, positions: Positions) -> ViTConfig | TimmConfig:
        """The configuration that does at other sizes than the native one what `positions` names."""
        if isinstance(self.config, ViTConfig):
            policies = {"native": self.config.resampling, "timm": TIMM_RESAMPLING, "hf": self.hf}
            return replace(self.config, resampling=policies[positions])
        if isinstance(self.config, TimmConfig):
            swin = self.config.windows != "timm"
            if positions == "hf" and not swin:
                raise ValueError(f"positions='hf': transformers has none for {self.config.architecture}; leave it out")
            return replace(self.config, windows="timm") if positions == "timm" else self.config
        raise ValueError("a fused backbone has its members' positions")


def evaluation(side: int, crop_pct: float, mean: Triple, std: Triple) -> Preprocess:
    """timm's evaluation transform for most models."""
    return Preprocess((side, side), crop_pct, "center", "bicubic", mean, std)
