"""The vision towers of language models as oracles. Some take patches in an order of their own.

Their inputs are the patches of one image, and their outputs come back in raster order here.
"""

import functools
from importlib import import_module

import torch
import transformers
from torch import Tensor, nn

from tests.oracles.cases import Case, Outputs, Size
from tests.oracles.towers import Tower, random_tower, tower_case
from tests.oracles.transformers_models import HF_SIZES, MLP, SMALL


def states(out: object, layers: list[int]) -> dict[int, Tensor]:
    return {layer: out.hidden_states[layer + 1] for layer in layers}


def plain(model: nn.Module, x: Tensor, layers: list[int], **options: object) -> Outputs:
    """Tokens as they come, pooled by the model's own pooler or as its mean of patches."""
    out = model(pixel_values=x, output_hidden_states=True, **options)
    pooled = getattr(out, "pooler_output", None)
    tokens = out.last_hidden_state
    return Outputs(tokens, states(out, layers), tokens.mean(dim=1) if pooled is None else pooled)


def packed(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    """Pixtral, whose images share one row."""
    out = plain(model, x, layers)
    raw = {layer: tokens.unflatten(1, (len(x), -1))[0] for layer, tokens in out.layers.items()}
    return Outputs(raw[max(layers)], raw, raw[max(layers)].mean(dim=1))


def sapiens(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    out = model(x, output_hidden_states=True)
    return Outputs(out.last_hidden_state, states(out, layers), out.pooler_output)


def internvl(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    out = plain(model, x, layers)
    mean = model.config.use_mean_pooling
    return Outputs(out.tokens, out.layers, out.tokens[:, 1:].mean(dim=1) if mean else out.tokens[:, 0])


def normed_on_cls(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    """MLCD, whose final norm is on CLS alone."""
    out = plain(model, x, layers)
    return Outputs(model.post_layernorm(out.tokens), out.layers, out.pooled)


def metaclip(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    out = plain(model.vision_model, x, layers, interpolate_pos_encoding=True)
    pooled = model(pixel_values=x, interpolate_pos_encoding=True).image_embeds
    return Outputs(model.vision_model.post_layernorm(out.tokens), out.layers, pooled)


def cut(x: Tensor, patch: int, merge: int) -> tuple[Tensor, Tensor]:
    """Return the patches of each image by squares of `merge`, (N, 3, p, p), and the (1, h, w) of each."""
    grid = x.shape[2] // patch, x.shape[3] // patch
    parts = x.unflatten(3, (grid[1] // merge, merge, patch)).unflatten(2, (grid[0] // merge, merge, patch))
    patches = parts.permute(0, 2, 5, 3, 6, 1, 4, 7)  # B h w m m 3 p p
    return patches.flatten(0, 4), torch.tensor([[1, *grid]] * len(x))


def raster(tokens: Tensor, grids: Tensor, merge: int) -> Tensor:
    """Return tokens by squares of `merge` in raster order, (B, N, D)."""
    count, (_, h, w) = len(grids), grids[0].tolist()
    tokens = tokens.view(count, h // merge, w // merge, merge, merge, -1).transpose(2, 3)
    return tokens.reshape(count, h * w, tokens.shape[-1])


def merged(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    """Qwen-VL: patches of two equal frames, by squares of `spatial_merge_size`."""
    config = model.config
    patches, grids = cut(x, config.patch_size, config.spatial_merge_size)
    frames = patches[:, :, None].expand(-1, -1, config.temporal_patch_size, -1, -1).flatten(1)
    out = model(frames, grid_thw=grids, output_hidden_states=True)
    order = torch.arange(len(frames))
    if hasattr(model, "fullatt_block_indexes"):  # the tokens are window by window
        unit = config.spatial_merge_size**2
        windows = qwen_windows(model, grids)
        order = (windows[:, None] * unit + torch.arange(unit)).flatten().argsort()
    raw = {
        layer: raster(tokens[order], grids, config.spatial_merge_size) for layer, tokens in states(out, layers).items()
    }
    return Outputs(raw[max(layers)], raw, raw[max(layers)].mean(dim=1))


def qwen_windows(model: nn.Module, grids: Tensor) -> Tensor:
    find = import_module("transformers.vision_utils").get_vision_window_index
    settings = {"spatial_merge_size": model.spatial_merge_size, "window_size": model.window_size}
    return find(grids, **settings, patch_size=model.patch_size)[0]


def kimi(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    patches, grids = cut(x, model.config.patch_size, 1)
    out = model(patches, grid_thw=grids, output_hidden_states=True)
    raw = {layer: raster(tokens, grids, 1) for layer, tokens in states(out, layers).items()}
    tokens = raster(out.last_hidden_state, grids, 1)
    raw.pop(max(layers))  # transformers puts the normed tokens there
    return Outputs(tokens, raw, tokens.mean(dim=1))


def gemma4(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    """Pixels from 0 to 1, channels last; the encoder's tokens, before they are pooled 3 by 3."""
    patches, grids = cut(x / 2 + 0.5, model.config.patch_size, 1)
    (_, h, w), batch = grids[0].tolist(), len(x)
    patches = patches.permute(0, 2, 3, 1).reshape(batch, h * w, -1)
    rows, columns = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    places = torch.stack([columns.flatten(), rows.flatten()], dim=1).expand(batch, -1, -1)
    padding = torch.zeros(batch, h * w, dtype=torch.bool)
    tokens, raw = model.patch_embedder(patches, places, padding), {}
    hooks = [
        block.register_forward_hook(lambda *given, i=i: raw.update({i: given[-1]}))
        for i, block in enumerate(model.encoder.layers)
    ]
    last = model.encoder(tokens, ~padding, pixel_position_ids=places).last_hidden_state
    for hook in hooks:
        hook.remove()
    return Outputs(last, raw, last.mean(dim=1))


def llama4(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    """CLS follows the patches; the features are before the adapter."""
    found: list[Tensor] = []
    hook = model.layernorm_post.register_forward_hook(lambda *given: found.append(given[-1]))
    out = model(x, output_hidden_states=True)
    hook.remove()
    raw = {layer: tokens.roll(1, dims=1) for layer, tokens in states(out, layers).items()}
    tokens = found[0].roll(1, dims=1)
    return Outputs(tokens, raw, tokens[:, 0])


NATIVE: tuple[Size, ...] = ((64, 64),)
EVEN: tuple[Size, ...] = ((64, 64), (96, 96), (48, 80), (61, 43), (80, 16))  # an even number of patches a side
QWEN = {"depth": 3, "num_heads": 3, "patch_size": 8}
WIDE = {"hidden_size": 48, "intermediate_size": 96}
WINDOWS = {"window_size": 32, "fullatt_block_indexes": [1], "out_hidden_size": 40}
RMS = {"norm_type": "rms_norm", "use_qk_norm": True}
GEMMA = {
    **{"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8},
    **{"head_dim": 16, "intermediate_size": 96, "position_embedding_size": 20},
}
KIMI = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 96, "patch_size": 8}
TABLE = {"pos_emb_height": 8, "pos_emb_width": 8, "merge_kernel_size": [1, 1]}
NAMED = {**SMALL, **MLP}
ADAPTER = {"intermediate_size": 192, "projector_input_dim": 32, "projector_output_dim": 32, "vision_output_dim": 32}

TOWERS: dict[str, Tower] = {
    "internvl": Tower("InternViT", "internvl.InternVLVisionModel", internvl, {**NAMED, "attention_bias": True}),
    "internvl 6b": Tower("InternViT 6B", "internvl.InternVLVisionModel", internvl, {**NAMED, **RMS}),
    "internvl cls": Tower(
        "InternViT", "internvl.InternVLVisionModel", internvl, {**NAMED, "use_mean_pooling": False}, HF_SIZES[:3]
    ),
    "aimv2": Tower("AIMv2", "aimv2.Aimv2VisionModel", plain, NAMED, NATIVE),
    "aimv2 native": Tower(
        "AIMv2", "aimv2.Aimv2VisionModel", plain, {**NAMED, "is_native": True, "use_head": False, "mlp_bias": True}
    ),
    "qwen2 vl": Tower(
        "Qwen2-VL",
        "qwen2_vl.Qwen2VisionTransformerPretrainedModel",
        merged,
        {**QWEN, "embed_dim": 48, "hidden_size": 40, "mlp_ratio": 2},
        EVEN,
    ),
    "qwen2.5 vl": Tower(
        "Qwen2.5-VL",
        "qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel",
        merged,
        {**QWEN, **WIDE, **WINDOWS},
        EVEN,
    ),
    "qwen2.5 vl, unmerged": Tower(
        "Qwen2.5-VL",
        "qwen2_5_vl.Qwen2_5_VisionTransformerPretrainedModel",
        merged,
        {**QWEN, **WIDE, **WINDOWS, "spatial_merge_size": 1, "window_size": 24},
        ((64, 64), (72, 8)),
    ),
    "qwen3 vl": Tower(
        "Qwen3-VL",
        "qwen3_vl.Qwen3VLVisionModel",
        merged,
        {**QWEN, **WIDE, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]},
        EVEN,
    ),
    "pixtral": Tower("Pixtral", "pixtral.PixtralVisionModel", packed, NAMED),
    "mistral 3": Tower("Pixtral", "pixtral.PixtralVisionModel", packed, {**NAMED, "hidden_act": "silu"}, HF_SIZES[2:3]),
    "mlcd": Tower("MLCD", "mlcd.MLCDVisionModel", normed_on_cls, NAMED),
    "metaclip 2": Tower("MetaCLIP 2", "metaclip_2.MetaClip2VisionModelWithProjection", metaclip, NAMED),
    "gemma 4": Tower("Gemma 4", "gemma4.Gemma4VisionModel", gemma4, {**GEMMA, "num_key_value_heads": 4}),
    "gemma 4, clipped": Tower(
        "Gemma 4",
        "gemma4.Gemma4VisionModel",
        gemma4,
        {**GEMMA, "num_key_value_heads": 2, "use_clipped_linears": True, "standardize": True},
        HF_SIZES[:3],
    ),
    "llama 4": Tower(
        "Llama 4", "llama4.Llama4VisionModel", llama4, {**NAMED, **ADAPTER, "intermediate_size": 192}, NATIVE
    ),
    "kimi": Tower("MoonViT", "kimi_k25.Kimi_K25VisionModel", kimi, {**KIMI, **TABLE}),
}


def tower_model(name: str) -> transformers.PreTrainedModel:
    model = random_tower(TOWERS[name])
    for key, value in model.named_buffers():  # clamps, which random numbers would cross
        if key.endswith(("_min", "_max")):
            size = 1 + len(key) % 5 / 5 + (0.1 if "k_proj" in key else 0.3 if "v_proj" in key else 0.0)
            value.fill_(-size if key.endswith("min") else size)
    return model


SAPIENS = {
    **{"num_register_tokens": 2, "num_key_value_attention_heads": 1, "num_first_full_attention_layers": 1},
    **{"num_last_full_attention_layers": 1},
}
TOWERS |= {
    "sapiens 2": Tower("Sapiens 2", "sapiens2.Sapiens2Model", sapiens, {**NAMED, **SAPIENS}),
    "sapiens 2, without biases": Tower(
        "Sapiens 2",
        "sapiens2.Sapiens2Model",
        sapiens,
        {**NAMED, **SAPIENS, "key_bias": False, "proj_bias": False, "mlp_bias": False, "use_qk_norm": False},
        HF_SIZES[2:3],
    ),
    "sapiens 2, plain mlp": Tower(
        "Sapiens 2",
        "sapiens2.Sapiens2Model",
        sapiens,
        {**NAMED, **SAPIENS, "use_gated_mlp": False, "hidden_act": "gelu", "num_register_tokens": 0},
        HF_SIZES[2:3],
    ),
}
LANGUAGE_CASES: list[Case] = [
    tower_case(name, row, functools.partial(tower_model, name)) for name, row in TOWERS.items()
]
