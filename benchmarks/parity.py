"""Measure max |a - b| / max |b| against every upstream, in float32, on identical random weights.

    python -m benchmarks.parity [--only WORDS] [--resume FILE]

Writes `docs/parity.md`, the table of families in `docs/measured.md` and the table of groups in the README. Where the
network allows, published weights are compared too: this package and timm read the same file.

`--only` measures the families whose name, or whose upstream, holds these words, and writes nothing. `--resume`
keeps the rows in a file, so that a run that was stopped goes on where it was.
"""

import argparse
import gc
import json
import platform
import re
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
from tqdm import tqdm

from tests.helpers import relative_error
from tests.oracles.cases import Case, Size, errors, images, timm_case
from tests.oracles.every_case import IMAGE_CASES, SAVED_CASES, SavedCase
from tests.oracles.resampling_policies import POLICIES, timm_at
from vitbackbone import WeightsUnavailable, load_backbone

ROOT = Path(__file__).parent.parent
PARTS = ("cls", "registers", "patches", "layers", "pooled", "neck", "text")
PUBLISHED = (
    "vit_tiny_patch16_224.augreg_in21k_ft_in1k",
    "deit_tiny_distilled_patch16_224.fb_in1k",
    "deit3_small_patch16_224.fb_in1k",
    "beit_base_patch16_224.in22k_ft_in22k_in1k",
    "vit_base_patch16_224.mae",
    "vit_small_patch16_224.dino",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_small_patch14_reg4_dinov2.lvd142m",
    "vit_base_patch32_clip_quickgelu_224.openai",
    "vit_base_patch16_siglip_224.webli",
    "eva02_tiny_patch14_336.mim_in22k_ft_in1k",
)
GROUPS = {  # rows of the README: the first words of the families in each
    "ViT, DeiT, DeiT III, hybrids, ResNet-50": ("ViT", "DeiT", "hybrid", "ResNet-50"),
    "BEiT, BEiT v2, MAE, I-JEPA": ("BEiT", "MAE", "I-JEPA"),
    "DINO, DINOv2, DINOv3, MoCo v3": ("DINO", "MoCo"),
    "CLIP, SigLIP, SigLIP 2, EVA-02": ("CLIP", "SigLIP", "EVA-02"),
    "Perception Encoder, AIMv2, MLCD, MetaCLIP 2": ("PE", "AIMv2", "MLCD", "MetaCLIP"),
    "EVA-CLIP, EUPE, LingBot-Vision": ("EVA-CLIP", "EUPE", "LingBot", "SigLino"),
    "InternViT, Qwen-VL, Pixtral, Gemma 4, Llama 4, Kimi": ("Intern", "Qwen", "Pixtral", "Gemma", "Llama", "MoonViT"),
    "Llama 3.2 Vision (mllama), Sapiens 2": ("mllama", "Sapiens"),
    "V-JEPA 2, V-JEPA 2.1": ("V-JEPA",),
    "Hiera, SAM 2": ("Hiera", "SAM 2"),
    "Prithvi, SatMAE, DOFA, Clay": ("Prithvi", "SatMAE", "DOFA", "Clay", "TerraMind"),
    "TIPSv2, C-RADIO, Pixio, Idefics, SmolVLM, DPT, YOLOS": (
        "TIPS",
        "C-RADIO",
        "Pixio",
        "Idefics",
        "Smol",
        "DPT",
        "YOLO",
    ),
    "SAM": ("SAM",),
    "Swin, Swin V2": ("Swin",),
    "OpenVLA's DINOv2 + SigLIP": ("OpenVLA",),
    "text towers, and the image towers beside them": ("text",),
    "towers inside LLaVA, PaliGemma, Depth Anything and other models": ("towers",),
}
UPSTREAMS = {"timm": "timm", "transformers": "transformers", "open_clip": "open_clip", "formula": "the paper's formula"}
Worst = dict[tuple[str, str], tuple[float, int]]  # family and upstream: the largest error, and how many were measured


@dataclass(frozen=True)
class Row:
    family: str
    upstream: str
    name: str
    policy: str
    size: Size | None  # None for texts and whole models
    found: dict[str, float]


def measure(case: Case, folder: Path) -> Iterator[Row]:
    """Yield the errors of a case at all its sizes with the upstream's policy, and at the third size with the others."""
    model = case.model()
    case.save(model, folder)
    backbone = case.load(folder, case.policy)
    for size in case.sizes:
        found = errors(backbone, case, model, size)
        yield Row(case.family, case.upstream, case.name, case.policy, size, found)
    if case.upstream == "timm" and case.name in POLICIES:
        size = case.sizes[2]
        for policy, formula in zip(("native", "hf"), POLICIES[case.name], strict=True):
            theirs = timm_at(case.name, size, formula)
            found = errors(case.load(folder, policy), case, theirs, size)
            yield Row(case.family, f"timm, positions by {formula}", case.name, policy, size, found)


def measure_saved(case: SavedCase, folder: Path) -> Row:
    """Return the errors of a model that was saved."""
    return Row(case.family, case.upstream, case.name, "", None, case.error(folder))


def table(rows: list[Row]) -> str:
    lines = [
        f"| family | upstream | model | policy | pixels | {' | '.join(PARTS)} |",
        "| --- | --- | --- | --- | --- |" + " ---: |" * len(PARTS),
    ]
    for row in rows:
        cells = [f"{row.found[part]:.0e}".replace("0e+00", "0") if part in row.found else "" for part in PARTS]
        pixels = "" if row.size is None else f"{row.size[0]} x {row.size[1]}"
        lines.append(f"| {row.family} | {row.upstream} | {row.name} | {row.policy} | {pixels} | {' | '.join(cells)} |")
    return "\n".join(lines)


def worst_of(rows: list[Row]) -> Worst:
    """Return the largest error of each family against each upstream, over sizes, policies and parts."""
    worst: Worst = {}
    for row in rows:
        key = (row.family, row.upstream.split(",")[0])
        error, count = worst.get(key, (0.0, 0))
        worst[key] = (max(error, *row.found.values()), count + 1)
    return worst


def group_of(family: str) -> str:
    """Return the group whose names a family begins with, the longest name first: SAM 2 is not a SAM."""
    names = {start: group for group, starts in GROUPS.items() for start in starts}
    return names[max((start for start in names if family.startswith(start)), key=len)]


def grouped(worst: Worst) -> Worst:
    """Return the largest error of each group of families."""
    found: Worst = {}
    for (family, upstream), (error, count) in worst.items():
        group = group_of(family)
        before, counted = found.get((group, upstream), (0.0, 0))
        found[group, upstream] = (max(before, error), counted + count)
    return found


def summary(worst: Worst) -> str:
    """Return a table of the largest errors, as Markdown."""
    used = [upstream for upstream in UPSTREAMS if any(upstream == other for _, other in worst)]
    heads = " | ".join(f"against {UPSTREAMS[upstream]}" for upstream in used)
    lines = [f"| family | {heads} |", "| --- |" + " --- |" * len(used)]
    for family in dict.fromkeys(family for family, _ in worst):
        cells = []
        for upstream in used:
            error, count = worst.get((family, upstream), (0.0, 0))
            cells.append(f"{error:.0e}".replace("0e+00", "0") + f" ({count})" if count else "")
        lines.append(f"| {family} | {' | '.join(cells)} |")
    return "\n".join(lines)


@torch.inference_mode()
def published() -> list[str]:
    """Return a line for each published checkpoint, or one line that says that they were skipped."""
    lines = []
    for name in PUBLISHED:
        try:
            ours = load_backbone(name, positions="timm")
        except WeightsUnavailable:
            return [*lines, f"Published weights were skipped from `{name}` on: there is no network here."]
        theirs = timm.create_model(name, pretrained=True).eval()
        x = images(timm_case(name).sizes[0] if name in POLICIES else ours.spec.image_size)
        prefix = ours.spec.num_prefix
        error = relative_error(ours(x).tokens, theirs.forward_features(x)[:, prefix:])
        lines.append(f"- `{name}`, published weights: {error:.0e}")
    return lines


def versions() -> str:
    return (
        f"torch {torch.__version__.split('+')[0]}, timm {timm.__version__}, transformers {transformers.__version__}, "
        f"{platform.machine()}, {torch.get_num_threads()} threads"
    )


def replace_between(path: Path, mark: str, text: str) -> None:
    old = path.read_text(encoding="utf-8")
    new = re.sub(rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)", lambda m: f"{m[1]}{text}\n{m[2]}", old, flags=re.S)
    path.write_text(new, encoding="utf-8")


class Kept:
    """The rows of cases that were measured before, in a file with a line for each case."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        lines = file.read_text(encoding="utf-8").splitlines() if file is not None and file.is_file() else []
        saved = [json.loads(line) for line in lines]
        self.rows = {tuple(each["case"]): [_row(row) for row in each["rows"]] for each in saved}

    def add(self, key: tuple[str, str, str], rows: list[Row]) -> None:
        self.rows[key] = rows
        if self.file is not None:
            with self.file.open("a", encoding="utf-8") as opened:
                opened.write(json.dumps({"case": key, "rows": [asdict(row) for row in rows]}) + "\n")


def _row(saved: dict[str, Any]) -> Row:
    return Row(**{**saved, "size": None if saved["size"] is None else tuple(saved["size"])})


def measured(case: Case | SavedCase, folder: Path, kept: Kept) -> list[Row]:
    """Return the rows of a case, from the file if they are there."""
    key = (case.family, case.upstream, case.name)
    if key not in kept.rows:
        rows = list(measure(case, folder)) if isinstance(case, Case) else [measure_saved(case, folder)]
        kept.add(key, rows)
    return kept.rows[key]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORDS", help="families to measure, such as 'V-JEPA, formula'")
    parser.add_argument("--resume", type=Path, metavar="FILE", help="rows of an earlier run; new ones are added")
    given = parser.parse_args(arguments)
    only, kept = given.only, Kept(given.resume)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        chosen = [case for case in [*IMAGE_CASES, *SAVED_CASES] if only in f"{case.family}, {case.upstream}"]
        for number, case in enumerate(tqdm(chosen, unit="case")):
            place = Path(folder) / str(number)
            place.mkdir()
            rows += measured(case, place, kept)
            gc.collect()
    if only:
        print(summary(worst_of(rows)))
        return
    checked = published()
    worst = max(rows, key=lambda row: max(row.found.values()))
    at = "" if worst.size is None else f", {worst.size[0]} x {worst.size[1]}"
    text = f"""# Parity

The largest |a - b| / max |b| of each part, in float32, on identical weights with every parameter randomised:
LayerScale, norms, biases, positions. 0 is bit for bit. `layers` is the worst of all blocks, without the final norm;
`pooled` is the checkpoint's own pooling, with a projection where it has one; `text` is the vectors of a text tower.
Where no library has the network, the oracle is the formula of its paper, written in the tests. Sizes are the native
one, another square, one that is not square, one that the patch does not divide (padded with zeros on both sides), and
one patch wide.

If upstream has no such policy, the oracle is timm at that size, and its tables are first resampled by the formula of
the implementation that is named. CLIP of transformers norms CLS alone; here the norm is on every token, and
the oracle's too. Written by `make parity` with {versions()}.

Largest of all: {max(worst.found.values()):.0e} ({worst.name}{at}).

{table(rows)}

## Published weights

{chr(10).join(checked)}
"""
    (ROOT / "docs" / "parity.md").write_text(text, encoding="utf-8")
    families = worst_of(rows)
    replace_between(ROOT / "docs" / "measured.md", "parity", summary(families))
    replace_between(ROOT / "README.md", "parity", summary(grouped(families)))
    print(summary(families), *checked, sep="\n")


if __name__ == "__main__":
    main()
