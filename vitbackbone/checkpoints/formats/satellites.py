"""The authors' layouts of backbones for satellite images: Prithvi, SatMAE with groups of channels, and DOFA."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitbackbone.checkpoints.formats.timm import BLOCK, MLP, NORM, QKV
from vitbackbone.checkpoints.rules import Change, Rule, Rules, both, drop, inside, read_only, rename
from vitbackbone.model import ViTConfig

_BLOCKS: Rules = (*BLOCK, *QKV, *MLP, *NORM)

# ---- Prithvi (NASA-IMPACT/Prithvi-EO-2.0; terratorch, models/backbones/prithvi_mae.py) ------------------------------

_PRITHVI: Rules = (
    *both("patch_embed.proj", "patch_embed.proj"),
    rename("cls_token", "cls_token"),
    *_BLOCKS,
    drop("pos_embed"),  # sinusoids for one number of frames; they are computed for each
    # scales of the date and the place, which are not inputs here
    drop("temporal_embed_enc.scale"),
    drop("location_embed_enc.scale"),
)

# ---- SatMAE (sustainlab-group/SatMAE, models_mae_group_channels.py) ------------------------------------------------

GROUPS = ((0, 1, 2, 6), (3, 4, 5, 7), (8, 9))  # indices into Sentinel-2's bands without B1, B9 and B10


def _kernels(config: ViTConfig) -> Change:
    """Return the change of a kernel (D, c, p, p) for each group into one for all channels, zero for other groups'."""

    def there(*kernels: Tensor) -> tuple[Tensor]:
        dim, side = kernels[0].shape[0], kernels[0].shape[-1]
        whole = kernels[0].new_zeros(len(GROUPS) * dim, config.channels, side, side)
        for n, (group, kernel) in enumerate(zip(GROUPS, kernels, strict=True)):
            whole[n * dim : (n + 1) * dim, list(group)] = kernel
        return (whole,)

    return Change(there)


def _positions(cls: Tensor, table: Tensor, channels: Tensor, *own: Tensor) -> tuple[Tensor, Tensor]:
    """Return CLS and the table of all groups. Each row has a position, and beside it the vector of the group."""
    count = table.shape[1] - 1
    ahead = torch.cat([table[:, :1], own[0] if own else channels.new_zeros(1, 1, channels.shape[2])], dim=2)
    groups = [torch.cat([table[0, 1:], group.expand(count, -1)], dim=1) for group in channels[0]]
    return cls + ahead, torch.cat(groups)


_TABLES = ("cls_token", "pos_embed", "channel_embed")
SATMAE: Rules = (
    Rule(tuple(f"patch_embed.{n}.proj.weight" for n in range(len(GROUPS))), ("patch_embed.proj.weight",), _kernels),
    Rule(
        tuple(f"patch_embed.{n}.proj.bias" for n in range(len(GROUPS))),
        ("patch_embed.proj.bias",),
        Change(lambda *biases: (torch.cat(biases),)),
    ),
    Rule(_TABLES, ("cls_token", "pos_embed.table"), Change(_positions)),
    Rule((*_TABLES, "channel_cls_embed"), ("cls_token", "pos_embed.table"), Change(_positions)),
    *_BLOCKS,
)

# ---- DOFA (zhu-xlab/DOFA, wave_dynamic_layer.py) -------------------------------------------------------------------

WAVE_WIDTH, WAVE_HEADS, WAVE_SCALE = 128, 4, 0.01
_GENERATOR, _ENCODER = "patch_embed.weight_generator", "patch_embed.weight_generator.transformer_encoder.layers.0"
_ATTENTION = ("self_attn.in_proj_weight", "self_attn.in_proj_bias")
_LAYERS = ("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
_LAYER = (*_ATTENTION, *(f"{layer}.{kind}" for layer in _LAYERS for kind in ("weight", "bias")))
_FIRST = tuple(f"patch_embed.fclayer.{layer}.{kind}" for layer in ("w1", "w2") for kind in ("weight", "bias"))
_LAST = tuple(f"{_GENERATOR}.{layer}.{kind}" for layer in ("fc_weight", "fc_bias") for kind in ("weight", "bias"))
_WAVES = (
    *_FIRST,
    *(f"{_ENCODER}.{name}" for name in _LAYER),
    *_LAST,
    f"{_GENERATOR}.weight_tokens",
    f"{_GENERATOR}.bias_token",
)


def sinusoids(places: Tensor, dim: int) -> Tensor:
    """Return (N, dim): all sines, and then all cosines."""
    angle = places.double()[:, None] * 10000.0 ** -(torch.arange(dim // 2).double() / (dim / 2))
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def _generate(config: ViTConfig) -> Change:
    """Return the change of the network that makes a patch projection into the projection for some wavelengths."""

    def there(*given: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(_WAVES, given, strict=True))
        kernel, bias = generate(named, config.wavelengths, config.patch_size, config.dim)
        return kernel, bias

    return Change(there)


def generate(named: dict[str, Tensor], wavelengths: Sequence[float], patch: int, dim: int) -> tuple[Tensor, Tensor]:
    """Return the kernel (D, C, p, p) and the bias of DOFA's patch projection for wavelengths in micrometres."""
    w1, b1, w2, b2 = (named[name] for name in _FIRST)
    waves = sinusoids(torch.tensor(wavelengths) * 1000, WAVE_WIDTH)
    waves = waves + (torch.relu(waves @ w1.mT + b1) @ w2.mT + b2).relu()
    hidden = named[f"{_ENCODER}.linear1.weight"].shape[0]
    layer = nn.TransformerEncoderLayer(WAVE_WIDTH, WAVE_HEADS, hidden, dropout=0.0, activation="gelu")
    layer.load_state_dict({name: named[f"{_ENCODER}.{name}"] for name in _LAYER})
    tokens = torch.cat([named[f"{_GENERATOR}.weight_tokens"], waves, named[f"{_GENERATOR}.bias_token"]])
    with torch.no_grad():
        made = layer.eval()(tokens[:, None])[:, 0]
    weight, bias_weight = named[f"{_GENERATOR}.fc_weight.weight"], named[f"{_GENERATOR}.fc_bias.weight"]
    rows = (made[-1 - len(waves) : -1] + waves) @ weight.mT + named[f"{_GENERATOR}.fc_weight.bias"]
    bias = made[-1] @ bias_weight.mT + named[f"{_GENERATOR}.fc_bias.bias"]
    # upstream reads the rows of all channels as one kernel, although each row was made for one channel
    return rows.reshape(dim, len(waves), patch, patch) * WAVE_SCALE, bias * WAVE_SCALE


DOFA: Rules = (
    Rule(_WAVES, ("patch_embed.proj.weight", "patch_embed.proj.bias"), _generate),
    Rule(
        ("cls_token", "pos_embed"),
        ("cls_token", "pos_embed.table"),
        Change(lambda cls, table: (cls + table[:, :1], table[0, 1:])),
    ),
    *_BLOCKS,
    drop("projector.weight"),
    drop("projector.bias"),
)

SATELLITES: dict[str, Rules] = {
    # version 2 has the encoder beside a decoder, and version 1 does not name it
    "prithvi": (*inside("encoder.", _PRITHVI), *read_only(_PRITHVI)),
    "satmae_groups": SATMAE,
    "dofa": DOFA,
}
