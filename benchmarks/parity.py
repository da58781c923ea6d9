"""The parity table of the README: max |a - b| / max |b| against each upstream, in float32, on identical random weights.

python benchmarks/parity.py
"""

import tempfile
from pathlib import Path

import torch

from tests.helpers import relative_error
from tests.test_parity import HF, HF_SIZES, TIMM, Oracle, hf_model, hf_oracle, images, timm_model, timm_oracle
from vitbackbone import ViT, load_backbone


@torch.inference_mode()
def main() -> None:
    print("| model | upstream | native size | other square | not square |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        for case in TIMM:
            model = timm_model(case.name)
            torch.save(model.state_dict(), Path(folder) / "weights.pth")
            backbone = load_backbone(case.name, weights=Path(folder) / "weights.pth", positions="timm")
            print(row(case.name, "timm", backbone, timm_oracle(model), case.sizes), flush=True)
        for case in HF:
            model = hf_model(case)
            model.save_pretrained(Path(folder) / case)
            backbone = load_backbone(Path(folder) / case)
            oracle = hf_oracle(model, backbone.spec.num_prefix)
            print(row(type(model).__name__, "transformers", backbone, oracle, HF_SIZES), flush=True)


def row(name: str, upstream: str, backbone: ViT, oracle: Oracle, sizes: list[tuple[int, int]]) -> str:
    errors = []
    for height, width in sizes:
        prefix, patches = oracle(images(height, width))
        features = backbone(images(height, width))
        ours = torch.cat([features.cls[:, None], features.registers], dim=1)
        errors.append(max(relative_error(features.tokens, patches), relative_error(ours, prefix)))
    cells = [f"{error:.0e} ({height} x {width})" for error, (height, width) in zip(errors, sizes, strict=True)]
    return f"| {name} | {upstream} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
