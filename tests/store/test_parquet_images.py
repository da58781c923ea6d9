"""Parquet files of images: names of classes, the column of images, damaged pages."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.store.archives import contents, image, patch
from vitbackbone.store.sources.source import list_inputs


def table(file: Path, names: list[str] | None = None, column: str = "image", **columns: object) -> Path:
    made = pa.table({column: [image(1), image(2)], **columns})
    features: dict[str, object] = {column: {"_type": "Image"}}
    if names is not None:
        features["label"] = {"names": names, "_type": "ClassLabel"}
        about = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
        made = made.replace_schema_metadata(about)
    pq.write_table(made, file)
    return file


def named(source: Path) -> list[str | None]:
    inputs = list_inputs(source)
    return [inputs.class_names[label] if label >= 0 else None for label in inputs.labels]


def test_class_names_of_several_shards_may_stand_in_any_order(tmp_path: Path) -> None:
    table(tmp_path / "0.parquet", ["cat", "dog"], label=[0, 1])
    table(tmp_path / "1.parquet", ["dog", "owl", "cat"], label=[0, 1])
    table(tmp_path / "2.parquet", ["owl"], label=[0, -1])
    assert named(tmp_path / "*.parquet") == ["cat", "dog", "dog", "owl", "owl", None]
    assert list_inputs(tmp_path / "0.parquet").class_names == ("cat", "dog")
    assert list_inputs(table(tmp_path / "b.parquet", ["z", "a"], label=[1, 1])).class_names == ("z", "a")
    table(tmp_path / "3.parquet", label=[0, 1])
    with pytest.raises(ValueError, match=r"3\.parquet has numbers as labels and no class names"):
        list_inputs(tmp_path / "*.parquet")


def test_a_name_of_several_classes_is_refused(tmp_path: Path) -> None:
    file = table(tmp_path / "a.parquet", ["cat", "dog", "cat"], label=[0, 2])
    with pytest.raises(ValueError, match=r"a\.parquet: .* invalid \(2 classes are named 'cat'\)"):
        list_inputs(file)


@pytest.mark.parametrize("label", [2, 100, -2])
def test_an_index_beyond_the_names_is_refused_with_its_file_and_row(tmp_path: Path, label: int) -> None:
    file = table(tmp_path / "a.parquet", ["cat", "dog"], label=[0, label])
    with pytest.raises(
        ValueError, match=rf"a\.parquet, row 1: label {label}; the file names 2 classes, so want 0 to 1"
    ):
        list_inputs(file)


@pytest.mark.parametrize("column", ["image", "img", "picture", "anything"])
@pytest.mark.parametrize("shape", ["bytes", "struct", "large"])
def test_the_column_of_images_is_found_by_its_type(tmp_path: Path, column: str, shape: str) -> None:
    cells = [image(1), image(2)]
    struct = pa.array([{"bytes": cell, "path": f"{i}.png"} for i, cell in enumerate(cells)])
    kinds = {"bytes": pa.array(cells), "large": pa.array(cells, pa.large_binary()), "struct": struct}
    pq.write_table(pa.table({"id": [1, 2], column: kinds[shape]}), tmp_path / "a.parquet")
    assert [*contents(tmp_path / "a.parquet").values()] == cells


@pytest.mark.parametrize("typed", [False, True])
def test_of_several_columns_of_images_one_is_read_and_a_note_names_all(tmp_path: Path, typed: bool) -> None:
    cells = [image(1), image(2)]
    made = pa.table({"mask": cells[::-1], "png": cells[::-1], "image": cells})
    if typed:
        features = {name: {"_type": "Image"} for name in ("mask", "image")}
        made = made.replace_schema_metadata({b"huggingface": json.dumps({"info": {"features": features}}).encode()})
    pq.write_table(made, tmp_path / "a.parquet")
    assert [*contents(tmp_path / "a.parquet").values()] == cells
    found = "image, mask" if typed else "image, png"
    note = f"archives with several columns of images give the first: a.parquet has {found}"
    assert list_inputs(tmp_path / "a.parquet").notes == (note,)


def test_the_only_class_label_is_the_label_whatever_it_is_called(tmp_path: Path) -> None:
    features = {"img": {"_type": "Image"}, "fine": {"names": ["a", "b"], "_type": "ClassLabel"}}
    for more, wanted in (({}, ["b", "a"]), ({"coarse": {"names": ["c"], "_type": "ClassLabel"}}, [None, None])):
        about = {b"huggingface": json.dumps({"info": {"features": features | more}}).encode()}
        made = pa.table({"img": [image(1), image(2)], "fine": [1, 0], "coarse": [0, 0]})
        pq.write_table(made.replace_schema_metadata(about), tmp_path / "a.parquet")
        assert named(tmp_path / "a.parquet") == wanted
    assert any("several label columns" in note for note in list_inputs(tmp_path / "a.parquet").notes)


def test_a_struct_without_bytes_is_a_row_that_names_its_row_and_path(tmp_path: Path) -> None:
    cells = [{"bytes": image(1), "path": "a.png"}, {"bytes": None, "path": "b.png"}, None]
    pq.write_table(pa.table({"image": cells}), tmp_path / "a.parquet")
    found = contents(tmp_path / "a.parquet")
    assert found["0"] == image(1)
    assert "row 1 holds no image bytes, only the path 'b.png'" in found["1"]
    assert "row 2 holds no image bytes" in found["2"]


@pytest.mark.parametrize("column", ["label", "path", "image"])
def test_a_damaged_page_of_a_parquet_file_fails_its_rows_and_no_others(tmp_path: Path, column: str) -> None:
    file = tmp_path / "a.parquet"
    made = pa.table(
        {
            "path": [f"photo {i}" for i in range(6)],
            "image": [image(i) for i in range(6)],
            "label": ["cat", "dog"] * 3,
        }
    )
    pq.write_table(made, file, row_group_size=2, write_page_checksum=True, use_dictionary=False)
    group = pq.read_metadata(file).row_group(1)
    chunk = next(c for c in map(group.column, range(3)) if c.path_in_schema == column)
    patch(file, chunk.data_page_offset + chunk.total_compressed_size - 4, b"\xff\xff\xff\xff")
    found = contents(file)
    whole = [value for value in found.values() if isinstance(value, bytes)]
    if column == "image":
        assert whole == [image(i) for i in (0, 1, 4, 5)]
    else:
        assert whole == [image(i) for i in range(6)]
        assert "[damage in row group 1]" in found
        assert any(f"the column '{column}' is damaged in rows 2 to 3" in note for note in list_inputs(file).notes)
