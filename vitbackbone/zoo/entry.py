"""What is known of a model by name."""

from dataclasses import dataclass

from vitbackbone.config import Resampling, ViTConfig
from vitbackbone.huggingface import PLAIN
from vitbackbone.preprocess import Preprocess

Triple = tuple[float, float, float]

TIMM_RESAMPLING = Resampling("bicubic", antialias=True, relative="geometric")  # timm/layers/pos_embed.py


@dataclass(frozen=True)
class Entry:
    """One named model. `config.resampling` is the native policy: what the authors of the weights run."""

    config: ViTConfig
    format: str  # a key of formats.FORMATS
    preprocess: Preprocess
    licence: str
    source: str  # what to say where the weights come from: a Hub repository, or a URL for a download by hand
    hf: Resampling = PLAIN  # transformers' policy for this family
    on_hub: bool = True  # whether `source` is a Hub repository
    num_classes: int = 0  # of the head that comes with the weights

    @property
    def policies(self) -> dict[str, Resampling]:
        return {"native": self.config.resampling, "timm": TIMM_RESAMPLING, "hf": self.hf}


def evaluation(side: int, crop_pct: float, mean: Triple, std: Triple) -> Preprocess:
    """timm's evaluation transform for most models."""
    return Preprocess((side, side), crop_pct, "center", "bicubic", mean, std)
