"""A ViT with the outlier channels of a pretrained one."""

import copy

import torch

from vitbackbone import ViT


def with_outliers(vit: ViT) -> ViT:
    """Make some input channels of the linear layers 50 times as large, and the weights that read them 50 times
    smaller."""
    vit = copy.deepcopy(vit)
    with torch.no_grad():
        for block in vit.blocks:
            for norm, linear in ((block.norm1, block.attn.qkv), (block.norm2, block.mlp.fc1)):
                for channel in (3, 11):
                    norm.weight[channel] *= 50
                    norm.bias[channel] *= 50
                    linear.weight[:, channel] /= 50
            block.mlp.fc1.weight[5] *= 50
            block.mlp.fc1.bias[5] *= 50
            block.mlp.fc2.weight[:, 5] /= 50
    return vit
