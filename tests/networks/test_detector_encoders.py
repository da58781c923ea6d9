"""The encoders inside RF-DETR, LW-DETR and EoMT: out of the saved detector, equal to its own encoder at any size."""

from typing import Any

import pytest
import torch

from benchmarks.coverage.transformers import compare, tiny_model
from vitbackbone import BackboneModule, load_backbone, optimize

TOLERANCE = 1e-5
DETECTORS = ["rf_detr", *(pytest.param(name, marks=pytest.mark.slow) for name in ("lw_detr", "eomt", "eomt_dinov3"))]


@pytest.fixture(scope="module", params=DETECTORS)
def detector(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, BackboneModule]:
    model, folder = tiny_model(request.param), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, load_backbone(folder)


def test_the_features_are_the_encoders_own(detector: tuple[Any, BackboneModule]) -> None:
    model, backbone = detector
    _, error = compare(model, backbone, model.config.model_type)
    assert error is not None
    assert error <= TOLERANCE


def test_optimize_says_at_once_what_it_cannot_run(detector: tuple[Any, BackboneModule]) -> None:
    _, backbone = detector
    with pytest.raises(ValueError, match=r"engine='openvino' cannot run .*: a TransformersBackbone is run only by"):
        optimize(backbone, engine="openvino")
    images = torch.randn(1, 3, *backbone.spec.image_size, generator=torch.Generator().manual_seed(0))
    fast = optimize(backbone, "bf16", sample=images)
    assert (fast.runtime.precision, fast.runtime.engine) == ("fp32", "native")
    with torch.inference_mode():
        torch.testing.assert_close(fast(images).patches, backbone(images).patches, rtol=1e-5, atol=1e-5)
