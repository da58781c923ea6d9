"""Text towers of open_clip's repositories equal open_clip: tokens, vectors and logits."""

import json
import re
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from timm.models._hub import save_for_hf
from torch import Tensor
from torch.nn import functional as F

from tests.helpers import cases, photo, randomise, relative_error
from tests.text.models import TEXTS
from tests.text.open_clip_models import OPEN_CLIP, OpenClipCase
from vitbackbone import list_backbones, load_backbone, load_checkpoint, load_text
from vitbackbone.checkpoints.zoo import OPENAI_TEXT, TEXT_REPOSITORIES

CLOSE = 1e-5
ODD = (
    "a cat’s “toy” &amp;amp; ﬁne",
    "naÃ¯ve ÉTÉ  İstanbul ΟΔΟΣ",
    "12345 :-) ... IT'S we'll",
    "_a_b_c_ <|endoftext|> b",
)


def logits_of(model: Any, images: Tensor, texts: Tensor) -> Tensor:
    """Return the logits of open_clip, model.py, `get_logits`."""
    logits = model.logit_scale.exp() * F.normalize(images, dim=-1) @ F.normalize(texts, dim=-1).T
    return logits if model.logit_bias is None else logits + model.logit_bias


# The others have a text tower like one of these
WITH_TEXTS = [name for name, case in OPEN_CLIP.items() if case.text or case.options or case.inner]
QUICK = {"clip", "siglip", "roberta", "worldwide", "coca", "timm biased", "convnext mlp", "resnet by its head"}


@pytest.mark.parametrize("name", cases(WITH_TEXTS, {"clip", *QUICK}))
def test_tokens_vectors_and_logits_equal_open_clip(name: str, tmp_path: Path) -> None:
    model, tokenizer = OPEN_CLIP[name].save(tmp_path)
    text = load_text(tmp_path)
    texts = [*TEXTS, *ODD]
    ids = tokenizer(texts)
    assert torch.equal(text.tokenizer(texts).ids, ids)
    with torch.inference_mode():
        vectors = model.encode_text(ids, normalize=False)
        assert relative_error(text(texts), vectors) < CLOSE
        images = torch.randn(3, vectors.shape[1], generator=torch.Generator().manual_seed(0))
        assert relative_error(text.logits(images, texts), logits_of(model, images, vectors)) < CLOSE


@pytest.mark.parametrize(
    "name", cases(["clip", "clip quick", *(name for name in OPEN_CLIP if OPEN_CLIP[name].vision)], QUICK)
)
def test_image_towers_and_logits_equal_open_clip(name: str, tmp_path: Path) -> None:
    model, tokenizer = OPEN_CLIP[name].save(tmp_path)
    backbone, text = load_backbone(tmp_path), load_text(tmp_path)
    sizes = backbone.spec.image_size
    images = torch.randn(3, 3, *sizes, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        pooled = backbone(images).pooled
        theirs = model.encode_image(images, normalize=False)
        assert relative_error(pooled, theirs) < CLOSE
        logits = logits_of(model, theirs, model.encode_text(tokenizer(list(TEXTS)), normalize=False))
        assert relative_error(text.logits(pooled, TEXTS), logits) < CLOSE
    assert backbone.preprocess.mean == tuple(open_clip.OPENAI_DATASET_MEAN)
    assert backbone.preprocess.crop_pct == 1.0


@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_preprocessing_equals_open_clip(mode: str, tmp_path: Path) -> None:
    OpenClipCase(preprocess={"resize_mode": mode, "interpolation": "bilinear"}).save(tmp_path)
    ours = load_backbone(tmp_path).preprocess
    config = open_clip.transform.PreprocessCfg(size=32, resize_mode=mode, interpolation="bilinear")
    theirs = open_clip.transform.image_transform_v2(config, is_train=False)
    picture = photo(70, 51)
    assert torch.allclose(ours(picture), theirs(picture), atol=1e-6)


@pytest.mark.parametrize("name", ["clip", "custom text"])
def test_a_trainers_file_is_read(name: str, tmp_path: Path) -> None:
    model, _ = OPEN_CLIP[name].save(tmp_path)
    trained = {"epoch": 3, "state_dict": {f"module.{key}": value + 0.01 for key, value in model.state_dict().items()}}
    torch.save(trained, tmp_path / "epoch_3.pt")
    model.load_state_dict({key: value + 0.01 for key, value in model.state_dict().items()})
    text = load_text(tmp_path, tmp_path / "epoch_3.pt")
    with torch.inference_mode():
        assert relative_error(text(TEXTS), model.encode_text(text.tokenizer(TEXTS).ids)) < CLOSE


def test_the_authors_files_need_a_tokenizer(tmp_path: Path) -> None:
    name = "ViT-B-32.openai"
    case = OpenClipCase(
        {"context_length": 77, "width": 512, "heads": 8, "layers": 12}, {"quick_gelu": True, "embed_dim": 512}
    )
    model, _ = case.save(tmp_path)
    weights = tmp_path / "open_clip_model.safetensors"
    with pytest.raises(ValueError, match="give tokenizer=PATH"):
        load_text(name, weights)
    text = load_text(name, weights, tokenizer=tmp_path / "bpe_simple_vocab_16e6.txt.gz")
    texts = [*TEXTS, *ODD]
    ids = open_clip.get_tokenizer("ViT-B-32")(texts)
    assert torch.equal(text.tokenizer(texts).ids, ids)
    with torch.inference_mode():
        assert relative_error(text(texts), model.encode_text(ids)) < CLOSE


def test_names_of_text_towers_are_names_of_image_towers() -> None:
    assert {*TEXT_REPOSITORIES, *OPENAI_TEXT} <= set(list_backbones())
    known = {each.partition("/")[0] for each in TEXT_REPOSITORIES.values()}
    assert known == {"timm", "laion", "google"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"timm_model_name": "test_resnet", "timm_pool": "rot_attn"}, "timm_pool='rot_attn'"),
        ({"timm_model_name": "test_resnet", "timm_proj": "conv"}, "timm_proj"),
        ({"timm_model_name": "test_resnot"}, "knows no architecture 'test_resnot', did you mean"),
        ({"attentional_pool": "parallel"}, "attentional_pool"),
        ({"attentional_pool": True, "pool_type": "avg"}, "pool_type='avg'"),
        ({"layers": [3, 4, 6, 3]}, "layers"),
    ],
)
def test_image_towers_that_are_not_known_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    OPEN_CLIP["clip"].save(tmp_path)
    change(tmp_path, "vision_cfg", settings)
    load_text(tmp_path)
    with pytest.raises(ValueError, match=re.escape(words)) as raised:
        load_backbone(tmp_path)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_timms_directory_of_an_image_tower_has_its_projection(name: str, tmp_path: Path) -> None:
    """timm's repositories of image towers hold open_clip's configuration beside timm's, and the projection as head."""
    OPEN_CLIP["clip"].save(tmp_path)
    model = randomise(timm.create_model(name, num_classes=24))
    save_for_hf(model, tmp_path, model_config={"num_classes": 24}, safe_serialization=name == "test_vit")
    images = torch.randn(2, 3, *model.default_cfg["input_size"][1:], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        pooled = load_backbone(tmp_path)(images).pooled
        assert relative_error(pooled, model(images)) < CLOSE
        assert load_text(tmp_path).logits(pooled, ["a cat", "a dog"]).shape == (2, 2)
    (tmp_path / "open_clip_config.json").unlink()
    assert load_checkpoint(tmp_path).head["head.weight"].shape[0] == 24


def change(folder: Path, key: str, settings: dict[str, object]) -> None:
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text())
    config["model_cfg"][key] |= settings
    file.write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hf_pooler_type": "max_pooler"}, "hf_pooler_type"),
        ({"hf_proj_type": None}, "hf_proj_type=null with vectors of 24 numbers"),
        ({"hf_model_name": "{}/t5"}, "a 't5', which is not known here; want one of bert, roberta, xlm-roberta"),
        ({"hf_model_name": "{}/cats"}, "cats"),
    ],
)
def test_other_towers_of_transformers_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    OPEN_CLIP["roberta"].save(tmp_path)
    (tmp_path / "t5").mkdir()
    (tmp_path / "t5" / "config.json").write_text('{"model_type": "t5"}')
    (tmp_path / "cats").mkdir()
    change(tmp_path, "text_cfg", {k: v and v.replace("{}", str(tmp_path)) for k, v in settings.items()})
    with pytest.raises(ValueError, match=re.escape(words)):
        load_text(tmp_path)


@pytest.mark.parametrize("setting", [{"scale_heads": True}, {"qk_norm": True}])
def test_other_text_towers_are_refused(setting: dict[str, object], tmp_path: Path) -> None:
    OPEN_CLIP["clip"].save(tmp_path)
    change(tmp_path, "text_cfg", setting)
    with pytest.raises(ValueError, match=f"text_cfg.{next(iter(setting))}"):
        load_text(tmp_path)
