"""Digests that identify a backbone: by its weights, and by every setting that affects its features."""

import hashlib
import json

import torch
from torch import nn

from vitbackbone.contract.backbone import BackboneModule
from vitbackbone.contract.spec import changed_fields


def weights_sha256(module: nn.Module) -> str:
    """Return the SHA-256 of the names, dtypes, shapes and bytes of a module's parameters and buffers.

    The device does not matter. Raises `ValueError` on the meta device, which holds no values.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_meta:
            raise ValueError(f"{name} is on the meta device, which holds no values; load the weights first")
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint(backbone: BackboneModule) -> str:
    """Return a SHA-256 (64 hexadecimal digits) of the weights and of `spec`.

    The name is left out, because one model may have several names.
    """
    spec = {key: value for key, value in changed_fields(backbone.spec).items() if key != "name"}
    return hashlib.sha256(json.dumps([spec, weights_sha256(backbone)]).encode()).hexdigest()
