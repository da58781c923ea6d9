"""From a name to a backbone: sources, errors that say what to do, nothing unpickled."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.deit.image_processing_pil_deit import DeiTImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import vitbackbone.checkpoints.sources
from tests.checkpoints.sampling import covering, first_of_each
from tests.helpers import photo, randomise, relative_error, tiny_vit
from vitbackbone import (
    ConversionError,
    ViT,
    WeightsUnavailable,
    list_backbones,
    load_backbone,
    load_checkpoint,
)
from vitbackbone.checkpoints.formats import FORMATS
from vitbackbone.checkpoints.huggingface import VIT_EVAL, read_preprocess
from vitbackbone.checkpoints.load import find_entry, read_weights
from vitbackbone.checkpoints.rules import bind, convert
from vitbackbone.checkpoints.zoo import ADAPTED, ZOO
from vitbackbone.checkpoints.zoo.pathology import HOPTIMUS_MEAN
from vitbackbone.images.preprocess import CLIP_MEAN, HALF, IMAGENET_MEAN
from vitbackbone.networks.fused import FusedConfig

TIMM_NAMES = [name for name, entry in ZOO.items() if entry.source.startswith("timm/")]
SMALL = "vit_tiny_patch16_224.augreg_in21k"


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_preprocessing_source_and_licence_are_those_of_timm(name: str) -> None:
    theirs, ours = timm.get_pretrained_cfg(name), ZOO[name]
    preprocess = ours.preprocess
    assert (3, *preprocess.image_size) == theirs.input_size == (3, *ours.config.image_size)
    assert (preprocess.mean, preprocess.std) == (theirs.mean, theirs.std)
    assert (preprocess.crop_pct, preprocess.crop_mode) == (theirs.crop_pct, theirs.crop_mode)
    assert preprocess.interpolation == theirs.interpolation
    assert ours.source == theirs.hf_hub_id
    assert (ours.num_classes or ours.config.projection_dim) == theirs.num_classes  # CLIP's projection is timm's head
    assert ours.licence == LICENCES.get(name, theirs.license)


LICENCES = {"vit_intern300m_patch14_448.ogvl_2pt5": "mit"}  # as its authors say; timm says nothing, so it gives its own


def kind(name: str) -> tuple[object, ...]:
    """Return the properties of an entry that a sample of the zoo covers."""
    entry = ZOO[name]
    config = entry.config
    return entry.format, config.mlp, config.qkv_bias, config.pool, config.num_registers, entry.source.split("/")[0]


@pytest.mark.parametrize(
    "name",
    covering(
        [name for name in TIMM_NAMES if "7b" not in name],
        quick=first_of_each([name for name in TIMM_NAMES if ZOO[name].config.depth <= 12], kind),
    ),
)
def test_the_configuration_is_timms(name: str) -> None:
    """Every tensor of timm's model has its place and shape; the models hold no numbers."""
    with torch.device("meta"):
        theirs = timm.create_model(name.split(".")[0], pretrained=False, num_classes=ZOO[name].num_classes)
        ours = ViT(ZOO[name].config)
    if ZOO[name].config.projection_dim:
        with torch.device("meta"):
            theirs.reset_classifier(ZOO[name].config.projection_dim)
    convert(theirs.state_dict(), bind(FORMATS[ZOO[name].format], ours.config), ours.state_dict())
    assert theirs.blocks[0].norm1.eps == ZOO[name].config.norm_eps
    quick = "openai" in name and "quickgelu" not in name  # timm runs the exact GELU there; the weights want the other
    activation = "QuickGELU" if quick else type(theirs.blocks[0].mlp.act).__name__
    assert activation == ACTIVATIONS[ZOO[name].config.mlp]


ACTIVATIONS = {"gelu": "GELU", "gelu_tanh": "GELUTanh", "quick_gelu": "QuickGELU", "swiglu": "SiLU"}


@pytest.mark.parametrize(
    "name",
    covering(
        [name for name in ZOO if name != "openvla"],
        quick=first_of_each([name for name in ZOO if name != "openvla"], kind),
    ),
)
def test_every_entry_builds_and_has_a_known_format(name: str) -> None:
    with torch.device("meta"):
        vit = ViT(ZOO[name].config)
    assert vit.spec.dim == ZOO[name].config.dim
    assert ZOO[name].format in FORMATS


def test_names_are_listed_by_pattern() -> None:
    assert list_backbones() == [*ZOO, *ADAPTED]
    found = list_backbones("*reg4_dinov2*")
    assert len(found) == 4
    assert all("reg4" in name for name in found)


def test_random_weights_need_no_network_and_run() -> None:
    backbone = load_backbone(SMALL, weights="random")
    assert not backbone.training
    assert backbone.spec.name == SMALL
    assert backbone(torch.randn(1, 3, 32, 48)).cls.shape == (1, 192)
    assert backbone.preprocess == ZOO[SMALL].preprocess


@pytest.mark.parametrize(
    ("name", "positions"),
    covering(
        ["vit_small_patch16_224.dino", "dinov2_vits14", "hf:facebook/dinov2-with-registers-small"],
        ["native", "timm", "hf"],
    ),
)
def test_the_resampling_policy_is_chosen_at_load(name: str, positions: str) -> None:
    config = load_backbone(name, weights="random", positions=positions).config
    assert config == ZOO[name].at_other_sizes(positions)


@pytest.mark.parametrize(
    "name",
    covering(
        ["swin_tiny_patch4_window7_224.ms_in1k", "timm:resnet18.a1_in1k", "timm:test_vit"],
        quick=["timm:resnet18.a1_in1k", "timm:test_vit"],
    ),
)
def test_other_models_of_timm_come_through_the_adapter(name: str, tmp_path: Path) -> None:
    theirs = randomise(timm.create_model(name.removeprefix("timm:").split(".")[0], pretrained=False))
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    checkpoint = load_checkpoint(name, weights=tmp_path / "model.safetensors", positions="timm")
    size = checkpoint.backbone.spec.image_size
    x = torch.randn(1, 3, *size)
    with torch.inference_mode():
        pooled = checkpoint.backbone(x).pooled
        logits = pooled @ checkpoint.head["head.weight"].T + checkpoint.head["head.bias"]
        assert relative_error(logits, theirs(x)) < 1e-5
    assert checkpoint.backbone.preprocess.image_size == size
    state = load_file(tmp_path / "model.safetensors")
    key = next(key for key in state if key.endswith("weight") and not key.startswith("head"))
    save_file({k: v for k, v in state.items() if k != key}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match=re.escape(key)):
        load_backbone(name, weights=tmp_path / "model.safetensors")


def test_a_revision_is_of_a_repository() -> None:
    for name in ("nano@main", "dino_vits16@main", "openvla@main"):
        with pytest.raises(ValueError, match="has no repository on the Hub, so no revision 'main'"):
            load_backbone(name, weights="random")
    assert load_backbone("timm:test_vit@main", weights="random").spec.depth > 0


def test_transformers_has_no_policy_for_every_network_of_timm() -> None:
    with pytest.raises(ValueError, match="transformers has none for resnet18"):
        load_backbone("timm:resnet18.a1_in1k", weights="random", positions="hf")


def test_positions_for_a_size_that_the_patch_does_not_divide(tmp_path: Path) -> None:
    """As SigLIP at 384 with patches of 14 has them: for 27 patches a side."""
    from transformers import SiglipVisionConfig, SiglipVisionModel

    settings = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 64}
    theirs = randomise(SiglipVisionModel(SiglipVisionConfig(**settings, patch_size=14, image_size=64)))
    theirs.save_pretrained(tmp_path)
    x = torch.randn(1, 3, 56, 56)
    with torch.inference_mode():
        want = theirs(pixel_values=torch.nn.functional.pad(x, (0, 8, 0, 8))).last_hidden_state
        assert relative_error(load_backbone(tmp_path)(x).tokens, want) < 1e-5


@pytest.mark.parametrize(
    ("file", "settings", "message"),
    [
        ("preprocessor_config.json", {"size": {"shortest_edge": 64}, "do_center_crop": False}, "crops nothing"),
        ("preprocessor_config.json", {"size": {"longest_edge": 64}}, "size=.*gives every photo its own size"),
        ("preprocessor_config.json", {"size": {"max_height": 64}}, "size="),
        ("preprocessor_config.json", {"image_mean": "0.5"}, "image_mean='0.5'"),
    ],
)
def test_a_processor_that_cannot_be_followed_is_refused(
    directory: Path, file: str, settings: dict[str, object], message: str
) -> None:
    (directory / file).write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        load_backbone(directory)


def test_the_image_processor_inside_of_another_is_read(directory: Path) -> None:
    inside = {"size": {"shortest_edge": 80}, "crop_size": {"height": 64, "width": 64}, "do_center_crop": True}
    (directory / "processor_config.json").write_text(json.dumps({"image_processor": inside, "tokenizer": {}}))
    preprocess = load_backbone(directory).preprocess
    assert (preprocess.image_size, preprocess.crop_pct) == ((64, 64), 0.8)


def test_a_classifier_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    settings = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = DeiTConfig(**settings, image_size=32, num_labels=3)
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    heads = [key for key in state if "classifier" in key]
    for left_out in (heads[:1], [key for key in heads if key.startswith("distillation")]):
        save_file({k: v for k, v in state.items() if k not in left_out}, tmp_path / "model.safetensors")
        with pytest.raises(ConversionError, match=left_out[0]):
            load_checkpoint(tmp_path)
    save_file({k: v for k, v in state.items() if k not in heads}, tmp_path / "model.safetensors")
    assert load_checkpoint(tmp_path).head == {}
    save_file({**state, **{k: state[k][:2] for k in heads}}, tmp_path / "model.safetensors")
    with pytest.raises(ConversionError, match="2 outputs of the classifier, 3 labels"):
        load_checkpoint(tmp_path)


def test_a_damaged_config_is_named(directory: Path) -> None:
    (directory / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match="config.json is not a whole JSON file"):
        load_backbone(directory)


def test_what_is_loaded_in_inference_mode_can_be_trained() -> None:
    with torch.inference_mode():
        nano = load_backbone("nano")
    nano(torch.randn(1, 3, 32, 32)).pooled.sum().backward()


def test_what_a_swins_windows_do_at_other_sizes_is_chosen_at_load() -> None:
    entry = find_entry("swin_tiny_patch4_window7_224.ms_in1k")
    assert entry.at_other_sizes("native").windows == "sized"
    assert entry.at_other_sizes("timm").windows == "timm"


@pytest.mark.slow
@pytest.mark.parametrize(("positions", "windows"), [("native", "sized"), ("timm", "timm")])
def test_a_swin_is_loaded_with_the_windows_chosen(positions: str, windows: str) -> None:
    name = "swin_tiny_patch4_window7_224.ms_in1k"
    assert load_backbone(name, "random", positions=positions).config.windows == windows


def test_a_directory_of_swin_is_read(tmp_path: Path) -> None:
    from transformers import SwinConfig, SwinModel

    config = SwinConfig(embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=4, image_size=64)
    theirs = randomise(SwinModel(config))
    theirs.save_pretrained(tmp_path)
    backbone = load_backbone(tmp_path)
    x = torch.randn(2, 3, 96, 72)
    with torch.inference_mode():
        assert relative_error(backbone(x).tokens, theirs(x).last_hidden_state) < 1e-5
        assert relative_error(backbone(x).pooled, theirs(x).pooler_output) < 1e-5
    assert backbone.spec.strides == (4, 8)


@pytest.mark.slow  # the split of the file has quick tests of its own
def test_openvla_takes_its_own_file_and_its_members_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small members in the places of the large ones."""
    small = ("vit_small_patch14_reg4_dinov2.lvd142m", "vit_base_patch16_siglip_224.webli")
    members = tuple((name, -2, False) for name in small)
    entry = replace(ZOO["openvla"], config=FusedConfig(members, (224, 224)))
    monkeypatch.setitem(ZOO, "openvla", entry)
    models = [
        randomise(timm.create_model(small[0].split(".")[0], pretrained=False, img_size=224)),
        randomise(timm.create_model(small[1].split(".")[0], pretrained=False, img_size=224)),
    ]
    state = {}
    for part, model in zip(("featurizer", "fused_featurizer"), models, strict=True):
        for key, value in model.state_dict().items():
            of_vision = key.replace("ls1.gamma", "ls1.scale_factor").replace("ls2.gamma", "ls2.scale_factor")
            state[f"vision_backbone.{part}.{of_vision}"] = value
    save_file({**state, "projector.fc1.weight": torch.zeros(2)}, tmp_path / "openvla.safetensors")
    fused = load_backbone("openvla", weights=tmp_path / "openvla.safetensors")
    x = fused.preprocess(photo(240, 300))[None]
    with torch.inference_mode():
        got = fused(x)
        parts = [
            model.get_intermediate_layers(half, n={len(model.blocks) - 2}, reshape=True)[0]
            for model, half in zip(models, x.split(3, dim=1), strict=True)
        ]
    # The member with 14 pixels a patch has the finer grid.
    assert got.patches.shape == (1, 384 + 768, 16, 16)
    assert relative_error(got.patches[:, :384], parts[0]) < 1e-5
    assert load_backbone("openvla", weights="random").spec.dim == 384 + 768


@pytest.mark.slow
def test_openvla_is_dinov2_and_siglip() -> None:
    fused = load_backbone("openvla", weights="random")
    with torch.inference_mode():
        assert fused(torch.randn(1, 6, 224, 224)).patches.shape == (1, 2176, 16, 16)


def test_an_unknown_policy_is_refused() -> None:
    """In a process of its own, without the type checks of the tests, which would come first."""
    code = f"from vitbackbone import load_backbone; load_backbone({SMALL!r}, 'random', positions='jax')"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "positions='jax'; want one of native, timm, hf" in result.stderr


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("vit_small_patch14_dinov2.lvd142", "did you mean 'vit_small_patch14_dinov2.lvd142m'"),
        ("vit_small_patch14_dinov2", "'vit_small_patch14_dinov2.lvd142m' or 'timm:vit_small_patch14_dinov2'?"),
        ("fastvit_t8", "did you mean 'timm:fastvit_t8'?"),
        ("fastvit_t8.apple_in1k", "did you mean 'timm:fastvit_t8.apple_in1k'?"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, hint: str) -> None:
    with pytest.raises(ValueError, match=re.escape(hint)):
        load_backbone(name, weights="random")


def test_without_a_network_the_error_names_nano_and_the_manual_path(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    ways = {
        SMALL: "weights=PATH",
        "hf:google/vit-base-patch16-224": "weights=PATH",
        "hf:someone/unheard-of": "load_backbone(DIR)",
    }
    for name, way in ways.items():
        with pytest.raises(WeightsUnavailable) as caught:
            load_backbone(name)
        assert "'nano' is built in" in str(caught.value)
        assert way in str(caught.value)


def test_any_failure_of_the_download_is_that_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class ProxyError(Exception):
        pass

    def download(*_: object, **__: object) -> str:
        raise ProxyError("bad gateway")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(WeightsUnavailable, match="bad gateway"):
        load_backbone(SMALL)


def test_a_glitch_is_not_mistaken_for_a_file_that_the_repository_lacks(
    monkeypatch: pytest.MonkeyPatch, directory: Path, tmp_path: Path
) -> None:
    """Without its `preprocessor_config.json` a model would run, on pixels normalised otherwise."""

    def download(repository: str, file: str, revision: str | None) -> str:
        if file == "preprocessor_config.json":
            raise LocalEntryNotFoundError("connection lost")
        return str(directory / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(WeightsUnavailable, match="connection lost"):
        load_backbone("hf:someone/model")


def test_a_file_that_the_cache_knows_to_be_missing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, directory: Path, tmp_path: Path
) -> None:
    """The cache marks it by an object with a private name: neither a path nor None. Offline, nothing else tells."""
    revision, cache = "0123456789abcdef0123456789abcdef01234567", tmp_path / "cache"
    repository = cache / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(revision)
    shutil.copytree(directory, repository / "snapshots" / revision, ignore=shutil.ignore_patterns("cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
    with pytest.raises(WeightsUnavailable, match="preprocessor_config.json"):
        load_backbone("hf:someone/model")
    missing = repository / ".no_exist" / revision
    missing.mkdir(parents=True)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (missing / name).touch()
        found = huggingface_hub.try_to_load_from_cache("someone/model", name)
        assert found is not None, "the cache says nothing of a missing file any more: look at hub._is_known_missing"
        assert not isinstance(found, str)
    assert load_backbone("hf:someone/model").config.dim == 16


@pytest.mark.parametrize("pickled", [False, True])
def test_a_repository_is_read_whatever_its_weights_are_called(
    monkeypatch: pytest.MonkeyPatch, directory: Path, pickled: bool
) -> None:
    want = load_backbone(directory).norm.bias
    if pickled:
        torch.save(load_file(directory / "model.safetensors"), directory / "pytorch_model.bin")
        (directory / "model.safetensors").unlink()
    assert torch.equal(load_backbone(directory).norm.bias, want)


def test_info_of_an_unlisted_repository_fetches_no_weights(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    def download(repository: str, file: str, revision: str | None) -> str:
        assert "model" not in file
        if not (directory / file).exists():
            raise EntryNotFoundError(file)
        return str(directory / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert find_entry("hf:someone/model").config.dim == 16


def test_weights_that_are_not_on_the_hub_say_where_they_are() -> None:
    with pytest.raises(WeightsUnavailable, match="dinov2_vits14_pretrain.pth"):
        load_backbone("dinov2_vits14")


def test_a_download_comes_from_the_named_repository_at_the_pinned_revision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    asked = []

    def download(repository: str, file: str, revision: str | None) -> str:
        asked.append((repository, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert load_backbone(f"{SMALL}@abc123").spec.name == f"{SMALL}@abc123"
    assert load_backbone(SMALL).spec.name == SMALL
    assert asked == [(f"timm/{SMALL}", "model.safetensors", "abc123"), (f"timm/{SMALL}", "model.safetensors", None)]


def test_a_repository_of_the_hub_is_read_as_a_directory(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    asked = []

    def download(repository: str, file: str, revision: str | None) -> str:
        asked.append((repository, revision))
        if not (directory / file).exists():
            raise EntryNotFoundError(file)
        return str(directory / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    backbone = load_backbone("hf:someone/model@v2")
    assert set(asked) == {("someone/model", "v2")}
    assert torch.equal(backbone.norm.bias, load_backbone(directory).norm.bias)


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str, ...]]:
        return exec, ("raise SystemExit('code from a checkpoint was run')",)


@pytest.mark.promise(24)
@pytest.mark.parametrize("protocol", ["torch", "pickle"])
def test_pickled_code_is_refused_and_not_run(tmp_path: Path, protocol: str) -> None:
    path = tmp_path / "evil.pth"
    if protocol == "torch":
        torch.save({"cls_token": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps({"cls_token": Evil()}, protocol=2))
    with pytest.raises(ValueError, match="never run"):
        load_backbone(SMALL, weights=path)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("keep", [0, 7, 1000])
def test_truncated_weights_are_refused(tmp_path: Path, suffix: str, keep: int) -> None:
    path = tmp_path / f"a{suffix}"
    state = tiny_vit().state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=str(path)):
        read_weights(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no weights file at"):
        load_backbone(SMALL, weights=tmp_path / "absent.pth")
    (tmp_path / "a.h5").write_bytes(b"x")
    with pytest.raises(ValueError, match="want a .safetensors file, or .npz"):
        load_backbone(SMALL, weights=tmp_path / "a.h5")
    np.savez(tmp_path / "code.npz", a=np.array([Path], dtype=object))
    with pytest.raises(ValueError, match="not a whole .npz of plain arrays"):
        load_backbone(SMALL, weights=tmp_path / "code.npz")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="want a state dict"):
        load_backbone(SMALL, weights=tmp_path / "list.pth")


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_a_state_dict_within_is_found(tmp_path: Path, wrapper: str) -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).state_dict()
    torch.save({wrapper: state, "epoch": 3}, tmp_path / "a.pth")
    assert torch.equal(load_backbone(SMALL, tmp_path / "a.pth").norm.bias, state["norm.bias"])


def test_half_precision_weights_become_float32(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", num_classes=0).half().state_dict()
    save_file(state, tmp_path / "a.safetensors")
    backbone = load_backbone(SMALL, tmp_path / "a.safetensors")
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


# ---- Hugging Face directories -------------------------------------------------------------------------------------


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    from transformers import ViTConfig, ViTModel

    ViTModel(
        ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, image_size=32)
    ).save_pretrained(tmp_path)
    return tmp_path


def edit(directory: Path, **fields: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **fields}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "bert"}, "transformers' bert has no image encoder"),
        ({"hidden_act": "swash"}, "hidden_act='swash'; want one of gelu, gelu_pytorch_tanh"),
        ({"num_hidden_layers": 2}, "blocks: 2 in the settings, 1 in the weights"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(directory: Path, fields: dict[str, object], message: str) -> None:
    load_backbone(directory)
    edit(directory, **fields)
    with pytest.raises(ValueError, match=message):
        load_backbone(directory)


def test_a_directory_without_its_files_is_refused(directory: Path) -> None:
    (directory / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="has no model.safetensors"):
        load_backbone(directory)
    (directory / "config.json").unlink()
    with pytest.raises(ValueError, match="has no config.json"):
        load_backbone(directory)


# The files that the repositories publish, without their descriptive fields
PROCESSORS = {
    "google/vit-base-patch16-224": (
        {
            "do_normalize": True,
            "do_resize": True,
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "resample": 2,
            "size": 224,
        },
        ViTImageProcessorPil,
    ),
    "facebook/deit-base-distilled-patch16-224": (
        {
            "crop_size": 224,
            "do_center_crop": True,
            "do_normalize": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "resample": 3,
            "size": 256,
        },
        DeiTImageProcessorPil,
    ),
    "facebook/dinov2-base": (
        {
            "crop_size": {"height": 224, "width": 224},
            "do_center_crop": True,
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": [0.485, 0.456, 0.406],
            "image_std": [0.229, 0.224, 0.225],
            "rescale_factor": 0.00392156862745098,
            "resample": 3,
            "size": {"shortest_edge": 256},
        },
        BitImageProcessorPil,
    ),
}


@pytest.mark.parametrize(("size", "name"), covering([(259, 400), (90, 141), (640, 427), (256, 256)], [*PROCESSORS]))
def test_published_processors_equal_transformers_and_the_zoo(name: str, size: tuple[int, int]) -> None:
    settings, processor = PROCESSORS[name]
    ours = read_preprocess(settings, ZOO[f"hf:{name}"].preprocess)
    assert ours == ZOO[f"hf:{name}"].preprocess
    theirs = processor(**settings)(photo(*size), return_tensors="pt")["pixel_values"][0]
    assert (ours(photo(*size)) - theirs).abs().max() < 1e-5


@pytest.mark.parametrize(
    ("settings", "check"),
    [
        ({"size": {"height": 48, "width": 32}}, lambda p: p.view((300, 600)).resized == (48, 32)),
        ({"size": [48, 32]}, lambda p: p.view((300, 600)).size == (48, 32)),
        ({"size": 400, "crop_size": 224, "do_center_crop": True}, lambda p: p.view((9, 9)).resized == (400, 400)),
        (
            {"size": {"shortest_edge": 450}, "crop_size": 384, "do_center_crop": True},
            lambda p: p.scaled((384, 384)) == (450, 450),
        ),
        ({"do_normalize": False}, lambda p: (p.mean, p.std) == ((0, 0, 0), (1, 1, 1))),
        ({"image_mean": None, "resample": None}, lambda p: p == VIT_EVAL),
        ({}, lambda p: p == VIT_EVAL),
    ],
)
def test_processor_settings_are_followed(settings: dict[str, object], check: object) -> None:
    assert check(read_preprocess(settings, VIT_EVAL))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_resize": False}, "do_resize=False; only True"),
        ({"rescale_factor": 0.0}, "rescale_factor=0.0"),
        ({"resample": 4}, "resample=4"),
        ({"size": 224, "crop_size": 256, "do_center_crop": True}, "crops"),
    ],
)
def test_processor_settings_that_cannot_be_followed_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_preprocess(settings, VIT_EVAL)


@pytest.mark.parametrize("name", [name for name in ZOO if name.startswith("hf:")])
def test_hub_entries_normalise_as_their_family_does(name: str) -> None:
    none = (0, 0, 0)  # TIPSv2 takes values from 0 to 1, and C-RADIO normalises by itself
    half = dict.fromkeys(("hf_siglip", "hf_qwen3_vl", "hf_llama4", "hf_kimi", "hf_sam3"), HALF)
    clip = dict.fromkeys(("hf_clip", "hf_qwen2_vl", "hf_qwen2_5_vl", "hf_pixtral", "hf_mlcd", "hf_mllama"), CLIP_MEAN)
    by_format = {**half, **clip, "hf_tipsv2": none, "hf_radio": none}
    google = name.startswith("hf:google/")
    usual = HOPTIMUS_MEAN if "H-optimus" in name else HALF if google else IMAGENET_MEAN
    assert ZOO[name].preprocess.mean == by_format.get(ZOO[name].format, usual)


@pytest.mark.parametrize(
    "settings", [None, {"do_center_crop": False, "size": {"height": 48, "width": 32}, "resample": 2}]
)
def test_a_directory_brings_its_preprocessing(directory: Path, settings: dict[str, object] | None) -> None:
    if settings:
        (directory / "preprocessor_config.json").write_text(json.dumps(settings))
    preprocess = load_backbone(directory).preprocess
    assert preprocess.view((300, 600)).resized == ((48, 32) if settings else (32, 32))
    assert preprocess.interpolation == "bilinear"


def test_settings_that_older_files_leave_out_are_transformers_defaults(directory: Path) -> None:
    want = load_backbone(directory).config
    edit(
        directory,
        layer_norm_eps=None,
        qkv_bias=None,
        hidden_act=None,
        patch_size=[16, 16],
        image_size=[32, 32],
        id2label=None,
    )
    assert load_backbone(directory).config == want
    edit(directory, patch_size=[16, 8])
    with pytest.raises(ValueError, match="only square patches"):
        load_backbone(directory)


def test_a_folder_called_nano_is_not_mistaken_for_the_backbone(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.rename(directory.parent / "nano")
    monkeypatch.chdir(directory.parent)
    assert find_entry("nano") is ZOO["nano"]
    assert find_entry("./nano").config.dim == 16


# ---- nano ---------------------------------------------------------------------------------------------------------


def test_nano_is_small_and_built_in() -> None:
    assert vitbackbone.checkpoints.sources.NANO_FILE.stat().st_size < 6e6
    backbone = load_backbone("nano")
    assert isinstance(backbone, nn.Module)
    assert sum(p.numel() for p in backbone.parameters()) < 3e6
    assert {
        t.dtype for t in load_file(vitbackbone.checkpoints.sources.NANO_FILE).values() if t.is_floating_point()
    } == {torch.float16}
