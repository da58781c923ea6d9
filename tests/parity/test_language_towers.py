"""The vision towers of language models equal transformers on identical, fully randomised weights."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import randomise, relative_error
from tests.oracles.cases import LIMIT, Case, check_parity, errors, images
from tests.oracles.language_towers import LANGUAGE_CASES, TOWERS, tower_model
from vitbackbone import load_backbone


@pytest.mark.parametrize("case", LANGUAGE_CASES, ids=lambda case: case.name)
def test_equals_transformers(case: Case, tmp_path: Path) -> None:
    check_parity(case, tmp_path)


# ---- the authors' own files, made from transformers' --------------------------------------------------------------

INTERN = {
    "embeddings.cls_token": "embeddings.class_embedding",
    "patch_embeddings.projection": "patch_embedding",
    "position_embeddings": "position_embedding",
    "encoder.layer.": "encoder.layers.",
    "attention.projection_layer": "attn.proj",
    "attention.": "attn.",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "lambda_1": "ls1",
    "lambda_2": "ls2",
}


def test_the_authors_internvit_is_transformers(tmp_path: Path) -> None:
    """Under the whole model's prefix, with q, k and v in one layer."""
    model = tower_model("internvl 6b")
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        for theirs, authors in INTERN.items():
            name = name.replace(theirs, authors)
        state[f"vision_model.{name}"] = value
    for i in range(3):
        block = f"vision_model.encoder.layers.{i}.attn"
        state[f"{block}.qkv.weight"] = torch.cat([state.pop(f"{block}.{part}_proj.weight") for part in "qkv"])
    save_file(state, tmp_path / "model.safetensors")
    named = {"model_type": "intern_vit_6b", "qk_normalization": True, "norm_type": "rms_norm"}
    vision = {**TOWERS["internvl 6b"].settings, **named}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "internvl_chat", "vision_config": vision}))
    ours, x = load_backbone(tmp_path), images((40, 88))
    with torch.inference_mode():
        want = model(x).last_hidden_state
        assert relative_error(ours(x).tokens, want[:, 1:]) <= LIMIT
        assert relative_error(ours(x).pooled, want[:, 0]) <= LIMIT


@pytest.mark.parametrize("prefix", ["", "vision_tower."])
def test_moonvits_own_files_are_transformers(prefix: str, tmp_path: Path) -> None:
    """In its own layout, channels of queries and keys turn with their neighbours."""
    case = next(case for case in LANGUAGE_CASES if case.name == "kimi")
    model, width = case.model(), 16
    order = [place for pair in range(width // 2) for place in (pair, pair + width // 2)]
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        for theirs, own in {".norm1.": ".norm0.", ".norm2.": ".norm1.", ".fc1.": ".fc0.", ".fc2.": ".fc1."}.items():
            if theirs in name:
                name = name.replace(theirs, own)
                break
        name = name.replace("layers.", "encoder.blocks.").replace("attn.proj", "wo")
        name = name.replace("final_layernorm", "encoder.final_layernorm").replace("position_embeddings", "weight")
        state[name] = value
    for i in range(3):
        for kind in ("weight", "bias"):
            q, k, v = (state.pop(f"encoder.blocks.{i}.attn.{part}_proj.{kind}") for part in "qkv")
            q, k = (part.unflatten(0, (-1, width))[:, order].flatten(0, 1) for part in (q, k))
            state[f"encoder.blocks.{i}.wqkv.{kind}"] = torch.cat([q, k, v])
    save_file({prefix + name: value for name, value in state.items()}, tmp_path / "model.safetensors")
    sides = {"init_pos_emb_height": 8, "init_pos_emb_width": 8}
    settings = {**TOWERS["kimi"].settings, **sides, "model_type": "moonvit"}
    del settings["pos_emb_height"], settings["pos_emb_width"]
    whole = {"model_type": "kimi_vl", "vision_config": settings} if prefix else settings
    (tmp_path / "config.json").write_text(json.dumps(whole))
    found = errors(load_backbone(tmp_path), case, model, (40, 88))
    assert max(found.values()) <= LIMIT, found


# ---- whole models -------------------------------------------------------------------------------------------------

TEXT = {
    **{"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 3},
    **{"intermediate_size": 32, "vocab_size": 64},
}
TURNED = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]}}
QWEN_TEXT = {**TEXT, **TURNED, "head_dim": 16}
EXPERTS = {"num_local_experts": 2, "intermediate_size_mlp": 32, "num_experts_per_tok": 1, "head_dim": 16}
#    tower: the class of the whole model, its text model, and where the tower is
WHOLE: dict[str, tuple[str, dict[str, object], str]] = {
    "internvl 6b": ("internvl.InternVLForConditionalGeneration", {**TEXT, "model_type": "qwen2"}, "model.vision_tower"),
    "qwen2 vl": ("qwen2_vl.Qwen2VLForConditionalGeneration", QWEN_TEXT, "model.visual"),
    "qwen2.5 vl": ("qwen2_5_vl.Qwen2_5_VLForConditionalGeneration", QWEN_TEXT, "model.visual"),
    "qwen3 vl": ("qwen3_vl.Qwen3VLForConditionalGeneration", QWEN_TEXT, "model.visual"),
    "pixtral": (
        "mistral3.Mistral3ForConditionalGeneration",
        {**TEXT, "model_type": "mistral", "head_dim": 16},
        "model.vision_tower",
    ),
    "llama 4": ("llama4.Llama4ForConditionalGeneration", {**TEXT, **EXPERTS}, "vision_model"),
    "kimi": ("kimi_k25.Kimi_K25ForConditionalGeneration", {**TEXT, "model_type": "qwen2"}, "model.vision_tower"),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_tower_of_a_whole_model_is_read(name: str, tmp_path: Path) -> None:
    path, text, place = WHOLE[name]
    folder, kind = path.split(".")
    model_class = getattr(import_module(f"transformers.models.{folder}.modeling_{folder}"), kind)
    vision = {**TOWERS[name].settings, **({"out_hidden_size": 48} if name == "qwen3 vl" else {})}
    if name in ("pixtral", "internvl 6b"):
        vision["model_type"] = {"pixtral": "pixtral"}.get(name, "internvl_vision")
    model = randomise(model_class(model_class.config_class(vision_config=vision, text_config=text)))
    model.save_pretrained(tmp_path)
    case = next(case for case in LANGUAGE_CASES if case.name == name)
    found = errors(load_backbone(tmp_path), case, model.get_submodule(place), (64, 64))
    assert max(found.values()) <= LIMIT, found
