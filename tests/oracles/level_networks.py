"""Hiera, SAM 2's encoder and DINOv3's ConvNeXt as oracles. They have a map for each level."""

import math
from collections.abc import Callable
from importlib import import_module

import timm
import torch
import transformers
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from tests.helpers import randomise
from tests.oracles.cases import Case, Outputs, Size
from vitbackbone import load_backbone
from vitbackbone.checkpoints.zoo import Positions

SIZES: tuple[Size, ...] = ((64, 64), (96, 96), (64, 160), (32, 96))
HIERA = {"embed_dim": 16, "depths": [1, 2, 2, 1], "num_heads": [1, 2, 4, 8], "image_size": [64, 64]}
SAM2 = {
    **{"hidden_size": 16, "blocks_per_stage": [1, 2, 2, 1], "num_attention_heads_per_stage": [1, 2, 4, 8]},
    **{"embed_dim_per_stage": [16, 32, 64, 128], "window_size_per_stage": [8, 4, 4, 2], "image_size": [64, 64]},
    **{"global_attention_blocks": [4], "window_positional_embedding_background_size": [4, 4]},
}
CONVNEXT = {"hidden_sizes": [16, 32, 64, 128], "depths": [1, 1, 2, 1], "image_size": 64}


def flat(maps: Tensor) -> Tensor:
    return maps.flatten(2).mT


def hiera_model() -> nn.Module:
    return randomise(transformers.HieraModel(transformers.HieraConfig(**HIERA)))


def run_hiera(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    """transformers returns the levels only at its native size, so it is built again for each size, with its own
    resizing of the positions. Its last level is the one that it has without that."""
    last = model(x, interpolate_pos_encoding=True).last_hidden_state
    size = [x.shape[2], x.shape[3]]
    sized = transformers.HieraModel(transformers.HieraConfig(**{**HIERA, "image_size": size})).eval()
    own, patches = model.embeddings, model.embeddings.patch_embeddings(x)[0]
    positions = own.interpolate_pos_encoding(patches, own.position_embeddings, *size)
    sized.load_state_dict({**model.state_dict(), "embeddings.position_embeddings": positions})
    out = sized(x, output_hidden_states=True)
    raw = dict(enumerate(states.flatten(1, 2) for states in out.reshaped_hidden_states[1:]))
    assert torch.equal(raw[3], last)
    return Outputs(last, raw, out.pooler_output)


def run_timm_hiera(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    network = timm_hiera(model, (x.shape[2], x.shape[3]))
    raw = dict(enumerate(map(flat, network.forward_intermediates(x, intermediates_only=True))))
    return Outputs(raw[max(layers)], raw, network.forward_head(network.forward_features(x), pre_logits=True))


def timm_hiera(model: nn.Module, size: Size) -> nn.Module:
    """Return timm's Hiera for images of `size`, with the weights of transformers'."""
    network = timm.create_model("hiera_tiny_224", img_size=size, embed_dim=16, stages=(1, 2, 2, 1), num_classes=0)
    state, block = {}, -1
    for name, value in model.state_dict().items():
        name = name.replace("embeddings.position_embeddings", "pos_embed")
        name = name.replace("embeddings.patch_embeddings.projection", "patch_embed.proj")
        name = name.replace("pooler.layernorm", "head.norm")
        if name.startswith("encoder.stages."):
            _, _, _, _, _, rest = name.split(".", 5)
            block += rest == "layernorm_before.weight"
            rest = rest.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
            name = f"blocks.{block}.{rest}"
        state[name] = value
    grid = [side // 4 for side in size]
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], grid, num_prefix_tokens=0)
    network.load_state_dict(state)
    return network.eval()


def sam2_model() -> nn.Module:
    kind = import_module("transformers.models.sam2.modeling_sam2").Sam2HieraDetModel
    return randomise(kind(kind.config_class(**SAM2)))


def run_sam2(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    found = model(x).intermediate_hidden_states
    raw = dict(enumerate(states.flatten(1, 2) for states in found))
    return Outputs(raw[max(layers)], raw, raw[max(layers)].mean(dim=1))


def convnext_model() -> nn.Module:
    return randomise(transformers.DINOv3ConvNextModel(transformers.DINOv3ConvNextConfig(**CONVNEXT)))


def run_convnext(model: nn.Module, x: Tensor, layers: list[int]) -> Outputs:
    """The first token is the mean of the map, with the norm."""
    out = model(x, output_hidden_states=True)
    return Outputs(out.last_hidden_state[:, 1:], dict(enumerate(map(flat, out.hidden_states[1:]))), out.pooler_output)


def timm_convnext(model: nn.Module) -> nn.Module:
    """Return timm's ConvNeXt with the weights of transformers'."""
    network = timm.create_model("convnext_tiny", dims=(16, 32, 64, 128), depths=(1, 1, 2, 1), num_classes=0)
    state = {}
    names = {
        **{"stages.0.downsample_layers": "stem", "downsample_layers": "downsample", "layers": "blocks"},
        **{"depthwise_conv": "conv_dw", "pointwise_conv1": "mlp.fc1", "pointwise_conv2": "mlp.fc2"},
    }
    for name, value in model.state_dict().items():
        if name.startswith("layer_norm."):
            state[name.replace("layer_norm", "head.norm")] = value
            continue
        for theirs, ours in names.items():
            name = name.replace(theirs, ours)
        state[name.removeprefix("model.").replace("layer_norm", "norm")] = value
    network.load_state_dict(state)
    return network.eval()


def level_case(
    family: str,
    name: str,
    model: Callable[[], nn.Module],
    run: Callable[[nn.Module, Tensor, list[int]], Outputs],
    upstream: str = "transformers",
    policy: Positions = "native",
) -> Case:
    return Case(
        family,
        upstream,
        name,
        SIZES,
        model,
        lambda folder, positions: load_backbone(folder, positions=positions),
        lambda model, folder: model.save_pretrained(folder),
        run,
        policy=policy,
        multiple=32,
    )


LEVEL_CASES: list[Case] = [
    level_case("Hiera", "hiera", hiera_model, run_hiera),
    level_case("Hiera", "hiera of timm", hiera_model, run_timm_hiera, "timm", "timm"),
    level_case("SAM 2", "sam 2", sam2_model, run_sam2),
    level_case("DINOv3 ConvNeXt", "dinov3 convnext", convnext_model, run_convnext),
]


def cropped(tokens: Tensor, stride: int, size: Size) -> Tensor:
    """Return the patches that show an image of `size`, of a level of an image padded to multiples of 32."""
    rows, columns = (math.ceil(side / stride) for side in size)
    h = math.ceil(size[0] / 32) * 32 // stride
    return torch.flatten(tokens.unflatten(1, (h, -1))[:, :rows, :columns], 1, 2)
