"""SigLino equals its formula at any size, with every parameter randomised: dense and of experts."""

from pathlib import Path

import pytest
import torch

from tests.helpers import cases, relative_error
from tests.oracles.cases import LIMIT, check_parity, images
from tests.oracles.siglino import FILE, HEADS, SIGLINO_CASES, WIDTH, Encoder, Layer
from vitbackbone import BackboneModule, ConversionError, optimize
from vitbackbone.inspection import costs, trace

BY_NAME = {case.name: case for case in SIGLINO_CASES}
NAMES = cases(BY_NAME, ["siglino_moe_0.3b"])


@pytest.fixture(scope="module", params=NAMES)
def encoders(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Encoder, BackboneModule]:
    case, folder = BY_NAME[request.param], tmp_path_factory.mktemp("siglino")
    model = case.model()
    case.save(model, folder)
    assert isinstance(model, Encoder)
    return model, case.load(folder, "native")


@pytest.mark.parametrize("name", NAMES)
def test_features_are_the_formulas(name: str, tmp_path: Path) -> None:
    case = BY_NAME[name]
    check_parity(case, tmp_path)
    state = torch.load(tmp_path / FILE, weights_only=True)
    torch.save({key: t for key, t in state.items() if key != "layers.1.attention.sinks"}, tmp_path / FILE)
    with pytest.raises(ConversionError, match=r"layers\.1\.attention\.sinks"):
        case.load(tmp_path, "native")


def test_batches_of_several_sizes_prefixes_maps_and_kept_patches(encoders: tuple[Encoder, BackboneModule]) -> None:
    model, ours = encoders
    several = [images((80, 48))[0], images((32, 32))[0]]
    x, first = images((48, 64), 2), model.layers["0"]
    assert isinstance(first, Layer)
    with torch.inference_mode():
        mixed = ours(several)
        for i, image in enumerate(several):
            alone = ours(image[None])
            assert relative_error(mixed.image(i).patches, alone.patches) <= LIMIT
            assert relative_error(mixed.cls[i : i + 1], alone.cls) <= LIMIT
        assert relative_error(ours.forward_prefix(x, [1])[0].cls, ours.forward_layers(x, [1])[0].cls) <= LIMIT
        (maps,) = ours.attention(x, [0])
        assert (maps.weights.sum(dim=-1) < 1).all()
        entering = first.enter(model.embed(x))
        values = first.attention.wv(entering).unflatten(2, (HEADS, WIDTH))
        mixed_values = torch.einsum("bhqk,bkhd->bqhd", maps.weights, values).flatten(2)
        assert relative_error(first.attention.wo(mixed_values), first.attention(entering, (3, 4))) <= LIMIT
        kept = ours.forward_kept(x, torch.arange(12).expand(2, -1))
        assert relative_error(kept.tokens, ours(x).tokens) <= LIMIT


@pytest.mark.slow
def test_a_graph_runs_all_experts_and_other_ways_say_what_they_do(encoders: tuple[Encoder, BackboneModule]) -> None:
    _, ours = encoders
    x = images((48, 64))
    graph = torch.export.export(ours, (x,))
    with torch.inference_mode():
        assert relative_error(graph.module()(x).patches, ours(x).patches) <= LIMIT
    assert costs(ours.config, (48, 64)).flops > 0
    assert "beside a sink of each head" in trace(ours.config, (48, 64))
    pytest.importorskip("openvino")
    with pytest.raises(ValueError, match="has sinks or experts, which have no graph here"):
        optimize(ours, engine="openvino")
