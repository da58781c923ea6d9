"""What tells one backbone from another: a digest of its weights and of all else that decides its features."""

import hashlib
import json
from dataclasses import asdict

import torch
from torch import nn

from vitbackbone.contract.backbone import BackboneModule


def weights_sha256(module: nn.Module) -> str:
    """Of the names, dtypes, shapes and bytes of a module's parameters and buffers, whatever device they are on."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint(backbone: BackboneModule) -> str:
    """A digest (64 hexadecimal digits) of the weights and of `spec`, but for the name: the same model has several."""
    spec = {key: value for key, value in asdict(backbone.spec).items() if key != "name"}
    return hashlib.sha256(json.dumps([spec, weights_sha256(backbone)]).encode()).hexdigest()
