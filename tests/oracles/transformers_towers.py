"""Towers of transformers as oracles whose inputs or outputs need a function of their own."""

import functools
from dataclasses import replace
from pathlib import Path

import timm
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn

from tests.helpers import randomise
from tests.oracles.cases import Case, Outputs, Size, save_timm, timm_layers
from tests.oracles.towers import Tower, random_tower, tower_case
from tests.oracles.transformers_models import HF_SIZES, MLP, SMALL
from vitbackbone import BackboneModule, ViT
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.rules import bind, convert
from vitbackbone.checkpoints.zoo import ZOO, Positions


def plain(model: nn.Module, x: Tensor, layers: list[int], **options: object) -> Outputs:
    out = model(pixel_values=x, output_hidden_states=True, **options)
    raw = {layer: out.hidden_states[layer + 1].flatten(1, -2) for layer in layers}
    pooled = getattr(out, "pooler_output", None)
    return Outputs(out.last_hidden_state, raw, out.last_hidden_state[:, 0] if pooled is None else pooled)


def untrained_pooler(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    """The tanh layer on CLS is transformers' own."""
    options = {"interpolate_pos_encoding": True} if type(model).__name__ == "ViTMSNModel" else {}
    out = plain(model, x, layers, **options)
    return Outputs(out.tokens, out.layers, out.tokens[:, 0])


def averaged(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    out = plain(model, x, layers)
    return Outputs(out.tokens, out.layers, out.tokens.mean(dim=1))


def radio(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    out = model(pixel_values=x, output_hidden_states=True)
    return Outputs(out.last_hidden_state, {layer: out.hidden_states[layer + 1] for layer in layers}, out.summary)


def naflex(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    p, (batch, _, height, width) = model.config.patch_size, x.shape
    patches = x.unflatten(3, (-1, p)).unflatten(2, (-1, p)).permute(0, 2, 4, 3, 5, 1)
    patches = patches.reshape(batch, height // p * (width // p), -1)
    shapes = torch.tensor([[height // p, width // p]] * batch)
    mask = torch.ones(patches.shape[:2], dtype=torch.int32)
    return plain(model, patches, layers, pixel_attention_mask=mask, spatial_shapes=shapes)


def yolos(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    """The detection tokens follow the patches."""
    count, out = model.config.num_detection_tokens, plain(model, x, layers)

    def forward(tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, :1], tokens[:, -count:], tokens[:, 1:-count]], dim=1)

    return Outputs(forward(out.tokens), {i: forward(t) for i, t in out.layers.items()}, out.tokens[:, 0])


def maps(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    states = model(pixel_values=x, output_hidden_states=True).hidden_states
    raw = {layer: states[layer + 1].flatten(2).mT for layer in layers}
    return Outputs(raw[max(layers)], raw, raw[max(layers)].mean(dim=1))


def normed_backbone(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    states = model(pixel_values=x, output_hidden_states=True).hidden_states
    last = model.layernorm(states[-1])
    return Outputs(last, {layer: states[layer + 1] for layer in layers}, last.mean(dim=1))


ODD_GRID: tuple[Size, ...] = ((200, 200), *HF_SIZES)  # 25 x 25 patches, whose fractions are not exact in float32
WINDOWED = {"window_size": 3, "window_block_indices": [0, 2], "use_relative_position_embeddings": True}
SAM3 = {"num_attention_heads": 4, "window_size": 3, "global_attn_indexes": [1], "pretrain_image_size": 24}
FLEXIBLE = {"num_patches": 64, "image_size": None}
DETECTION = {"image_size": [64, 80], "num_detection_tokens": 5, "use_mid_position_embeddings": False}
TOWERS: dict[str, Tower] = {
    "tipsv2": Tower("TIPSv2", "tipsv2.Tipsv2VisionModel", plain),
    "tipsv2 gated": Tower(
        "TIPSv2",
        "tipsv2.Tipsv2VisionModel",
        plain,
        {"use_swiglu_ffn": True},
        ((64, 64), (40, 88)),
    ),
    "radio": Tower("C-RADIO", "radio.RadioModel", radio, {"max_img_size": 128, "summary_idxs": [0, 2]}),
    "siglip2 naflex": Tower("SigLIP 2 NaFlex", "siglip2.Siglip2VisionModel", naflex, FLEXIBLE),
    "idefics2": Tower(
        "Idefics 2",
        "idefics2.Idefics2VisionTransformer",
        averaged,
        {**MLP, "image_size": 200},
        ODD_GRID,
    ),
    "idefics3": Tower("Idefics 3", "idefics3.Idefics3VisionTransformer", averaged, MLP),
    "smolvlm": Tower("SmolVLM", "smolvlm.SmolVLMVisionTransformer", averaged, MLP),
    "pixio": Tower("Pixio", "pixio.PixioModel", plain),
    "vit msn": Tower("ViT-MSN", "vit_msn.ViTMSNModel", untrained_pooler, MLP),
    "dpt": Tower("DPT's encoder", "dpt.DPTModel", untrained_pooler, MLP),
    "yolos": Tower("YOLOS", "yolos.YolosModel", yolos, {**MLP, **DETECTION}, ((64, 80), *HF_SIZES)),
    "vitdet": Tower("ViTDet", "vitdet.VitDetModel", maps, {**WINDOWED, "pretrain_image_size": 48}),
    "sam3": Tower("SAM 3", "sam3.Sam3ViTModel", averaged, {**MLP, **SAM3}, ((64, 64),)),
    "vitpose": Tower(
        "ViTPose",
        "vitpose_backbone.VitPoseBackbone",
        normed_backbone,
        {"image_size": [64, 80]},
        ((64, 80),),
    ),
}


def tower_model(name: str) -> transformers.PreTrainedModel:
    row = TOWERS[name]
    settings = {key: value for key, value in {**SMALL, **row.settings}.items() if value is not None}
    model = random_tower(replace(row, settings=settings))
    for buffer, value in model.named_buffers():
        if buffer.endswith("norm_std"):  # which must not be far from its own size, nor negative
            value.copy_(torch.tensor([0.3, 0.25, 0.2]).view_as(value))
    return model


# ---- timm's NaFlexVit, small ---------------------------------------------------------------------------------------

OTHER_SIZES: tuple[Size, ...] = ((96, 96), (80, 176), (61, 43), (144, 16))
SIZE = {"dim": 48, "depth": 2, "num_heads": 3, "mlp_dim": 192}
NAFLEX = {
    "naflexvit_base_patch16_siglip.v2_webli": ("SigLIP 2 NaFlex", ((256, 256), *OTHER_SIZES)),
    "naflexvit_base_patch16_radio_v3.c_radio": ("C-RADIOv3", ((512, 512), *OTHER_SIZES)),
    "naflexvit_so400m_patch16_radio_v4.c_radio": ("C-RADIOv4", ((512, 512), *OTHER_SIZES)),
}


def naflex_case(name: str) -> Case:
    family, sizes = NAFLEX[name]

    def make() -> nn.Module:
        small = {"embed_dim": 48, "depth": 2, "num_heads": 3, "mlp_ratio": 4.0}
        return randomise(timm.create_model(name.split(".")[0], num_classes=0, **small))

    def load(folder: Path, positions: Positions) -> BackboneModule:
        entry = ZOO[name]
        vit = ViT(replace(entry.at_other_sizes(positions), **SIZE))
        state = load_file(folder / "model.safetensors")
        vit.load_state_dict(convert(state, bind(FORMATS[entry.format], vit.config), vit.state_dict()))
        return vit.eval()

    return Case(family, "timm", name, sizes, make, load, save_timm, run_naflex, policy="timm", multiple=16)


def run_naflex(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    raw, last = timm_layers(model, x, layers), model.forward_features(x)
    last = last["patches"] if isinstance(last, dict) else last
    return Outputs(last, raw, model.forward_head(last, pre_logits=True))


TOWER_CASES: list[Case] = [
    *(tower_case(name, row, functools.partial(tower_model, name)) for name, row in TOWERS.items()),
    *(naflex_case(name) for name in NAFLEX),
]
