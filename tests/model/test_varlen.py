"""Attention of a row of images by torch's variable-length kernel."""

import pytest
import torch
from torch import Tensor

from tests.helpers import relative_error
from vitbackbone.model import varlen
from vitbackbone.model.attention import attend, attend_jagged

LENGTHS = [5, 1, 17, 9]
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def row(seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, 3, sum(LENGTHS), 16, generator=generator).to(dtype)


def one_by_one(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    each = zip(*(x.split(LENGTHS, dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([attend(*parts, None) for parts in each], dim=2)


def kernel(q: Tensor, k: Tensor, v: Tensor, ends: Tensor, ends_k: Tensor, longest: int, longest_k: int) -> Tensor:
    """Compute what torch's kernel computes, image by image, on (T, heads, d)."""
    assert ends.dtype == torch.int32
    assert torch.equal(ends, ends_k)
    assert longest == longest_k == max(LENGTHS)
    assert all(x.is_contiguous() for x in (q, k, v))
    parts = zip(*(x.transpose(0, 1)[None].split(ends.diff().tolist(), dim=2) for x in (q, k, v)), strict=True)
    return torch.cat([attend(*part, None) for part in parts], dim=2)[0].transpose(0, 1)


def test_each_image_attends_within_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", kernel)
    q, k, v = map(row, range(3))
    assert relative_error(varlen.attend_varlen(q, k, v, LENGTHS), one_by_one(q, k, v)) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_cpu_does_not_take_it(dtype: torch.dtype) -> None:
    assert not varlen.takes(row(0, dtype))


def test_a_torch_without_it_attends_in_another_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "varlen_attn", None)
    q, k, v = map(row, range(3))
    assert not varlen.takes(q)
    assert relative_error(attend_jagged(q, k, v, LENGTHS), one_by_one(q, k, v)) < 1e-5


@on_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_on_a_gpu_it_equals_attention_image_by_image(dtype: torch.dtype) -> None:
    q, k, v = (row(seed, dtype).cuda().requires_grad_() for seed in range(3))
    if not varlen.takes(q):
        pytest.skip("torch's kernel does not run on this GPU")
    got, want = varlen.attend_varlen(q, k, v, LENGTHS), one_by_one(q, k, v)
    assert relative_error(got.float(), want.float()) < 2e-2
    for a, b in zip(*(torch.autograd.grad(x.float().square().sum(), (q, k, v)) for x in (got, want)), strict=True):
        assert relative_error(a.float(), b.float()) < 5e-2
