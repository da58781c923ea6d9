"""Marks for tests that need torch 2.14 or newer. docs/how-to/export.md and train.md tell users."""

import pytest
import torch
from torch.torch_version import TorchVersion

OLD = TorchVersion(torch.__version__) < (2, 14)

compiles = pytest.mark.skipif(OLD, reason="torch.compile makes one graph of a backbone since torch 2.14")
shards_by_part = pytest.mark.skipif(OLD, reason="FSDP2 frees a unit with a nested forward only once since torch 2.14")
