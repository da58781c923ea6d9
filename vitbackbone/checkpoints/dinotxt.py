"""Reading dino.txt, the text alignment of DINOv2 and DINOv3, from the authors' files.

facebookresearch/dinov2, hub/text, and facebookresearch/dinov3, eval/text.

A file holds the blocks after the image tower, or the text tower, or both. Its shapes say how large they are.
"""

import math
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from vitbackbone.checkpoints.formats.changes import gated
from vitbackbone.checkpoints.lazy import Renamed
from vitbackbone.checkpoints.rules import Rules, State, both, convert, rename
from vitbackbone.checkpoints.tensor_files import read_weights
from vitbackbone.contract import BackboneModule
from vitbackbone.model import TextConfig, ViT
from vitbackbone.networks import TextHeadBackbone, TextHeadConfig

SUFFIXES = (".pth", ".pt", ".safetensors")
HEAD = "visual_model.head."
BLOCKS = re.compile(r"block_list\.(?=[0-9])")  # DINOv2's name of the blocks
_HEAD_WIDTH = 64  # width of an attention head of the published text tower
LOGIT_SCALE = math.log(1 / 0.07)  # DINOv2's file lacks the scale of the logits, and the authors' code then starts here

_PARTS = {
    f"blocks.{{i}}.{name}": f"blocks.{{i}}.{name}" for name in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.w3")
}
VISION: Rules = (
    *(rule for names in _PARTS.items() for rule in both(*names)),
    *gated("blocks.{i}.mlp.w1", "blocks.{i}.mlp.w2", "blocks.{i}.mlp.w12"),
    *(rename(f"blocks.{{i}}.{name}.gamma", f"blocks.{{i}}.{name}.gamma") for name in ("ls1", "ls2")),
    *both("ln_final", "norm"),
    rename("linear_projection.weight", "projection.weight"),
)


def is_text_head(adaptor: str) -> bool:
    """Return whether the option `adaptor=` names a file."""
    return adaptor.endswith(SUFFIXES)


def attach_text_head(backbone: BackboneModule, file: str, name: str) -> TextHeadBackbone:
    """Return a backbone of the features in the space of texts. `name`: the name of the result.

    Raises `ValueError` if the backbone is not a Vision Transformer, and `ConversionError` if the file does not fit it.
    """
    if not isinstance(backbone, ViT):
        raise ValueError(f"adaptor={file!r}: {name} is not a Vision Transformer of this package, as dino.txt's are")
    state = _inside(read_weights(Path(file)))
    blocks = {int(key.split(".")[1]) for key in state if re.match(r"blocks\.[0-9]{1,4}\.", key)}
    wide, width = state.get("blocks.0.mlp.w1.weight"), state.get("linear_projection.weight")
    config = TextHeadConfig(
        depth=len(blocks),
        mlp_dim=4 * backbone.spec.dim if wide is None else len(wide),
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        projection_dim=0 if width is None else len(width),
    )
    with torch.device("meta"):
        made = TextHeadBackbone(backbone, config, name)
    wanted = {key: tensor for key, tensor in made.state_dict().items() if not key.startswith("backbone.")}
    own = {f"backbone.{key}": tensor for key, tensor in backbone.state_dict(keep_vars=True).items()}
    made.load_state_dict({**own, **convert(state, VISION, wanted)}, assign=True)
    return made.eval()


def _inside(state: State) -> State:
    """Return the tensors of the blocks, under DINOv3's names."""
    found = {key: key.removeprefix(HEAD) for key in state if key.startswith(HEAD)} or {key: key for key in state}
    return Renamed(state, {BLOCKS.sub("blocks.", new, count=1): old for old, new in found.items()})


# ---- the text tower -----------------------------------------------------------------------------------------------

LAYOUT = "dinotxt"
CONFIG = TextConfig(
    dim=1280,
    depth=24,
    num_heads=20,
    mlp_dim=5120,
    mlp="gelu",
    qkv_bias=False,
    pool="argmax",
    projection_dim=2048,
)


# The image towers that the authors aligned with texts, by their names here
TOWERS = (
    "dinov2_vitl14_reg",
    "vit_large_patch14_reg4_dinov2.lvd142m",
    "hf:facebook/dinov2-with-registers-large",
    "dinov3_vitl16",
    "vit_large_patch16_dinov3.lvd1689m",
    "vit_large_patch16_dinov3_qkvb.lvd1689m",
    "hf:facebook/dinov3-vitl16-pretrain-lvd1689m",
)


def settle_text(config: TextConfig, whole: State, state: State) -> tuple[TextConfig, dict[str, Tensor]]:
    """Return the configuration of the text tower in a file, and the scale of its logits.

    `whole`: the tensors of the file. `state`: the tensors of the text tower.
    """
    scale = whole["logit_scale"] if "logit_scale" in whole else torch.tensor(LOGIT_SCALE)
    tokens, width = (state.get(key) for key in ("backbone.token_embedding.weight", "head.linear_projection.weight"))
    hidden = state.get("backbone.blocks.0.feed_forward.fc1.weight")
    if tokens is None or hidden is None or tokens.ndim != 2 or tokens.shape[1] % _HEAD_WIDTH:
        return config, {"logit_scale": scale}  # the conversion says what is missing
    vocabulary, dim = tokens.shape
    blocks = {key.split(".")[2] for key in state if key.startswith("backbone.blocks.")}
    settled = replace(
        config,
        vocab_size=vocabulary,
        dim=dim,
        depth=len(blocks),
        num_heads=dim // _HEAD_WIDTH,
        mlp_dim=len(hidden),
        layer_scale="backbone.blocks.0.ls1.gamma" in state,
        projection_dim=0 if width is None else len(width),
    )
    return settled, {"logit_scale": scale}
