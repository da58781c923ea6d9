"""mllama's vision tower as an oracle. Its tokens are CLS of every tile, and then the map."""

from importlib import import_module

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import randomise
from tests.oracles.cases import Case, Outputs, Size
from vitbackbone import load_backbone

SIDE, PATCH, MOST = 32, 8, 4
MLLAMA: dict[str, object] = {
    **{"hidden_size": 32, "num_hidden_layers": 3, "num_global_layers": 2, "attention_heads": 2},
    **{"intermediate_size": 48, "image_size": SIDE, "patch_size": PATCH, "intermediate_layers_indices": [2, 0]},
    **{"norm_eps": 1e-3},
}
# one tile, two side by side, two by two, not whole tiles, four above each other
SIZES: tuple[Size, ...] = ((32, 32), (32, 64), (64, 64), (30, 90), (128, 25))


def mllama_model() -> nn.Module:
    kind = import_module("transformers.models.mllama.modeling_mllama").MllamaVisionModel
    return randomise(kind(kind.config_class(**MLLAMA)))


def run_mllama(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    height, width = x.shape[2:]
    rows, columns = -(-height // SIDE), -(-width // SIDE)
    whole = F.pad(x, (0, columns * SIDE - width, 0, rows * SIDE - height))
    tiles = [part for row in whole.split(SIDE, dim=2) for part in row.split(SIDE, dim=3)]
    tiles += [torch.zeros_like(tiles[0])] * (MOST - len(tiles))
    index = model.config.supported_aspect_ratios.index([rows, columns]) + 1
    ids, mask = torch.full((len(x), 1), index), torch.zeros(len(x), 1, MOST)
    mask[:, :, : rows * columns] = 1
    found: dict[int, Tensor] = {}
    blocks = [*model.transformer.layers, *model.global_transformer.layers]
    hooks = [
        block.register_forward_hook(lambda *given, i=i: found.update({i: given[-1].unflatten(1, (MOST, -1))}))
        for i, block in enumerate(blocks)
    ]
    found[len(blocks)] = model(torch.stack(tiles, dim=1)[:, None], ids, mask).last_hidden_state[:, 0]
    for hook in hooks:
        hook.remove()
    grid = -(-height // PATCH), -(-width // PATCH)
    raw = {layer: joined(tokens, rows, columns, grid) for layer, tokens in found.items()}
    last = raw[len(blocks)]
    return Outputs(last, raw, last[:, MOST:].mean(dim=1))


def joined(tokens: Tensor, rows: int, columns: int, grid: Size) -> Tensor:
    """Lay the patches of tiles (B, S, n, D) out in raster order, after the CLS tokens."""
    side = SIDE // PATCH
    maps = tokens[:, : rows * columns, 1 : 1 + side**2].unflatten(2, (side, side)).unflatten(1, (rows, columns))
    maps = torch.cat([torch.cat(list(row.unbind(1)), dim=2) for row in maps.unbind(1)], dim=1)  # B h w D
    return torch.cat([tokens[:, :, 0], maps[:, : grid[0], : grid[1]].flatten(1, 2)], dim=1)


TILE_CASES: list[Case] = [
    Case(
        "mllama",
        "transformers",
        "mllama",
        SIZES,
        mllama_model,
        lambda folder, positions: load_backbone(folder),
        lambda model, folder: model.save_pretrained(folder),
        run_mllama,
        policy="native",
        multiple=1,
    )
]
