"""The layout of Clay (Clay-foundation/model, claymodel/model.py, factory.py and backbone.py).

A small transformer makes the patch projection for the wavelengths of the channels, as DOFA's does with other details.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitbackbone.checkpoints.rules import Change, Rule, Rules, both, rename
from vitbackbone.model import ViTConfig

WIDTH, HEADS, SCALE = 128, 4, 0.02
_EMBED, _GENERATOR = "patch_embedding", "patch_embedding.weight_generator"
_ENCODER = f"{_GENERATOR}.encoder.layers.0"
_LAYER = (
    *("self_attn.in_proj_weight", "self_attn.in_proj_bias"),
    *(f"{name}.{kind}" for name in ("self_attn.out_proj", "linear1", "linear2", "norm1", "norm2")
      for kind in ("weight", "bias")),
)  # fmt: skip
_FIRST = tuple(f"{_EMBED}.fclayer.{layer}.{kind}" for layer in ("l1", "l2") for kind in ("weight", "bias"))
_LAST = tuple(f"{_GENERATOR}.{layer}.{kind}" for layer in ("fc_weight", "fc_bias") for kind in ("weight", "bias"))
_TOKENS = (f"{_GENERATOR}.weight_tokens", f"{_GENERATOR}.bias_token")
_WAVES = (*_FIRST, *(f"{_ENCODER}.{name}" for name in _LAYER), *_LAST, *_TOKENS)


def _sinusoids(places: Tensor, dim: int) -> Tensor:
    """Return (N, dim): all sines, and then all cosines, of wavelengths whose ends are both included."""
    steps = torch.arange(dim // 2, dtype=torch.float64) / (dim // 2 - 1)
    angle = places.double()[:, None] * 10000.0**-steps
    return torch.cat([angle.sin(), angle.cos()], dim=1).float()


def _generate(config: ViTConfig) -> Change:
    """Return the change of the network that makes a patch projection into the projection for some wavelengths."""

    def there(*given: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(_WAVES, given, strict=True))
        w1, b1, w2, b2 = (named[name] for name in _FIRST)
        waves = _sinusoids(torch.tensor(config.wavelengths), WIDTH)
        waves = waves + F.gelu(F.linear(F.gelu(F.linear(waves, w1, b1)), w2, b2))
        hidden = named[f"{_ENCODER}.linear1.weight"].shape[0]
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, hidden, dropout=0.0, activation="gelu", batch_first=True)
        layer.load_state_dict({name: named[f"{_ENCODER}.{name}"] for name in _LAYER})
        tokens = torch.cat([named[_TOKENS[0]], waves, named[_TOKENS[1]]])
        with torch.no_grad():
            made = layer.eval()(tokens[None])[0]
        weight, bias, bias_weight, bias_bias = (named[name] for name in _LAST)
        rows = F.linear(made[-1 - len(waves) : -1] + waves, weight, bias)
        kernel = rows.view(len(waves), config.dim, config.patch_size, config.patch_size).transpose(0, 1) * SCALE
        return kernel, F.linear(made[-1], bias_weight, bias_bias)

    return Change(there)


CLAY: Rules = (
    Rule(_WAVES, ("patch_embed.proj.weight", "patch_embed.proj.bias"), _generate),
    rename("cls_token", "cls_token"),
    *both("transformer.layers.{i}.0.norm", "blocks.{i}.norm1"),
    rename("transformer.layers.{i}.0.to_qkv.weight", "blocks.{i}.attn.qkv.weight"),
    rename("transformer.layers.{i}.0.to_out.weight", "blocks.{i}.attn.proj.weight"),
    *both("transformer.layers.{i}.1.net.0", "blocks.{i}.norm2"),
    *both("transformer.layers.{i}.1.net.1", "blocks.{i}.mlp.fc1"),
    *both("transformer.layers.{i}.1.net.3", "blocks.{i}.mlp.fc2"),
    *both("transformer.norm", "norm"),
)
