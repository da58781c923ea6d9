"""`extract`: its options, the rows of its store, slices, clusters, and what an interrupt leaves."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import save_photo, tiny_vit
from vitbackbone import FeatureStore, load_backbone
from vitbackbone.cli import main
from vitbackbone.cli.arguments import parser


def test_extract_gives_every_photo_a_row_and_names_the_broken_ones(photos: Path, store: Path) -> None:
    features = FeatureStore(store)
    assert len(features) == 41
    assert {path for path, _ in features.failed} == {"bright/broken.jpg", "dark/text.jpg"}
    assert features.class_names == ["bright", "dark"]
    assert [path.split("/")[0] for path in features.paths] == [features.class_names[i] for i in features.labels]
    backbone = load_backbone("nano")
    alone = backbone(backbone.preprocess(photos / features.paths[7])[None])
    assert np.allclose(features.cls[7], alone.cls[0].detach(), atol=1e-4)
    assert np.allclose(features.patches(7), alone.patches[0].detach(), atol=1e-4)


def test_extract_says_that_nano_is_small_and_names_a_stronger_one(photos: Path, tmp_path: Path, capsys: object) -> None:
    main(["extract", str(photos), "--out", str(tmp_path / "a")])
    output = capsys.readouterr()
    assert "nano, the small built-in one; for real work give --model vit_small_patch14_dinov2.lvd142m" in output.err
    assert "41 images read, 2 failed" in output.out
    assert "bright/broken.jpg: " in output.out


def test_extract_takes_all_its_options(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "a"
    command = [
        "extract",
        str(photos / "dark" / "*.jpg"),
        "--model",
        "vit_tiny_patch16_224.augreg_in21k",
        "--out",
        str(out),
    ]
    command += ["--weights", "random", "--tokens", "cls,patches", "--layers", "-4,-1", "--batch-size", "7"]
    command += [
        "--shard-size",
        "10",
        "--resolution",
        "32x48",
        "--dtype",
        "float16",
        "--workers",
        "1",
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    features = FeatureStore(out)
    assert features.layers == (8, 11)
    assert features.cls.dtype == np.float16
    assert features.patches(0).shape == (192, 2, 3)
    assert len(list(out.glob("objects/*/*.safetensors"))) == 3


def test_nothing_readable_is_exit_code_1_and_a_whole_store(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_text("x")
    assert main(["extract", str(tmp_path / "in"), "--out", str(tmp_path / "out")]) == 1
    assert len(FeatureStore(tmp_path / "out").failed) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resolution", "224x224x3"], "want a side such as 224"),
        (["--resolution", "0"], "want a side such as 224"),
        (["--layers", "a"], "want numbers such as -1"),
    ],
)
def test_options_say_what_they_want(arguments: list[str], message: str, capsys: object) -> None:
    with pytest.raises(SystemExit):
        main(["extract", "photos", "--out", "x", *arguments])
    assert message in capsys.readouterr().err


@pytest.mark.promise(19)
def test_an_interrupt_keeps_what_is_done(photos: Path, tmp_path: Path) -> None:
    """A real one, to a process with two workers."""
    command = [sys.executable, "-m", "vitbackbone.cli", "extract", str(photos), "--out", str(tmp_path / "out")]
    command += ["--shard-size", "2", "--workers", "2", "--resolution", "200"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background job ignores Ctrl-C
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out").glob("done/*.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 130
    assert "interrupted; what is done is kept" in error
    assert "Traceback" not in error
    assert not (tmp_path / "out" / ".unfinished").exists()
    assert not list((tmp_path / "out").glob("leases/*"))


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
