"""The tables and pictures that `probe` writes, groups of photos, and the lines of `predict`, as a user runs them."""

import csv
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from heads import LinearProbe, load_probe, save_probe
from vitbackbone import FeatureStore, list_inputs
from vitbackbone.cli import main
from vitbackbone.cli.commands.probe_tables import SIDE, _fitting


def picture(rng: np.random.Generator, low: int = 0) -> Image.Image:
    pixels = rng.integers(low, low + 120, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark and bright photos, two of them with the wrong label, one without any, in two folders each."""
    folder, rng = tmp_path_factory.mktemp("place") / "photos", np.random.default_rng(0)
    for i in range(60):
        kind = "bright" if i % 2 else "dark"
        where = folder / kind / f"burst {i // 2 % 15}"
        where.mkdir(parents=True, exist_ok=True)
        mistaken = i in (10, 11)
        picture(rng, 130 * ((i % 2) ^ mistaken)).save(where / f"{i:02}.png")
    picture(rng).save(folder / "nowhere.png")
    return folder


@pytest.fixture(scope="module")
def store(photos: Path) -> Path:
    assert main(["extract", str(photos), "--out", str(photos.parent / "store")]) == 0
    return photos.parent / "store"


def rows_of(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


@pytest.mark.parametrize("kind", ["linear", "knn"])
def test_probe_writes_what_it_was_measured_on(kind: str, store: Path, tmp_path: Path, capsys: object) -> None:
    out = tmp_path / "probe"
    assert main(["probe", str(store), "--probe", kind, "--k", "3", "--out", str(out), "--json"]) == 0
    said = capsys.readouterr()
    result = json.loads(said.out)
    assert "images without a label, left out: 1" in said.err
    held = rows_of(out / "held_out.csv")
    wrong = [row for row in held if row["label"] != row["predicted"]]
    assert len(held) == result["total"]
    assert len(held) - len(wrong) == result["correct"] == sum(result["confusion"][i][i] for i in range(2))
    assert sum(map(sum, result["confusion"])) == result["total"]
    misclassified = rows_of(out / "misclassified.csv")
    assert sorted(misclassified, key=str) == sorted(wrong, key=str)
    assert [row["probability"] for row in misclassified] == sorted((row["probability"] for row in wrong), reverse=True)
    assert (out / "misclassified.jpg").exists() == bool(wrong)
    matrix = rows_of(out / "confusion.csv")
    assert [[int(row[name]) for name in ("bright", "dark")] for row in matrix] == result["confusion"]
    assert all(row["path"] in FeatureStore(store).paths for row in held)
    assert [Path(file).name for file in result["files"]][:3] == ["confusion.csv", "held_out.csv", "misclassified.csv"]
    assert -1 not in load_probe(out)[0].classes_


def test_the_contact_sheet_shows_the_misclassified_photos(store: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "probe"
    assert main(["probe", str(store), "--test", str(store), "--out", str(out), "--probe", "knn", "--k", "9"]) == 0
    wrong = rows_of(out / "misclassified.csv")
    assert {Path(row["path"]).name for row in wrong} >= {"10.png", "11.png"}
    with Image.open(out / "misclassified.jpg") as sheet:
        assert sheet.width > 160 * min(len(wrong), 6)
        first = np.asarray(sheet.convert("RGB"))[8 + 64 : 8 + 96, 8 + 64 : 8 + 96].mean()
    with Image.open(photos / wrong[0]["path"]) as photo:
        assert abs(first - np.asarray(photo.convert("RGB")).mean()) < 60


def test_a_long_name_on_the_sheet_is_cut_and_its_probability_is_not() -> None:
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    text = _fitting(draw, "found: ", "a class with quite a long name", " (0.96)")
    assert text.startswith("found: a class")
    assert text.endswith("... (0.96)")
    assert draw.textlength(text) <= SIDE
    assert _fitting(draw, "found: ", "cat", " (0.96)") == "found: cat (0.96)"


def test_a_sheet_of_photos_that_moved_needs_their_folder(
    store: Path, photos: Path, tmp_path: Path, capsys: object
) -> None:
    shutil.copytree(photos, tmp_path / "before")
    assert main(["extract", str(tmp_path / "before"), "--out", str(tmp_path / "test")]) == 0
    (tmp_path / "far" / "away").mkdir(parents=True)  # a folder beside the store would be found
    (tmp_path / "before").rename(tmp_path / "far" / "away" / "photos")
    command = ["probe", str(store), "--test", str(tmp_path / "test"), "--out", str(tmp_path / "probe")]
    command += ["--probe", "knn", "--k", "9"]
    assert main(command) == 0
    assert "--photos DIR" in capsys.readouterr().err
    assert not (tmp_path / "probe/misclassified.jpg").exists()
    assert main([*command, "--photos", str(tmp_path / "far" / "away" / "photos")]) == 0
    assert (tmp_path / "probe/misclassified.jpg").exists()


def test_a_test_store_with_photos_that_were_fitted_on_is_told(store: Path, tmp_path: Path, capsys: object) -> None:
    assert main(["probe", str(store), "--test", str(store), "--out", str(tmp_path / "probe"), "--json"]) == 0
    said = capsys.readouterr()
    assert "60 of the 60 photos" in said.err
    assert json.loads(said.out)["test_photos_fitted_on"] == 60


def test_random_labels_score_chance_where_each_photo_is_there_twice(tmp_path: Path, capsys: object) -> None:
    rng, labels = np.random.default_rng(0), random.Random(0)
    for i in range(150):
        image, label = picture(rng), labels.choice("ab")
        (tmp_path / "photos" / label).mkdir(parents=True, exist_ok=True)
        for copy in ("", "-copy"):
            image.save(tmp_path / "photos" / label / f"{i:03}{copy}.png")
    main(["extract", str(tmp_path / "photos"), "--out", str(tmp_path / "store")])
    capsys.readouterr()
    assert main(["probe", str(tmp_path / "store"), "--probe", "knn", "--k", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["accuracy"] < 0.7
    assert result["groups"] == 150


@pytest.mark.parametrize("how", ["folder", "last folder", "csv", "parquet"])
def test_groups_stay_on_one_side(how: str, store: Path, photos: Path, tmp_path: Path, capsys: object) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    paths = FeatureStore(store).paths
    bursts = [path.split("/")[1] if "/" in path else None for path in paths]
    with (photos.parent / "list.csv").open("w", newline="") as opened:
        csv.writer(opened).writerows([["path", "burst"], *zip(paths, bursts, strict=True)])
    pq.write_table(pa.table({"burst": bursts, "path": paths}), photos.parent / "list.parquet")
    by = {"csv": f"{photos.parent}/list.csv:burst", "parquet": f"{photos.parent}/list.parquet:burst"}
    by |= {"folder": "1", "last folder": "-1"}
    command = ["probe", str(store), "--out", str(tmp_path / "probe"), "--groups", by[how]]
    assert main(command) == 0
    assert "of 15 groups, held out" in capsys.readouterr().out
    held = {row["path"] for row in rows_of(tmp_path / "probe/held_out.csv")}
    inside, outside = ({b for p, b in zip(paths, bursts, strict=True) if b and (p in held) == side} for side in (1, 0))
    assert inside
    assert not inside & outside


@pytest.mark.parametrize("by", ["burst", "list.csv:", "missing.csv:burst", "9", "-3"])
def test_groups_that_there_are_not_are_refused(by: str, store: Path, capsys: object) -> None:
    assert main(["probe", str(store), "--groups", by]) == 2
    assert by.split(":")[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('path,burst\na.png,"one\n', "list.csv, line 2: unexpected end of data"),
        ("path,burst\na.png," + "x" * 200_000, "list.csv, line 2: field larger than field limit"),
        ("path,burst,burst\na.png,1,2\n", "2 columns are named 'burst'"),
    ],
    ids=["quote", "long", "twice"],
)
def test_a_malformed_list_of_groups_is_refused_in_a_sentence(
    text: str, why: str, store: Path, tmp_path: Path, capsys: object
) -> None:
    (tmp_path / "list.csv").write_text(text)
    assert main(["probe", str(store), "--groups", f"{tmp_path / 'list.csv'}:burst"]) == 2
    assert why in capsys.readouterr().err


@pytest.fixture(scope="module")
def probe(store: Path) -> Path:
    assert main(["probe", str(store), "--out", str(store.parent / "probe")]) == 0
    return store.parent / "probe"


def test_predict_takes_what_extract_takes_and_gives_its_reasons(
    probe: Path, photos: Path, tmp_path: Path, capsys: object
) -> None:
    folder = tmp_path / "more"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for name in ("a.png", "b\n.png", "c.png"):
        picture(rng).save(folder / name)
    (folder / "broken.jpg").write_text("not a photo")
    (folder / "empty.png").write_bytes(b"")
    one = str(photos / "nowhere.png")
    capsys.readouterr()
    assert main(["predict", one, str(folder), str(tmp_path / "missing.png"), "--probe", str(probe), "--json"]) == 1
    rows = {row["path"]: row for row in json.loads(capsys.readouterr().out)}
    assert set(rows) == {
        one,
        str(tmp_path / "missing.png"),
        *(str(folder / name) for name in ("a.png", "b\n.png", "c.png", "broken.jpg", "empty.png")),
    }
    main(["extract", str(folder), "--out", str(tmp_path / "store")])
    for path, error in FeatureStore(tmp_path / "store").failed:
        assert rows[str(folder / path)]["error"] == error
    assert rows[str(tmp_path / "missing.png")]["reason"] == "missing"
    capsys.readouterr()
    assert main(["predict", str(folder / "*.png"), "--probe", str(probe)]) == 1
    said = capsys.readouterr()
    assert [line.split("\t")[0] for line in said.out.splitlines()[::2]] == [
        str(folder / "a.png"),
        f"{folder}/b\\n.png",
        str(folder / "c.png"),
    ]
    assert "empty.png\tfailed: empty: " in said.err
    assert main(["predict", str(folder / "a.png"), "--probe", str(probe)]) == 0


def test_predict_names_what_lists_patterns_and_videos_hold(
    probe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("av")
    from tests.images.videos import KINDS, make_video

    monkeypatch.chdir(tmp_path)
    for i in range(3):
        picture(np.random.default_rng(i)).save(f"{i}.png")
    Path("clip.mp4").write_bytes(make_video(KINDS["mp4"]))
    Path("urls.txt").write_text("http://127.0.0.1/a.png\n")  # refused, because it is an address of this machine
    Path("urls.csv").write_text("url\nhttp://127.0.0.1/b.png\n")
    capsys.readouterr()
    assert main(["predict", "{0..1}.png", "clip.mp4", "urls.txt", "urls.csv", "--probe", str(probe), "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    good = [row["path"] for row in rows if "classes" in row]
    assert good[:2] == ["0.png", "1.png"]
    assert good[2:] == list(list_inputs("clip.mp4").paths)
    assert [row["path"] for row in rows if "error" in row] == ["http://127.0.0.1/a.png", "http://127.0.0.1/b.png"]


def test_predict_never_reads_the_last_name_for_an_unknown_class(
    probe: Path, photos: Path, tmp_path: Path, capsys: object
) -> None:
    saved, about = load_probe(probe)
    rng = np.random.default_rng(0)
    with pytest.warns(UserWarning, match="two classes"):
        wrong = LinearProbe().fit(rng.normal(size=(20, saved.n_features_in_)), np.arange(20) % 2 * 2 - 1)
    save_probe(wrong, tmp_path / "wrong", about=about)
    assert main(["predict", str(photos / "nowhere.png"), "--probe", str(tmp_path / "wrong")]) == 2
    assert "want indices of its 2 class_names, from 0 to 1" in capsys.readouterr().err


def test_csv_comes_back_to_the_bit(store: Path, tmp_path: Path) -> None:
    assert main(["export", str(store), "--format", "csv", "--out", str(tmp_path / "out")]) == 0
    rows = rows_of(tmp_path / "out/00000.csv")
    features = FeatureStore(store)
    assert [row["path"] for row in rows] == features.paths
    columns = [f"cls{i}" for i in range(features.cls.shape[1])]
    np.testing.assert_array_equal(np.array([[row[c] for c in columns] for row in rows], np.float32), features.cls)
    assert [row["class"] for row in rows] == [features.class_names[i] if i >= 0 else "" for i in features.labels]
