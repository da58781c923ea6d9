"""A backbone for the models of transformers that take one: DETR, UPerNet, Mask2Former, ...

    config = PyramidConfig(backbone="nano", out_features=["p2", "p3", "p4", "p5"])
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=config))

Import this module before `from_pretrained` of such a model, because `AutoConfig` and `AutoBackbone` know it only then.

Axes: `B` batch, `H W` pixels.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput

from heads.attached import attach
from heads.detection import feature_pyramid
from vitbackbone import load_backbone

STAGES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32}  # name: stride


class PyramidConfig(BackboneConfigMixin, PreTrainedConfig):
    """The configuration of a backbone and its pyramid. `backbone` and `weights` are arguments of `load_backbone`.

    `out_features`, or `out_indices`, are the levels that the model reads: `"p2"` to `"p5"`, of strides 4, 8, 16 and
    32, by default the last. DETR needs one, `["p4"]` or `["p5"]`, and UPerNet all four.
    """

    model_type = "vitbackbone_pyramid"

    def __init__(
        self,
        backbone: str = "nano",
        weights: str | None = None,
        out_features: list[str] | None = None,
        out_indices: list[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self.backbone = backbone
        self.weights = weights
        self.stage_names = list(STAGES)
        self.set_output_features_output_indices(out_features, out_indices)
        super().__init__(**kwargs)


class PyramidBackbone(BackboneMixin, PreTrainedModel):
    """A backbone with its weights, and a pyramid of the levels of `config.out_features`, each of 256 channels.

    `attached.backbone` is the backbone of `load_backbone`, which `heads.freeze` may freeze. `save_pretrained` writes
    the weights of both, and `from_pretrained` reads no other file.
    """

    config_class = PyramidConfig
    base_model_prefix = "backbone"
    main_input_name = "pixel_values"
    input_modalities = "image"
    has_attentions = False

    def __init__(self, config: PyramidConfig) -> None:
        super().__init__(config)
        # transformers makes a model on the meta device before it fills it from a file.
        self.from_file = torch.get_default_device().type == "meta"
        weights = "random" if self.from_file else config.weights
        with torch.device("cpu"):
            backbone = load_backbone(config.backbone, weights)
            pyramid = feature_pyramid(backbone.spec, [STAGES[name] for name in self.out_features])
        self.attached = attach(backbone, {"pyramid": pyramid})
        self.levels = list(self.out_features)  # the levels that exist, even if the config changes later
        self.num_features = [pyramid.channels] * len(STAGES)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Leave the weights as they were loaded. Raises `ValueError` if the file of `from_pretrained` lacks some."""
        own = module.named_parameters(recurse=False)
        missing = [name for name, parameter in own if not getattr(parameter, "_is_hf_initialized", False)]
        if self.from_file and missing:
            raise ValueError(f"the file lacks {', '.join(missing)} of a {type(module).__name__}; want all weights")

    def forward(
        self,
        pixel_values: Float[Tensor, "B 3 H W"],
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple[Any, ...]:
        """Return the `feature_maps` of the levels in `out_features`, without padding: stride s gives ceil(H / s) rows.

        Raises `ValueError` if a call asks for hidden states, for attentions, or for a level that the model lacks.
        """
        if output_hidden_states or output_attentions:
            raise ValueError("PyramidBackbone returns only feature maps; leave out hidden states and attentions")
        missing = [name for name in self.out_features if name not in self.levels]
        if missing:
            made, lacking = ", ".join(self.levels), ", ".join(missing)
            raise ValueError(f"the backbone was made with the levels {made}, not {lacking}; ask for them in its config")
        height, width = pixel_values.shape[-2:]
        levels = dict(zip(self.levels, self.attached(pixel_values)["pyramid"].values(), strict=False))  # without "pool"
        maps = tuple(
            levels[name][:, :, : -(-height // STAGES[name]), : -(-width // STAGES[name])] for name in self.out_features
        )
        output = BackboneOutput(feature_maps=maps)
        return output.to_tuple() if return_dict is False else output


AutoConfig.register(PyramidConfig.model_type, PyramidConfig, exist_ok=True)
AutoBackbone.register(PyramidConfig, PyramidBackbone, exist_ok=True)
