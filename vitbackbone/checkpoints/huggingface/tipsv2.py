"""TIPSv2 (Google 2026): DINOv2 with one register, which is a second CLS token, and bilinear resampling."""

from vitbackbone.checkpoints.huggingface.fields import Json
from vitbackbone.checkpoints.huggingface.records import Dinov2, Pair, Tokens, read_settings
from vitbackbone.checkpoints.huggingface.shared import resampled_always, shared_fields
from vitbackbone.images import Preprocess
from vitbackbone.model import Resampling, ViTConfig

TIPSV2_RESAMPLING = Resampling("bilinear", antialias=True)
TIPSV2_EVAL = Preprocess(
    (448, 448), 1.0, "squash", "bilinear", (0, 0, 0), (1, 1, 1), crop_rounding="down", resampling="torchvision"
)


class Tipsv2(Dinov2):
    """The vision tower of TIPSv2."""

    image_size: Pair = (448, 448)
    patch_size: Pair = (14, 14)
    num_register_tokens: Tokens = 1


def read_tipsv2(config: Json) -> ViTConfig:
    """Return the configuration of a `tipsv2_vision_model`."""
    settings = read_settings(config, Tipsv2)
    gated = settings.use_swiglu_ffn
    fields = shared_fields(settings, gated)
    width = int(settings.hidden_size * settings.mlp_ratio)
    fields["mlp_dim"] = (int(width * 2 / 3) + 7) // 8 * 8 if gated else width
    fields["resampling"] = resampled_always(TIPSV2_RESAMPLING, fields["image_size"], fields["patch_size"])
    return ViTConfig(**fields, num_registers=settings.num_register_tokens, layer_scale=True)
