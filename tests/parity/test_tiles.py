"""mllama's vision tower equals transformers' for every arrangement of tiles."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from tests.helpers import randomise, relative_error
from tests.oracles.cases import errors, images
from tests.oracles.tiled_towers import MLLAMA, TILE_CASES, mllama_model, run_mllama
from vitbackbone import load_backbone, optimize

LIMIT = 1e-5
CASE = TILE_CASES[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mllama_model().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("size", CASE.sizes)
def test_tiles_are_upstreams(size: tuple[int, int], folder: Path) -> None:
    found = errors(load_backbone(folder), CASE, mllama_model(), size, batch=2)
    assert max(found.values()) <= LIMIT, found


def test_the_last_layer_is_the_last_block_beside_others(folder: Path) -> None:
    ours = load_backbone(folder)
    assert ours.spec.dims == (32, 32, 32, 32, 32, 96)
    assert ours.spec.num_registers == 3
    assert not ours.has_norm
    one, two = ours([images((32, 64))[0], images((30, 40))[0]]).image(1), ours(images((30, 40)))
    assert relative_error(one.patches, two.patches) <= LIMIT
    assert one.geometry.grid == (4, 5)
    assert relative_error(optimize(ours)(images((32, 64))).patches, ours(images((32, 64))).patches) <= LIMIT


def test_what_tiles_cannot_do_is_refused(folder: Path) -> None:
    ours = load_backbone(folder)
    with pytest.raises(ValueError, match="64 x 96, 2 x 3 tiles of 32 pixels"):
        ours(images((64, 96)))
    with pytest.raises(ValueError, match="no attention map"):
        ours.attention(images((32, 32)), [0])
    with pytest.raises(ValueError, match="no patch can be dropped"):
        ours.forward_kept(images((32, 32)), torch.zeros(1, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="tiles of 32 do not fill"):
        load_backbone(folder, indivisible="refuse")(images((30, 32)))
    with pytest.raises(ValueError, match="other parameters than a plain ViT"):
        optimize(ours, engine="openvino")


def test_the_tower_of_a_whole_mllama_is_read(tmp_path: Path) -> None:
    package = import_module("transformers.models.mllama.modeling_mllama")
    text = {
        **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2},
        **{"intermediate_size": 32, "vocab_size": 64, "cross_attention_layers": [1], "pad_token_id": 0},
    }
    kind = package.MllamaForConditionalGeneration
    model = randomise(kind(kind.config_class(vision_config=MLLAMA, text_config=text)))
    model.save_pretrained(tmp_path)
    x = images((32, 64))
    with torch.inference_mode():
        want = run_mllama(model.model.vision_model, x, [])
        assert relative_error(load_backbone(tmp_path)(x).tokens, want.tokens[:, 4:]) <= LIMIT
