"""The code, figures, names and links of the README and of the pages that took over from it."""

import re
from pathlib import Path

import pytest
from PIL import Image

from heads.names import BUILT_IN
from tests.docs.pages import ROOT, blocks, run_page, save_photos
from tests.helpers import photo
from vitbackbone.evaluation import PROTOCOLS

README = ROOT / "README.md"
DOCS = ROOT / "docs"


@pytest.mark.parametrize(("height", "width"), [(301, 207), (427, 640)])
def test_the_code_runs_in_order(height: int, width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_photos(tmp_path, height, width)
    assert len(blocks(README, "python")) == 3
    assert len(blocks(README, "bash")) == 1
    namespace = run_page(README)
    assert [layer.cls.shape for layer in namespace["last4"]] == [(1, 192)] * 4
    assert namespace["attention"].shape[-2:] == namespace["features"].grid
    assert not namespace["mixed"].valid.all()
    assert namespace["outputs"]["pixels"].shape == (1, 11, *namespace["image"].shape[-2:])


@pytest.mark.parametrize(("height", "width", "orientation"), [(427, 640, 1), (300, 200, 1), (24, 150, 1), (90, 60, 6)])
def test_a_patch_is_found_in_a_photo_of_any_shape(
    height: int, width: int, orientation: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = orientation
    photo(height, width).save(tmp_path / "photo.jpg", exif=exif)
    namespace: dict[str, object] = {}
    exec(blocks(DOCS / "concepts" / "geometry.md", "python")[0], namespace)
    geometry, (h, w) = namespace["geometry"], namespace["geometry"].grid
    upright = (width, height) if orientation >= 5 else (height, width)
    patch = 4 * upright[0] / namespace["image"].shape[1]  # pixels of the photo
    assert geometry.box(0, row=3, column=5) == pytest.approx([5 * patch, 3 * patch, 6 * patch, 4 * patch], rel=0.05)
    assert geometry.box(0, row=h - 1, column=w - 1)[2:] == pytest.approx(upright[::-1], abs=patch)
    assert (namespace["row"], namespace["column"]) == pytest.approx((h // 2, w // 2), abs=1)


def test_the_photos_a_second_are_those_of_the_benchmark() -> None:
    table = (DOCS / "performance.md").read_text().split("## From a folder to features")[1].split("## ")[0]
    measured = {name: float(value) for name, value in re.findall(r"^\| ([^|]+?) \| ([\d.]+) \|", table, re.MULTILINE)}
    page = (DOCS / "how-to" / "extract-at-scale.md").read_text()
    exact, fast = re.search(r"did (\d+) photos a second .*?\s(\d+) with `--decoding fast`", page, re.DOTALL).groups()
    assert (int(exact), int(fast)) == (round(measured["ours"]), round(measured["ours, decoding fast"]))


def test_the_ten_models_are_those_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(DOCS)
    from generated import popular  # type: ignore[import-not-found]

    table = re.search(r"<!-- popular -->\n(.*?)<!-- /popular -->", README.read_text(), re.DOTALL)[1]
    assert table == popular(), "python docs/generated.py prints the table"


def test_the_groups_of_parity_agree_with_the_families() -> None:
    parity = pytest.importorskip("benchmarks.parity")

    def table(page: Path) -> str:
        return re.search(r"<!-- parity -->\n(.*?)\n<!-- /parity -->", page.read_text(), re.DOTALL)[1]

    families: dict[tuple[str, str], tuple[float, int]] = {}
    header, _, *lines = table(DOCS / "measured.md").splitlines()
    upstreams = [name for name, shown in parity.UPSTREAMS.items() if f"| against {shown} |" in header]
    for line in lines:
        family, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        for upstream, cell in zip(upstreams, cells, strict=True):
            if cell:
                error, count = re.fullmatch(r"(\S+) \((\d+)\)", cell).groups()
                families[family, upstream] = (float(error), int(count))
    assert table(README) == parity.summary(parity.grouped(families))


def test_it_counts_the_protocols() -> None:
    others = re.search(r"kNN, the linear probe and (\d+) more protocols", README.read_text())[1]
    assert int(others) == len(PROTOCOLS) - 2


def test_the_table_of_heads_names_every_head() -> None:
    page = (DOCS / "reference" / "heads.md").read_text()
    table = page.split("| names of `create_head` |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) >= set(BUILT_IN)


@pytest.mark.parametrize("page", [README, DOCS / "models.md"], ids=["README", "models"])
def test_every_model_it_names_exists(page: Path) -> None:
    from vitbackbone import list_backbones
    from vitbackbone.checkpoints.huggingface import MODEL_TYPES

    pattern = r"`((?:vit_|deit_|beit|mae_|dino|ViT-|moco_|eva02_|sam|swin_|resnet|openvla|hf:)[\w./:-]+)`"
    names = re.findall(pattern, page.read_text())
    assert names
    assert set(names) <= {*list_backbones(), *MODEL_TYPES, *BUILT_IN}


PAGES = [*sorted(ROOT.glob("*.md")), *sorted(path for path in DOCS.rglob("*.md") if path.parent.name[0] != "_")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_it_links_to_or_names_exists(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        made = target.removeprefix("protocols/").removesuffix(".md") in PROTOCOLS  # written when the site is built
        assert made or (page.parent / target).exists(), target
    for name in re.findall(r"`((?:vitbackbone|heads|tests|docs|examples|benchmarks)/[\w./-]+)`", text):
        assert name == "docs/_build" or (ROOT / name).exists(), name
