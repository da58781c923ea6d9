"""The libraries that a backbone is checked against: how each builds the model, keeps its weights, and runs it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vitbackbone.checkpoints import Entry, load_backbone, read_published, read_weights
from vitbackbone.contract import BackboneModule, BackboneSpec
from vitbackbone.model import ViTConfig
from vitbackbone.networks import TimmConfig

Place = str | PathLike[str]


@dataclass(frozen=True, eq=False)
class Outputs:
    """The outputs of an upstream for images.

    `raw`: whether the tokens are without the final norm, as some classes return them; None if it is not known.
    `missing`: why a part is None.
    """

    cls: Tensor | None
    registers: Tensor | None
    patches: Tensor | None  # (B, D, h, w)
    pooled: Tensor | None
    raw: bool | None = False
    missing: dict[str, str] = field(default_factory=dict)


class Upstream(ABC):
    """A library with a model, by one name."""

    title: str  # the library with its version

    @abstractmethod
    def build(self, weights: Place | None, published: bool = False) -> nn.Module:
        """Build the model with the weights of a file, with the published ones, or untrained."""

    @abstractmethod
    def save(self, model: nn.Module, folder: Path) -> Path:
        """Save the model as its library does, and return what `load` takes."""

    @abstractmethod
    def load(self, weights: Place | None) -> BackboneModule:
        """Load our backbone with a file of weights, or with the published ones."""

    @abstractmethod
    def run(self, model: nn.Module, images: Tensor, spec: BackboneSpec) -> Outputs:
        """Run the model on images (B, 3, H, W)."""


# ---- timm ---------------------------------------------------------------------------------------------------------


class TimmUpstream(Upstream):
    """timm's model of a name."""

    def __init__(self, name: str, entry: Entry) -> None:
        import timm

        self.timm: Any = timm
        self.name = name
        self.entry = entry
        # timm runs GELU under most names of weights that were trained with another activation
        self.quick = isinstance(entry.config, ViTConfig) and entry.config.mlp == "quick_gelu"
        self.title = f"timm {timm.__version__}" + " with act_layer='quick_gelu'" * self.quick

    def build(self, weights: Place | None, published: bool = False) -> nn.Module:
        state = read_weights(weights) if weights is not None else read_published(self.name) if published else None
        # timm's own way from a file to the model, with tensors instead of a file: it would read pickles
        overlay = {} if state is None else {"pretrained_cfg_overlay": {"state_dict": dict(state)}}
        config = self.entry.config
        sizes = dict(config.arguments) if isinstance(config, TimmConfig) else {"dynamic_img_size": True}
        fixed = {"act_layer": "quick_gelu"} if self.quick else {}
        name = _timm_name(self.name)
        for options in (sizes, {}):
            try:
                return self.timm.create_model(name, pretrained=state is not None, **overlay, **options, **fixed).eval()
            except TypeError:  # a constructor without the option
                if not options:
                    raise
        raise AssertionError

    def save(self, model: nn.Module, folder: Path) -> Path:
        from safetensors.torch import save_file

        file = folder / "random.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in model.state_dict().items()}, file)
        return file

    def load(self, weights: Place | None) -> BackboneModule:
        return load_backbone(self.name, weights, positions="timm")

    def run(self, model: nn.Module, images: Tensor, spec: BackboneSpec) -> Outputs:
        network: Any = model
        if hasattr(network, "set_input_size") and not getattr(network, "dynamic_img_size", False):
            network.set_input_size(tuple(images.shape[-2:]))
        last = network.forward_features(images)
        projected = isinstance(self.entry.config, ViTConfig) and self.entry.config.projection_dim > 0
        pooled = network.forward_head(last, pre_logits=not projected)  # CLIP's projection is timm's head
        if not isinstance(last, Tensor):
            why = "timm returns several maps"
            return Outputs(None, None, None, pooled, missing=dict.fromkeys(("cls", "registers", "patches"), why))
        return unpacked(last, images, pooled, spec)


def _timm_name(name: str) -> str:
    """Return timm's spelling of a name: of a model, a repository or a directory."""
    if Path(name).is_dir():
        return f"local-dir:{name}"
    if name.startswith("hf:"):
        return f"hf-hub:{name.removeprefix('hf:')}"
    return name.removeprefix("timm:").partition("@")[0]


def unpacked(last: Tensor, images: Tensor, pooled: Tensor | None, spec: BackboneSpec) -> Outputs:
    """Turn tokens (B, N, D) or a map, (B, D, h, w) or (B, h, w, D), into the parts of features."""
    grid = tuple(-(-side // spec.stride) for side in images.shape[-2:])
    if last.ndim == 3:
        count = spec.num_prefix
        cls = last[:, 0] if spec.has_cls else None
        patches = last[:, count:].mT
        if patches.shape[2] != grid[0] * grid[1]:
            raise ValueError(f"upstream returns {last.shape[1]} tokens; want {count} and {grid[0]} x {grid[1]} patches")
        return Outputs(cls, last[:, int(spec.has_cls) : count], patches.unflatten(2, grid), pooled)
    patches = last if tuple(last.shape[2:]) == grid else last.permute(0, 3, 1, 2)
    return Outputs(None, None, patches, pooled)
