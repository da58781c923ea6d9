"""Tiny models of open_clip with random parameters, saved as open_clip writes them to the Hub."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import open_clip
import transformers
from open_clip.coca_model import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer, default_bpe
from safetensors.torch import save_file
from torch import nn

from tests.helpers import randomise
from tests.text.models import LENGTH, bert_tokenizer, siglip_tokenizer, xlm_tokenizer

TEXT = {"context_length": LENGTH, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2}
VIT = {"image_size": 32, "layers": 2, "width": 32, "head_width": 8, "patch_size": 8}
SIGLIP = {"no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6}}
NORMALISATION = {"mean": list(open_clip.OPENAI_DATASET_MEAN), "std": list(open_clip.OPENAI_DATASET_STD)}


@dataclass(frozen=True)
class OpenClipCase:
    """A configuration of open_clip. `tokenizer`: one of transformers, or None for CLIP's own."""

    text: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    tokenizer: Callable[[], Any] | None = None
    preprocess: dict[str, Any] = field(default_factory=dict)
    inner: Callable[[int], Any] | None = None  # the configuration of a text tower of transformers, for a vocabulary

    @property
    def config(self) -> dict[str, Any]:
        text = {**TEXT, **self.text}
        if self.tokenizer is not None:
            text |= {"hf_tokenizer_name": "somebody/something", "vocab_size": len(self.tokenizer().get_vocab())}
        return {"embed_dim": 24, "vision_cfg": self.vision or VIT, "text_cfg": text, **self.options}

    def save(self, folder: Path, seed: int = 0) -> tuple[nn.Module, Any]:
        """Save a model, and return it with its tokenizer."""
        config = copy.deepcopy(self.config)
        if self.inner is not None:
            self.inner(config["text_cfg"].pop("vocab_size")).save_pretrained(folder / "text")
            config["text_cfg"] |= {"hf_model_name": str(folder / "text"), "hf_model_pretrained": False}
        saved = copy.deepcopy(config)
        custom = config.pop("custom_text", False) or self.inner is not None
        network = CoCa if "multimodal_cfg" in config else CustomTextCLIP if custom else CLIP
        model = randomise(network(**config), seed)
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        whole = {"model_cfg": saved, "preprocess_cfg": {**NORMALISATION, **self.preprocess}}
        (folder / "open_clip_config.json").write_text(json.dumps(whole))
        options = self.text.get("tokenizer_kwargs", {})
        if self.tokenizer is None:
            shutil.copy(default_bpe(), folder)
            return model, SimpleTokenizer(context_length=LENGTH, **options)
        self.tokenizer().save_pretrained(folder)
        return model, HFTokenizer(str(folder), context_length=LENGTH, **options)


def _bert(name: str, **settings: Any) -> Callable[[int], Any]:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    kind = getattr(transformers, name)
    return lambda words: kind(vocab_size=words, max_position_embeddings=LENGTH + 4, **sizes, **settings)


# CoCa: a token after the text, attention pooling of the image, and a decoder
CLS = {"embed_cls": True, "output_tokens": True}
COCA = {
    "multimodal_cfg": {"context_length": LENGTH, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 1},
    "custom_text": True,
}
ATTENDED = {"attentional_pool": True, "attn_pooler_heads": 4, "attn_pooler_queries": 5, "output_tokens": True}
TINY = {"image_size": 160, "timm_model_name": "test_vit"}  # timm's own tiny network: 64 wide, 6 deep
NETWORK = {"image_size": 160, "timm_model_name": "test_resnet", "timm_proj": "linear"}
OPEN_CLIP: dict[str, OpenClipCase] = {
    "clip": OpenClipCase(),
    "clip quick": OpenClipCase(options={"quick_gelu": True}),
    "custom text": OpenClipCase(options={"custom_text": True}),
    "mobile": OpenClipCase({"no_causal_mask": True}, {"custom_text": True}),
    "scaled layers": OpenClipCase({"ls_init_value": 0.1, "mlp_ratio": 3.0}, {"custom_text": True}),
    "first": OpenClipCase({"pool_type": "first", "no_causal_mask": True}),
    "no projection": OpenClipCase({"proj_type": "none", "width": 24}),
    "tanh": OpenClipCase({"act_kwargs": {"approximate": "tanh"}}),
    "kept case": OpenClipCase({"tokenizer_kwargs": {"clean": "whitespace"}}),
    "siglip": OpenClipCase(
        {**SIGLIP, "tokenizer_kwargs": {"clean": "canonicalize"}},
        {"custom_text": True, "init_logit_bias": -10},
        tokenizer=siglip_tokenizer,
    ),
    "worldwide": OpenClipCase({"pool_type": "eos", "eos_id": 2}, {"quick_gelu": True}, tokenizer=xlm_tokenizer),
    "averaged": OpenClipCase(vision={**VIT, "pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True}),
    "averaged before": OpenClipCase(vision={**VIT, "pool_type": "avg", "image_size": [32, 48]}),
    "odd sizes": OpenClipCase(vision={**VIT, "ls_init_value": 0.1, "mlp_ratio": 3.0, "norm_kwargs": {"eps": 1e-6}}),
    "timm": OpenClipCase(vision={**TINY, "timm_pool": "token"}),
    "timm biased": OpenClipCase(vision={**TINY, "timm_pool": "avg", "timm_proj_bias": True}),
    "timm by its head": OpenClipCase(vision={**TINY, "timm_pool": "token", "timm_proj": None}),
    "timm attention": OpenClipCase(
        {"width": 64}, {"embed_dim": 64, "custom_text": True}, {**TINY, "timm_pool": "map", "timm_proj": "none"}
    ),
    # networks of timm that run in the adapter
    "convnext": OpenClipCase(vision={**NETWORK, "timm_model_name": "test_convnext", "timm_pool": ""}),
    "convnext mlp": OpenClipCase(
        {},
        {"custom_text": True},
        {**NETWORK, "timm_model_name": "test_convnext2", "timm_proj": "mlp", "timm_proj_bias": True, "timm_pool": ""},
    ),
    "resnet by its head": OpenClipCase(vision={**NETWORK, "timm_pool": "avg", "timm_proj": None}),
    "resnet biased": OpenClipCase(vision={**NETWORK, "timm_pool": "max", "timm_proj_bias": True}),
    "resnet alone": OpenClipCase(
        {"width": 96}, {"embed_dim": 96}, {**NETWORK, "timm_pool": "avg", "timm_proj": "none"}
    ),
    "timm mlp": OpenClipCase(vision={**TINY, "timm_pool": "token", "timm_proj": "mlp"}),
    "perception": OpenClipCase(
        {},
        {"custom_text": True},
        {"image_size": 384, "timm_model_name": "vit_pe_core_tiny_patch16_384", "timm_pool": "map", "timm_proj": None},
    ),
    "coca": OpenClipCase({**CLS}, COCA, {**VIT, **ATTENDED}),
    "coca without attention": OpenClipCase({**CLS}, COCA, {**VIT, "output_tokens": True}),
    "coca of one width": OpenClipCase({**CLS}, {**COCA, "embed_dim": 32}, {**VIT, **ATTENDED}),
    "roberta": OpenClipCase(inner=_bert("RobertaConfig", layer_norm_eps=1e-5), tokenizer=xlm_tokenizer),
    "xlm-roberta": OpenClipCase(
        {"hf_proj_type": "linear", "tokenizer_kwargs": {"strip_sep_token": True}},
        inner=_bert("XLMRobertaConfig", hidden_act="gelu_new"),
        tokenizer=xlm_tokenizer,
    ),
    "roberta by its pooler": OpenClipCase(
        {"hf_pooler_type": "cls_pooler"}, inner=_bert("RobertaConfig"), tokenizer=xlm_tokenizer
    ),
    "roberta of one width": OpenClipCase(
        {"hf_pooler_type": "cls_last_hidden_state_pooler", "hf_proj_type": None},
        {"embed_dim": 32, "init_logit_bias": -10},
        inner=_bert("RobertaConfig"),
        tokenizer=xlm_tokenizer,
    ),
    "bert": OpenClipCase(
        {"hf_pooler_type": "cls_pooler"}, inner=_bert("BertConfig", pad_token_id=0), tokenizer=bert_tokenizer
    ),
    "coca of roberta": OpenClipCase(
        {"hf_proj_type": "linear", "output_tokens": True},
        {**COCA, "multimodal_cfg": {**COCA["multimodal_cfg"], "width": 32}},
        {**VIT, **ATTENDED},
        xlm_tokenizer,
        inner=_bert("RobertaConfig"),
    ),
    "stripped": OpenClipCase({"tokenizer_kwargs": {"strip_sep_token": True}}, tokenizer=xlm_tokenizer),
}
