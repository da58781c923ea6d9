"""`extract`: slices, engines and clusters by their options."""

from pathlib import Path

import pytest

from tests.helpers import save_photo, tiny_vit
from vitbackbone.cli import main
from vitbackbone.cli.arguments import parser
from vitbackbone.store import FeatureStore


def test_slices_of_a_store_are_computed_one_by_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitbackbone.cli.commands.extract.load", lambda _: tiny_vit())
    for i in range(4):
        save_photo(tmp_path / "photos" / f"{i}.png", seed=i)
    out = str(tmp_path / "out")
    for i in range(2):
        command = ["extract", str(tmp_path / "photos"), "--out", out, "--shard-size", "1", "--slice", f"{i}/2"]
        assert main(command) == 0
    assert "2 shards of other slices are not complete yet" in capsys.readouterr().out
    assert len(FeatureStore(out)) == 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--slice", "2/2"], "slice 2/2: slices are counted from 0; want 0/2 to 1/2"),
        (["--slice", "x"], "want i/n such as 0/3"),
        (["--engine", "ray"], "invalid choice: 'ray'"),
        (["--cluster", "slurm"], "invalid choice: 'slurm'"),
        (["--ray-gpus", "1"], "--ray-gpus is an option of a cluster; give --cluster ray too"),
        (["--cluster", "ray", "--ray-actors", "0"], "actors=0; want at least 1"),
    ],
)
def test_a_wrong_option_is_refused_in_a_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    try:
        code = main(["extract", str(tmp_path), "--out", str(tmp_path / "out"), *options])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_the_cluster_is_beside_the_engine() -> None:
    args = parser().parse_args(["extract", "photos", "--out", "out", "--cluster", "ray", "--engine", "openvino"])
    assert (args.cluster, args.engine, args.ray_cpus) == ("ray", "openvino", None)
