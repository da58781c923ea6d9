"""Files that trainers write: the network behind prefixes, in copies, in chunks or wrapped, and what is beside it."""

import argparse
import json
import logging
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.helpers import randomise, relative_error
from vitbackbone import ConversionError, load_backbone, load_checkpoint
from vitbackbone.checkpoints.zoo import ZOO

LIMIT = 1e-5
NAME = "vit_tiny_patch16_224.augreg_in21k"
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, State, State]:
    """A network, its parameters, and the parameters of another network of the same architecture."""
    first, second = (
        randomise(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=224), seed) for seed in (0, 1)
    )
    return first, first.state_dict(), second.state_dict()


@pytest.fixture(scope="module")
def want(networks: tuple[nn.Module, State, State]) -> Tensor:
    with torch.inference_mode():
        return networks[0].forward_features(image())


def image() -> Tensor:
    return torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(3))


def behind(prefix: str, state: State) -> State:
    return {prefix + key: tensor for key, tensor in state.items()}


def wrapped(state: State) -> State:
    """FSDP and activation checkpointing put their names into the middle of keys."""
    inside = {key.replace(".attn.", "._fsdp_wrapped_module.attn."): tensor for key, tensor in state.items()}
    return behind("_fsdp_wrapped_module._orig_mod.", inside)


def chunked(state: State, through: bool) -> State:
    """Blocks in chunks of 4: numbered over all chunks, as DINOv2's trainer does, or within each chunk."""

    def key_of(key: str) -> str:
        if not key.startswith("blocks."):
            return key
        _, block, rest = key.split(".", 2)
        return f"blocks.{int(block) // 4}.{int(block) if through else int(block) % 4}.{rest}"

    return {key_of(key): tensor for key, tensor in state.items()}


HEADS = {"head.mlp.0.weight": torch.zeros(8, 192), "head.last_layer.weight_v": torch.zeros(4, 8)}
LIGHTNING = {
    "epoch": 3,
    "callbacks": {"ModelCheckpoint": {"best": torch.zeros(1)}},
    "hyper_parameters": {"lr": 0.1},
    "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(2)}}}],
    "loops": {"fit_loop": {"state_dict": {}}},
}
FILES = {
    "ddp": lambda a, b: behind("module.", a),
    "compiled": lambda a, b: {"state_dict": behind("_orig_mod.", a), "epoch": 3},
    "several": lambda a, b: behind("module._orig_mod.model.backbone.", a),
    "any prefix": lambda a, b: behind("trainer.wrapped_net.", a),
    "fsdp": lambda a, b: wrapped(a),
    "chunks": lambda a, b: chunked(a, through=True),
    "chunks apart": lambda a, b: behind("teacher.backbone.", chunked(a, through=False)),
    "dino": lambda a, b: {"student": behind("module.backbone.", b), "teacher": behind("backbone.", a) | HEADS},
    "ema of timm": lambda a, b: {"state_dict": b, "state_dict_ema": a, "args": argparse.Namespace(lr=0.1)},
    "ema of deit": lambda a, b: {"model": b, "model_ema": a, "optimizer": {"state": {}}},
    "i-jepa": lambda a, b: {
        "encoder": behind("module.", b),
        "target_encoder": behind("module.", a),
        "predictor": {"module.predictor_embed.weight": torch.zeros(2, 2)},
    },
    "lightning": lambda a, b: {"state_dict": behind("model.net.", a) | {"loss.weight": torch.zeros(3)}, **LIGHTNING},
    "lightning with ema": lambda a, b: {"state_dict": behind("model.", b) | behind("ema_model.module.", a)},
    "rope buffers": lambda a, b: behind(
        "visual.trunk.", {**a, "rope.freqs": torch.zeros(4), "mask_token": HEADS["head.mlp.0.weight"]}
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_network_is_found(
    kind: str, networks: tuple[nn.Module, State, State], want: Tensor, tmp_path: Path
) -> None:
    torch.save(FILES[kind](*networks[1:]), tmp_path / "trained.pth")
    with torch.inference_mode():
        got = load_backbone(NAME, weights=tmp_path / "trained.pth")(image())
    assert relative_error(got.tokens, want[:, 1:]) < LIMIT
    assert relative_error(got.cls, want[:, 0]) < LIMIT


@pytest.mark.parametrize("name", ["efficientnet_b0", "ghostnet_050", "mobilenetv3_small_050", "tf_mixnet_s"])
def test_stages_of_a_network_are_no_chunks(name: str, tmp_path: Path) -> None:
    """EfficientNet's own keys are `blocks.stage.block.`, as a trainer's chunks of a ViT are."""
    network = randomise(timm.create_model(name, num_classes=3))
    torch.save({"state_dict": behind("model.", network.state_dict())}, tmp_path / "trained.pth")
    pixels = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        got = load_backbone(f"timm:{name}", weights=tmp_path / "trained.pth")(pixels)
        want = network.forward_head(network.forward_features(pixels), pre_logits=True)
    assert relative_error(got.pooled, want) < LIMIT


def test_a_line_says_what_was_taken_and_left_out(
    networks: tuple[nn.Module, State, State], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(FILES["dino"](*networks[1:]), tmp_path / "trained.pth")
    with caplog.at_level(logging.INFO, "vitbackbone"):
        load_backbone(NAME, weights=tmp_path / "trained.pth")
    (text,) = [record.getMessage() for record in caplog.records]
    assert "took the keys behind 'teacher.backbone.' rather than 'student.module.backbone.'" in text
    assert f"left out student ({len(networks[1])}), teacher.head (2)" in text
    caplog.clear()
    save_file(networks[1], tmp_path / "plain.safetensors")
    load_backbone(NAME, weights=tmp_path / "plain.safetensors")
    assert not caplog.records


@pytest.mark.parametrize("part", ["student", "student.module", "student.module.backbone."])
def test_a_part_is_chosen_by_name(
    part: str, networks: tuple[nn.Module, State, State], want: Tensor, tmp_path: Path
) -> None:
    _, a, b = networks
    torch.save(FILES["dino"](b, a), tmp_path / "trained.pth")
    with torch.inference_mode():
        got = load_backbone(NAME, weights=tmp_path / "trained.pth", part=part)(image())
    assert relative_error(got.tokens, want[:, 1:]) < LIMIT
    with pytest.raises(ValueError, match="no part='coach'; want one of 'student.module.backbone', 'teacher.backbone'"):
        load_backbone(NAME, weights=tmp_path / "trained.pth", part="coach")


def test_copies_of_equal_rank_are_listed(networks: tuple[nn.Module, State, State], tmp_path: Path) -> None:
    torch.save(behind("left.", networks[1]) | behind("right.", networks[2]), tmp_path / "trained.pth")
    with pytest.raises(ValueError, match="choose one with tower=, or a copy with part=: 'left', 'right'"):
        load_backbone(NAME, weights=tmp_path / "trained.pth")


def test_a_classifier_behind_a_prefix_comes_along(networks: tuple[nn.Module, State, State], tmp_path: Path) -> None:
    head = {"head.weight": torch.randn(5, 192), "head.bias": torch.randn(5)}
    torch.save({"state_dict": behind("module.", networks[1] | head)}, tmp_path / "trained.pth")
    assert load_checkpoint(NAME, weights=tmp_path / "trained.pth").head["head.bias"].shape == (5,)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.update({"module.surprise": torch.zeros(1)}), "surprise: no rule of the format knows this key"),
        (lambda s: s.pop("module.norm.bias"), "norm.bias: the checkpoint does not fill"),
        (lambda s: s.update({"module.blocks.12.norm1.bias": torch.zeros(192)}), "blocks.12.norm1.bias"),
    ],
)
def test_what_is_left_over_or_missing_is_an_error(
    change: object, message: str, networks: tuple[nn.Module, State, State], tmp_path: Path
) -> None:
    state = behind("module.", networks[1])
    change(state)
    torch.save(state, tmp_path / "trained.pth")
    with pytest.raises(ConversionError, match=message):
        load_backbone(NAME, weights=tmp_path / "trained.pth")


def test_an_error_names_the_prefix_and_not_every_key(networks: tuple[nn.Module, State, State], tmp_path: Path) -> None:
    torch.save({f"net.stem{key}": tensor for key, tensor in networks[1].items()}, tmp_path / "trained.pth")
    with pytest.raises(ConversionError, match="all begin with the prefix 'net.'") as caught:
        load_backbone(NAME, weights=tmp_path / "trained.pth")
    assert len(str(caught.value)) <= 1000 + len(str(tmp_path))


def test_wrapped_and_plain_names_of_one_tensor_are_refused(
    networks: tuple[nn.Module, State, State], tmp_path: Path
) -> None:
    torch.save(networks[1] | {"_orig_mod.norm.bias": torch.zeros(192)}, tmp_path / "trained.pth")
    with pytest.raises(ConversionError, match="norm.bias: twice, with a wrapper's prefix and without"):
        load_backbone(NAME, weights=tmp_path / "trained.pth")


def test_authors_files_are_found_behind_prefixes(tmp_path: Path) -> None:
    """Layouts other than timm's, with chunks: what DINOv2's own trainer saves."""
    config = ZOO["dinov2_vits14"].config
    network = randomise(load_backbone("dinov2_vits14", "random"))
    plain = {k: v for k, v in network.state_dict().items() if k not in ("cls_token", "pos_embed.table")}
    table = network.state_dict()["pos_embed.table"][None]
    plain |= {"cls_token": network.state_dict()["cls_token"], "mask_token": torch.zeros(1, config.dim)}
    plain["pos_embed"] = torch.cat([torch.zeros(1, 1, config.dim), table], dim=1)
    heads = {"teacher.dino_head.mlp.0.weight": torch.zeros(2), "teacher.ibot_head.mlp.0.weight": torch.zeros(2)}
    torch.save(behind("teacher.backbone.", chunked(plain, through=True)) | heads, tmp_path / "trained.pth")
    x = torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        got = load_backbone("dinov2_vits14", weights=tmp_path / "trained.pth")(x).tokens
        assert relative_error(got, network(x).tokens) < LIMIT


def test_a_directory_takes_a_trainers_file(tmp_path: Path) -> None:
    import transformers

    settings = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    model = randomise(transformers.Dinov2Model(transformers.Dinov2Config(**settings)))
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    torch.save({"state_dict": behind("module.encoder.", state), **LIGHTNING}, tmp_path / "last.ckpt")
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        got = load_backbone(tmp_path, weights=tmp_path / "last.ckpt")(x).tokens
        assert relative_error(got, model(x).last_hidden_state[:, 1:]) < LIMIT
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "dinov2"


@pytest.mark.parametrize("kind", ["ddp", "ema"])
def test_a_network_of_the_adapter_is_found(kind: str, tmp_path: Path) -> None:
    model = randomise(timm.create_model("resnet18", num_classes=3))
    state = behind("module.", model.state_dict())
    torch.save(state if kind == "ddp" else {"state_dict": state, "state_dict_ema": state}, tmp_path / "trained.pth")
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        got = load_backbone("timm:resnet18", weights=tmp_path / "trained.pth")(x).patches
        assert relative_error(got, model.forward_features(x)) < LIMIT
