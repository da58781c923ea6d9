"""Tiny image-text models of the upstreams with random parameters, saved whole with a tokenizer."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn

from tests.helpers import randomise

TEXTS = (
    "a photo of a cat",
    "A Photo of THE dog!",
    "",
    "two  cats,\tand a dog's bowl (in the sun) 2026",
    "cafés, naïve Ω ß 猫 🐈 <tag> &amp; _under_score_",
    "a very long sentence about a cat and a dog and a bird and a horse " * 4,
)
WORDS = (
    *TEXTS,
    "the cat sat on the mat with a dog",
    "photo of birds horses bowls and the sun in cafés",
    "sentence",
) * 20
TEXT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {**TEXT, "image_size": 32, "patch_size": 8}
LENGTH = 16  # positions: some of the texts are longer

transformers.utils.logging.disable_progress_bar()
transformers.utils.logging.set_verbosity_error()


# ---- tokenizers ---------------------------------------------------------------------------------------------------


def clip_tokenizer() -> Any:
    """Return a CLIPTokenizer with some merges, learned from the texts."""
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["!", "<|startoftext|>", "<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    learned = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learned.normalizer = normalizers.Lowercase()
    learned.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    learned.train_from_iterator(WORDS, trainer)
    model = json.loads(learned.to_str())["model"]
    words = [word for word in model["vocab"] if "<|" not in word and word != "!"]
    words = ["!", *(word for word in words), *(f"{letter}</w>" for letter in pre_tokenizers.ByteLevel.alphabet())]
    words = [*dict.fromkeys(words), "<|startoftext|>", "<|endoftext|>"]  # as published: the end has the highest id
    merges = [tuple(pair) for pair in model["merges"]]
    return transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=merges)


def _sentencepiece(lower: bool, **ends: Any) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    steps = [normalizers.Lowercase()] * lower
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.NFKC()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, show_progress=False, **ends)
    tokenizer.train_from_iterator(WORDS, trainer)
    return tokenizer


def siglip_tokenizer(**options: Any) -> Any:
    """Return a tokenizer like those of SigLIP's repositories, as `tokenizer.json`: words and an end token."""
    tokenizer = _sentencepiece(False, special_tokens=["<pad>", "</s>", "<unk>"], unk_token="<unk>")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    names = {"pad_token": "</s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{**names, **options})


def xlm_tokenizer() -> Any:
    """Return a tokenizer like XLM-R's, whose end token has the id 2."""
    tokenizer = _sentencepiece(False, special_tokens=["<s>", "<pad>", "</s>", "<unk>"], unk_token="<unk>")
    ends = [("<s>", 0), ("</s>", 2)]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def _bpe(special: list[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    learned = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    learned.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Replace(" ", "▁")])
    learned.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    fallback = [f"<0x{i:02X}>" for i in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=480, special_tokens=[*special, *fallback], show_progress=False)
    learned.train_from_iterator(WORDS, trainer)
    model = json.loads(learned.to_str())["model"]
    return model["vocab"], [tuple(pair) for pair in model["merges"]]


def bert_tokenizer() -> Any:
    """Return a BertTokenizer with some pieces of words."""
    learned = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    learned.normalizer = normalizers.BertNormalizer()
    learned.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    learned.train_from_iterator(WORDS, trainers.WordPieceTrainer(vocab_size=160, special_tokens=special))
    return transformers.BertTokenizer(vocab=learned.get_vocab())


def siglip2_tokenizer(**options: Any) -> Any:
    """Return a Siglip2Tokenizer. It pads on the left unless an option says otherwise."""
    vocab, merges = _bpe(["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"])
    return transformers.Siglip2Tokenizer(vocab=vocab, merges=merges, **options)


def tipsv2_tokenizer() -> Any:
    """Return a Tipsv2Tokenizer."""
    from transformers.models.tipsv2.tokenization_tipsv2 import Tipsv2Tokenizer

    vocab, merges = _bpe(["<pad>", "<unk>"])
    return Tipsv2Tokenizer(vocab=vocab, merges=merges, model_max_length=LENGTH)


# ---- models of transformers ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A class of transformers with its tokenizer. `padding`: how its processor pads."""

    model: str
    config: str
    tokenizer: Callable[[], Any]
    padding: str | bool = True
    text: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    masked: bool = True  # whether the model is given the tokenizer's mask

    def make(self, seed: int = 0) -> tuple[nn.Module, Any]:
        """Return the model with random parameters, and its tokenizer."""
        tokenizer = self.tokenizer()
        size = max(tokenizer.get_vocab().values()) + 1
        ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
        text = {**TEXT, "max_position_embeddings": LENGTH, "vocab_size": size, **ids, **self.text}
        vision = {key: value for key, value in {**VISION, **self.vision}.items() if value is not None}
        config = getattr(transformers, self.config)(text_config=text, vision_config=vision, **self.whole)
        return randomise(getattr(transformers, self.model)(config), seed), tokenizer

    def save(self, folder: Path, seed: int = 0) -> tuple[nn.Module, Any]:
        """Save a model with its tokenizer, and return both."""
        model, tokenizer = self.make(seed)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return model, tokenizer

    def tokens(self, tokenizer: Any, texts: Any = TEXTS) -> dict[str, Tensor]:
        """Return the ids and the mask that upstream's tokenizer gives."""
        options = {"padding": self.padding, "truncation": True, "max_length": LENGTH, "return_tensors": "pt"}
        found = tokenizer(list(texts), return_attention_mask=True, **options)
        return {"input_ids": found["input_ids"], "attention_mask": found["attention_mask"].bool()}


NAMES = {"model_input_names": ["input_ids"]}
MASKED = ["input_ids", "attention_mask"]
CASES: dict[str, Case] = {
    "clip": Case("CLIPModel", "CLIPConfig", clip_tokenizer, whole={"projection_dim": 24}),
    "clip gelu": Case("CLIPModel", "CLIPConfig", clip_tokenizer, text={"hidden_act": "gelu"}),
    "clip legacy": Case("CLIPModel", "CLIPConfig", clip_tokenizer, text={"eos_token_id": 2}),
    "x-clip": Case("XCLIPModel", "XCLIPConfig", clip_tokenizer, whole={"projection_dim": 24}),
    "metaclip 2": Case("MetaClip2Model", "MetaClip2Config", xlm_tokenizer, whole={"projection_dim": 24}),
    "aimv2": Case("Aimv2Model", "Aimv2Config", clip_tokenizer, whole={"projection_dim": 24}),
    "aimv2 biased": Case("Aimv2Model", "Aimv2Config", clip_tokenizer, text={"qkv_bias": True, "mlp_bias": True}),
    "chinese clip": Case("ChineseCLIPModel", "ChineseCLIPConfig", bert_tokenizer, whole={"projection_dim": 24}),
    "altclip": Case(
        "AltCLIPModel",
        "AltCLIPConfig",
        xlm_tokenizer,
        text={"max_position_embeddings": LENGTH + 2, "project_dim": 20},
        whole={"projection_dim": 24},
    ),
    "siglip": Case("SiglipModel", "SiglipConfig", siglip_tokenizer, "max_length", masked=False),
    "siglip projected": Case(
        "SiglipModel", "SiglipConfig", siglip_tokenizer, "max_length", text={"projection_size": 32}, masked=False
    ),
    "siglip 2": Case(
        "Siglip2Model",
        "Siglip2Config",
        lambda: siglip2_tokenizer(padding_side="right", **NAMES),
        "max_length",
        vision={"image_size": None, "num_patches": 16},
        masked=False,
    ),
    "siglip 2 in siglip": Case("SiglipModel", "SiglipConfig", siglip2_tokenizer, "max_length", masked=False),
    "siglip 2 masked": Case(
        "SiglipModel", "SiglipConfig", lambda: siglip2_tokenizer(model_input_names=MASKED), "max_length"
    ),
    "tipsv2": Case("Tipsv2Model", "Tipsv2Config", tipsv2_tokenizer, "max_length", vision={"intermediate_size": None}),
    "tipsv2 unscaled": Case(
        "Tipsv2Model",
        "Tipsv2Config",
        tipsv2_tokenizer,
        "max_length",
        text={"scale_sqrt_depth": False},
        vision={"intermediate_size": None},
    ),
}


def text_vectors(case: Case, model: nn.Module, tokenizer: Any, texts: Any = TEXTS) -> Tensor:
    """Return upstream's vectors of texts."""
    tokens = case.tokens(tokenizer, texts)
    mask = {"attention_mask": tokens["attention_mask"]} if case.masked else {}
    with torch.inference_mode():
        return model.get_text_features(input_ids=tokens["input_ids"], **mask).pooler_output
