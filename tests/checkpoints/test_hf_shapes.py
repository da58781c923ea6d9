"""A directory whose `image_size` is not square: the policies `native` and `hf` give what transformers gives, or say why
they do not."""

from pathlib import Path

import pytest
import torch
import transformers

from tests.checkpoints.sampling import covering
from tests.helpers import randomise, relative_error
from tests.oracles.cases import images
from tests.oracles.transformers_models import HF, run_hf
from vitbackbone import load_backbone, save_pretrained
from vitbackbone.checkpoints.huggingface import read_config

LIMIT = 1e-5
SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "patch_size": 8}
ALWAYS = ("dinov2", "dinov2 swiglu", "dinov2 registers", "beit shared")  # transformers resizes at every size
ELSEWHERE = ("vit", "deit", "mae", "ijepa")  # its own size needs no flag of transformers, and is not resized
FREE = ("beit", "dinov3", "swin")  # without a table of absolute positions
SQUARE_COUNT = [(32, 72), (72, 32), (16, 128)]  # 4 x 9, 9 x 4; 2 x 16 is none
OTHER_COUNT = [(16, 32), (32, 64), (16, 128)]
SIZES = [(48, 48), (32, 32), (40, 80)]


def save(name: str, size: tuple[int, int], directory: Path) -> transformers.PreTrainedModel:
    row = HF[name]
    small = (
        {}
        if name == "swin"
        else {**SMALL, **({"intermediate_size": 48} if "intermediate_size" in row.settings else {})}
    )
    config = getattr(transformers, row.config)(**{**row.settings, **small, "image_size": list(size)})
    model = randomise(getattr(transformers, row.model)(config))
    model.save_pretrained(directory)
    return model


def run_native(name: str, model: transformers.PreTrainedModel, size: tuple[int, int]) -> torch.Tensor:
    """The tokens of transformers without its flag for other sizes."""
    patches = size[0] // 8 * (size[1] // 8)
    options = {"noise": torch.arange(patches).float()[None]} if name == "mae" else {}
    return model(images(size), **options).last_hidden_state


@pytest.mark.parametrize(
    ("name", "size", "positions"), covering([*ALWAYS, *ELSEWHERE, *FREE], SQUARE_COUNT[:2], ["native", "hf"])
)
def test_a_table_of_a_square_number_is_what_transformers_makes_of_it(
    name: str, size: tuple[int, int], positions: str, tmp_path: Path
) -> None:
    model = save(name, size, tmp_path)
    backbone = load_backbone(tmp_path, positions=positions)
    assert backbone.spec.image_size == size
    with torch.inference_mode():
        for each in [size, *SIZES]:
            got = backbone(images(each)).tokens
            own = name in ELSEWHERE and each == size
            want = run_native(name, model, each) if own else run_hf(HF[name], model, images(each), [1]).tokens
            assert relative_error(got, want[:, -got.shape[1] :]) <= LIMIT, each


@pytest.mark.parametrize(("name", "size"), covering(ELSEWHERE, OTHER_COUNT))
def test_a_table_of_another_number_runs_at_its_own_size_alone(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    model = save(name, size, tmp_path)
    backbone = load_backbone(tmp_path)
    with torch.inference_mode():
        got = backbone(images(size)).tokens
        assert relative_error(got, run_native(name, model, size)[:, -got.shape[1] :]) <= LIMIT
        with pytest.raises(ValueError, match="positions='timm'"):
            backbone(images((48, 48)))
        assert load_backbone(tmp_path, positions="timm")(images((48, 48))).grid == (6, 6)


@pytest.mark.parametrize(("name", "size"), covering(ALWAYS, OTHER_COUNT))
def test_a_table_that_transformers_never_runs_is_refused(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    model = save(name, size, tmp_path)
    with pytest.raises(RuntimeError):
        run_hf(HF[name], model, images(size), [1])
    with pytest.raises(ValueError, match="config.json: has image_size=.*square"):
        load_backbone(tmp_path)


@pytest.mark.parametrize("name", ["clip", "clip projected", "siglip", "sam"])
def test_a_model_that_transformers_builds_for_squares_alone_is_refused(name: str) -> None:
    row = HF[name]
    config = {**SMALL, **row.settings, "image_size": [32, 72], "model_type": f"{name.split()[0]}_vision_model"}
    with pytest.raises(ValueError, match=r"image_size=\[32, 72\].*only for squares"):
        read_config(config)


def test_a_size_as_transformers_does_not_write_it_is_refused() -> None:
    with pytest.raises(ValueError, match="image_size="):
        read_config({**SMALL, "model_type": "vit", "image_size": {"height": 32, "width": 72}})


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov2 registers"])
def test_a_shape_goes_there_and_back(name: str, tmp_path: Path) -> None:
    model = save(name, (32, 72), tmp_path / "theirs")
    backbone = load_backbone(tmp_path / "theirs")
    save_pretrained(backbone, tmp_path / "ours", HF[name].model)
    again = load_backbone(tmp_path / "ours")
    assert again.config == backbone.config
    written = getattr(transformers, HF[name].model).from_pretrained(tmp_path / "ours").eval()
    with torch.inference_mode():
        want, got = (run_hf(HF[name], each, images((40, 80)), [1]).tokens for each in (model, written))
    assert relative_error(got, want) <= LIMIT
