"""dino.txt: the blocks after a DINO and the text tower equal the authors' code, written here again."""

import math
from pathlib import Path

import pytest
import torch
from open_clip.tokenizer import SimpleTokenizer, default_bpe
from torch import Tensor, nn
from torch.nn import functional as F

from tests.helpers import randomise, relative_error
from tests.text.models import TEXTS
from vitbackbone import ConversionError, ViT, load_backbone, load_text

DIM, HEADS, WORDS, LENGTH = 128, 2, 49408, 77
NAME = "vit_large_patch14_reg4_dinov2.lvd142m"


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor, causal: bool) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if causal:
            scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -math.inf)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Scale(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))


class SwiGlu(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.w1, self.w2, self.w3 = nn.Linear(dim, 64), nn.Linear(dim, 64), nn.Linear(64, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class VisionBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(dim), Attention(dim, heads), Scale(dim)
        self.norm2, self.mlp, self.ls2 = nn.LayerNorm(dim), SwiGlu(dim), Scale(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1.gamma * self.attn(self.norm1(x), causal=False)
        return x + self.ls2.gamma * self.mlp(self.norm2(x))


class VisionHead(nn.Module):
    def __init__(self, dim: int, heads: int, blocks: int, width: int) -> None:
        super().__init__()
        self.block_list = nn.ModuleList(VisionBlock(dim, heads) for _ in range(blocks))
        self.ln_final = nn.LayerNorm(dim)
        self.linear_projection = nn.Linear(dim, width, bias=False) if width else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block_list:
            x = block(x)
        return self.linear_projection(self.ln_final(x))


class TextBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(DIM), Attention(DIM, HEADS)
        self.ffn_norm, self.feed_forward = nn.LayerNorm(DIM), nn.Module()
        self.feed_forward.fc1, self.feed_forward.fc2 = nn.Linear(DIM, 96), nn.Linear(96, DIM)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), causal=True)
        return x + self.feed_forward.fc2(F.gelu(self.feed_forward.fc1(self.ffn_norm(x))))


class TextModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Module(), nn.Module()
        self.backbone.token_embedding = nn.Embedding(WORDS, DIM)
        self.backbone.positional_embedding = nn.Parameter(torch.zeros(LENGTH, DIM))
        self.backbone.blocks = nn.ModuleList(TextBlock() for _ in range(2))
        self.backbone.ln_final = nn.LayerNorm(DIM)
        self.head.linear_projection = nn.Linear(DIM, 48, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.backbone.token_embedding(ids) + self.backbone.positional_embedding
        for block in self.backbone.blocks:
            x = block(x)
        x = self.head.linear_projection(self.backbone.ln_final(x))
        return x[torch.arange(len(x)), ids.argmax(dim=-1)]


def backbone() -> ViT:
    made = load_backbone("vit_small_patch14_reg4_dinov2.lvd142m", "random", image_size=56)
    assert isinstance(made, ViT)
    return made


def head_of(folder: Path, whole: bool, blocks: int = 2, width: int = 0) -> tuple[VisionHead, Path]:
    """Save the blocks as DINOv2's authors do, or as DINOv3's do, in one file with the text tower."""
    head, file = randomise(VisionHead(384, 6, blocks, width), 1), folder / "head.pth"
    state = head.state_dict()
    if whole:
        state = {f"visual_model.head.{key.replace('block_list', 'blocks')}": tensor for key, tensor in state.items()}
        state |= {f"text_model.{key}": tensor for key, tensor in randomise(TextModel(), 2).state_dict().items()}
        state["logit_scale"] = torch.tensor([3.0])
    torch.save(state, file)
    return head, file


@pytest.mark.parametrize(
    ("whole", "blocks", "width"), [(False, 2, 0), pytest.param(True, 1, 20, marks=pytest.mark.slow)]
)
def test_image_features_are_those_of_the_blocks(whole: bool, blocks: int, width: int, tmp_path: Path) -> None:
    head, file = head_of(tmp_path, whole, blocks, width)
    plain = randomise(backbone())
    ours = load_backbone("vit_small_patch14_reg4_dinov2.lvd142m", "random", image_size=56, adaptor=str(file))
    ours.backbone.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 42, 70, generator=torch.Generator().manual_seed(3))
    with torch.inference_mode():
        own = plain(x)
        want = head(torch.cat([own.cls[:, None], own.registers, own.tokens], dim=1))
        found = ours(x)
        assert relative_error(found.cls, want[:, 0]) < 1e-5
        assert relative_error(found.tokens, want[:, 5:]) < 1e-5
        pooled = torch.cat([want[:, 0], want[:, 5:].mean(dim=1)], dim=1)
        assert relative_error(found.pooled, pooled) < 1e-5
    assert (ours.spec.dim, ours.spec.pooled_dim) == (width or 384, 2 * (width or 384))


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_text_vectors_and_logits_are_the_authors(whole: bool, tmp_path: Path) -> None:
    model, file = randomise(TextModel(), 2), tmp_path / "text.pth"
    if whole:
        _, file = head_of(tmp_path, whole)
    else:
        torch.save(model.state_dict(), file)
    text = load_text(NAME, file, tokenizer=default_bpe())
    ids = SimpleTokenizer(context_length=LENGTH)(list(TEXTS))
    assert torch.equal(text.tokenizer(TEXTS).ids, ids)
    with torch.inference_mode():
        want = model(ids)
        assert relative_error(text(TEXTS), want) < 1e-5
        images = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
        scale = math.exp(3.0) if whole else 1 / 0.07
        logits = scale * F.normalize(images, dim=-1) @ F.normalize(want, dim=-1).T
        assert relative_error(text.logits(images, TEXTS), logits) < 1e-5


@pytest.mark.slow
def test_files_that_do_not_fit_are_named(tmp_path: Path) -> None:
    _, file = head_of(tmp_path, whole=False)
    with pytest.raises(ConversionError, match=r"head.pth: the checkpoint does not fit"):
        load_backbone("vit_base_patch14_reg4_dinov2.lvd142m", "random", image_size=28, adaptor=str(file))
    with pytest.raises(ValueError, match="is not a Vision Transformer"):
        load_backbone("resnet50.a1_in1k", "random", adaptor=str(file))
    with pytest.raises(ValueError, match="dino.txt file"):
        load_text(NAME, tokenizer=default_bpe())
