"""transformers as the upstream of a directory or repository that it wrote."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vitbackbone.checkpoints import find_entry, load_backbone, read_weights
from vitbackbone.contract import BackboneModule, BackboneSpec
from vitbackbone.inspection.upstreams import Outputs, Place, Upstream, unpacked

ANY_SIZE = "interpolate_pos_encoding"
NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
POOLER = "transformers' pooler is a layer of its own, which is not part of the backbone"


class TransformersUpstream(Upstream):
    """The class of transformers that saved a directory or repository."""

    def __init__(self, name: str) -> None:
        try:
            import transformers
        except ImportError as error:
            raise ImportError(f"{name} is checked against transformers: pip install 'vitbackbone[hf]'") from error
        self.library: Any = transformers
        self.name = name
        self.place, _, revision = name.removeprefix("hf:").partition("@")
        if Path(name).is_dir():
            self.place, revision = name, ""
        self.revision = revision or None
        self.title = f"transformers {transformers.__version__}"
        find_entry(name)  # raises the errors of `load_backbone`

    def build(self, weights: Place | None, published: bool = False) -> nn.Module:
        with _quiet(self.library):
            config = self.library.AutoConfig.from_pretrained(self.place, revision=self.revision)
            kind = getattr(self.library, (config.architectures or [""])[0], None)
            if published:
                source = kind or self.library.AutoModel
                return source.from_pretrained(self.place, revision=self.revision, dtype=torch.float32).eval()
            if kind is None:
                kind = type(self.library.AutoModel.from_config(config))
            if weights is None:
                return kind(config).eval()
            return kind.from_pretrained(None, config=config, state_dict=dict(read_weights(weights))).eval()

    def save(self, model: nn.Module, folder: Path) -> Path:
        whole: Any = model
        with _quiet(self.library):
            whole.save_pretrained(folder)
        return folder

    def load(self, weights: Place | None) -> BackboneModule:
        if weights is not None and Path(weights).is_dir():
            return load_backbone(weights, positions="hf")
        return load_backbone(self.name, weights, positions="hf")

    def run(self, model: nn.Module, images: Tensor, spec: BackboneSpec) -> Outputs:
        found = next(self._outputs(model, images), None)
        if found is None:
            raise ValueError(f"no part of {type(model).__name__} takes only images and returns their tokens")
        tower, out = found
        last: Tensor = out.last_hidden_state
        if last.ndim == 4 and last.shape[1] == spec.pooled_dim != spec.dim:  # SAM: the map after the neck
            missing = {"patches": "transformers returns the neck's map alone"}
            return Outputs(None, None, None, last.mean(dim=(2, 3)), missing=missing)
        pooled, why = self._pooled(model, tower, out, images)
        missing = {"pooled": why} if pooled is None else {}
        return replace(unpacked(last, images, pooled, spec), raw=None, missing=missing)

    def _outputs(self, model: nn.Module, images: Tensor) -> Iterator[tuple[Any, Any]]:
        """Yield each part of a model that takes only images and returns tokens, with its output; the outermost
        first."""
        for part in model.modules():
            if not isinstance(part, self.library.PreTrainedModel) or part.main_input_name != "pixel_values":
                continue
            names = inspect.signature(part.forward).parameters
            _, *others = names.values()
            if "input_ids" in names or any(each.default is each.empty and each.kind in NAMED for each in others):
                continue
            out = part(pixel_values=images, **_options(part, names, images))
            if isinstance(getattr(out, "last_hidden_state", None), Tensor):
                yield part, out

    def _pooled(self, model: Any, tower: Any, out: Any, images: Tensor) -> tuple[Tensor | None, str]:
        """Return the pooled vectors, or None and the reason."""
        options = _options(model, inspect.signature(model.forward).parameters, images)
        if hasattr(model, "get_image_features") and hasattr(model, "get_text_features"):
            return model.get_image_features(pixel_values=images, **options).pooler_output, ""
        if hasattr(model, "visual_projection"):
            return model(pixel_values=images, **options).image_embeds, ""
        if any(key.startswith("pooler.dense.") for key in tower.state_dict()):
            return None, POOLER
        return getattr(out, "pooler_output", None), "transformers returns no pooled vector"


def _options(part: Any, names: Any, images: Tensor) -> dict[str, Any]:
    """Return the options that let a part take images of any size, without masking."""
    options: dict[str, Any] = {ANY_SIZE: True} if ANY_SIZE in names else {}
    if "noise" in names:  # MAE masks and shuffles the patches by noise
        part.config.mask_ratio = 0.0
        side = part.config.patch_size
        count = images.shape[2] // side * (images.shape[3] // side)
        options["noise"] = torch.arange(count).float().expand(len(images), -1)
    return options


@contextmanager
def _quiet(library: Any) -> Iterator[None]:
    """Keep the progress bars and notes of transformers off the terminal."""
    log = library.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()
