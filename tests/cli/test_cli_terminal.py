"""Every command at a terminal: one line for a mistake, no traceback, closed or full streams, signals."""

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import save_photo
from vitbackbone import FeatureStore, __version__
from vitbackbone.cli import main
from vitbackbone.cli.arguments import parser

COMMANDS = sorted(parser().commands)


def run(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "vitbackbone", *map(str, arguments)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.run(command, text=True, errors="surrogateescape", timeout=300, **options)


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command in this process."""
    try:
        code = main(arguments)
    except SystemExit as stopped:
        code = stopped.code
    output = capsys.readouterr()
    return code, output.out, output.err


def minimal(command: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Arguments of the first example in a command's help."""
    _, text, _ = said([command, "--help"], capsys)
    example = re.split(r"examples?:\n  ", text)[1].splitlines()[0]
    assert example.startswith(f"vitbackbone {command}")
    return example.replace("'", "").split()[1:]


# ---- every command, also one that is added later ---------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_option_and_has_examples_that_parse(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parsed = parser().parse_args(minimal(command, capsys))
    assert parsed.command == command
    for action in parser().commands[command]._actions:
        assert action.help, action.dest


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_option_is_one_line_that_names_it(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said([*minimal(command, capsys), "--verbos"], capsys)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        f"vitbackbone {command}: unknown option '--verbos', did you mean '--verbose'? "
        f"See `vitbackbone {command} --help`"
    ]
    code, out, err = said([*minimal(command, capsys), "-Z"], capsys)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "unknown option '-Z'" in err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_can_be_quiet_or_verbose(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = minimal(command, capsys)
    assert parser().parse_args([*example, "-q"]).quiet
    assert parser().parse_args(["-q", *example]).quiet
    assert parser().parse_args([*example, "-v"]).verbose
    assert not parser().parse_args(example).quiet
    assert said([*example, "-q", "-v"], capsys)[0] == 2


@pytest.mark.parametrize("command", COMMANDS)
def test_an_address_is_refused_wherever_a_file_is_wanted(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    example = minimal(command, capsys)
    for i, text in enumerate(example[1:], start=1):
        if not text.startswith("-") and ("/" in text or "." in text):
            code, out, err = said([*example[:i], "ftp://host/key", *example[i + 1 :]], capsys)
            assert (code, out) == (2, "")
            assert re.match(
                rf"vitbackbone {command}: (argument --out: )?ftp://host/key (is|has) .*(address|scheme)", err
            ), err
            assert len(err.splitlines()) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_in_the_place_of_the_output_folder_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {text: action for action in parser().commands[command]._actions for text in action.option_strings}
    if "--out" not in options or options["--out"].metavar != "DIR":
        pytest.skip("writes into no folder")
    file = tmp_path / "a\x1b[2Jfile"
    file.touch()
    for out in (file, file / "deeper"):
        code, _, err = said([*minimal(command, capsys), f"--out={out}"], capsys)
        assert code == 2
        assert r"a\x1b[2Jfile is a file; want a folder" in err
        assert len(err.splitlines()) == 1


# ---- lines that are wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "want a command: extract, verify"),
        (["extrct", "photos"], "unknown command 'extrct', did you mean 'extract'?"),
        (["--versio"], "unknown option '--versio', did you mean '--version'?"),
        (
            ["extract", "a.jpg", "b.jpg", "c.jpg", "--out", "x"],
            "unexpected argument 'b.jpg' and 1 more; put quotes around a glob",
        ),
        (["extract", "photos"], "required: --out"),
        (["extract", "photos", "--out", "x", "--res", "3"], "did you mean '--resolution'?"),
        (["extract", "photos", "-o", "x"], "unknown option '-o', did you mean '--out'?"),
        (["extract", "photos", "-Z", "x"], "unknown option '-Z'. See"),
        (["extract", "photos", "--out", "x", "--device", "gpu"], "did you mean cuda"),
        (["extract", "photos", "--out", "x", "--device", "gpu:1"], "did you mean cuda:1"),
        (["extract", "photos", "--out", ""], "is not the name of a folder"),
        (["extract", "photos", "--out", "x", "--layers", "a\nb"], r"'a\nb'; want numbers"),
        (
            ["extract", "photos", "--out", "x", "--batch-size", "0"],
            "--batch-size: '0'; want a whole number of at least 1",
        ),
        (["extract", "photos", "--out", "x", "--workers", "-1"], "--workers: '-1'; want a whole number of at least 0"),
        (["extract", "photos", "--out", "x", "--shard-size", "1.5"], "--shard-size: '1.5'; want a whole number"),
        (["info", "nano", "--resolution", "9999999999"], "'9999999999'; want at most 65535 pixels a side"),
        (["info", "nano", "--resolution", "9x99999"], "'9x99999'; want at most 65535 pixels a side"),
        (["extract", "", "--out", "x"], "the argument for SOURCE is empty"),
        (["predict", "a.jpg", "", "--probe", "x"], "the argument for IMAGES is empty"),
        (["verify", ""], "the argument for STORE is empty"),
        (["probe", "x", "--k", "0"], "--k: '0'; want a whole number of at least 1"),
        (["probe", "x", "--k", "_5"], "--k: '_5'; want a whole number of at least 1"),
        (["classify", "x.jpg", "--model", "nano", "--top", "0"], "--top: '0'; want a whole number of at least 1"),
        (["probe", "x", "--probe", "liner"], "choose from"),
        (["info", "https://huggingface.co/google/vit"], "hf:OWNER/REPO"),
        (["models", "zzz\x1b[2J"], "no name matches"),
    ],
)
def test_a_wrong_line_is_answered_by_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = said(arguments, capsys)
    assert (code, out) == (2, "")
    assert message in err
    assert err.rstrip("\n").isprintable()


def test_a_photo_that_cannot_be_shown_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a\n\x1b[2J.jpg").write_bytes(b"x")
    code, out, err = said(["show", str(tmp_path / "a\n\x1b[2J.jpg"), "--out", str(tmp_path / "out"), "-q"], capsys)
    assert (code, out) == (2, "")
    assert r"a\n\x1b[2J.jpg: not an image" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("columns", ["1", "2", "3"])
def test_a_terminal_may_be_of_any_width(
    columns: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert said(["models", "nano"], capsys)[::2] == (0, "")
    code, out, err = said(["prune", "--help"], capsys)
    assert (code, err) == (0, "")
    assert "--keep" in out


def test_negative_numbers_are_values(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["extract", "photos", "--out", "x", "--layers"]
    assert parser().parse_args([*line, "-4,-1"]).layers == [-4, -1]
    assert parser().parse_args([*line, "-2"]).layers == [-2]
    assert parser().parse_args(["show", "x", "--out", "y", "--layer", "-3"]).layer == -3


# ---- JSON ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("store")
    for i in range(3):
        save_photo(place / "photos" / f"{i}.png", seed=i)
    (place / "photos" / "bad\n9 images read\x1b[2J\u202e.png").write_bytes(b"x")
    assert main(["extract", str(place / "photos"), "--out", str(place / "run:1"), "-q"]) == 0
    return place / "run:1"


def test_results_are_json_for_other_programs(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def result(*arguments: str) -> object:
        code, out, err = said([*arguments, "--json"], capsys)
        assert (code, err, len(out.splitlines())) == (0, "", 1)
        assert out.isascii()
        return json.loads(out)

    (nano,) = result("models", "nano")
    assert nano == {
        "name": "nano",
        "pixels": [32, 32],
        "patch": 4,
        "dim": 192,
        "parameters": nano["parameters"],
        "licence": "apache-2.0",
        "source": "built in",
    }
    info = result("info", "nano", "--resolution", "64x32")
    assert (info["resolution"], info["grid"], info["tokens"]) == ([64, 32], [16, 8], 129)
    assert info["parameters"] == nano["parameters"]
    assert info["flops"] == info["embed"] + info["linear"] + info["attention"]
    assert next(step["step"] for step in result("info", "nano", "--trace")) == "image"
    assert result("verify", str(store)) == {"store": str(store), "shards": 1, "images": 4, "problems": []}


def test_verify_names_what_is_damaged_in_json(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    copy = shutil.copytree(store, tmp_path / "copy")
    next(copy.glob("objects/*/*.safetensors")).write_bytes(b"")
    code, out, _ = said(["verify", str(copy), "--json"], capsys)
    assert code == 1
    (problem,) = json.loads(out)["problems"]
    assert problem["file"].endswith(".safetensors")


def test_quiet_prints_only_what_failed(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = said(["extract", str(store.parent / "photos"), "--out", str(tmp_path / "out"), "-q"], capsys)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].startswith("3 images read, 1 failed: ")
    assert r"failed: bad\n9 images read\x1b[2J\u202e.png" in out
    assert said(["verify", str(store), "-q"], capsys) == (0, "", "")
    assert said(["export", str(store), "--format", "npy", "--out", str(tmp_path / "e"), "-q"], capsys) == (0, "", "")


# ---- streams, limits, signals: as a process -------------------------------------------------------------------------


def close(*streams: int) -> Callable[[], None]:
    return lambda: [os.close(stream) for stream in streams] and None


@pytest.mark.parametrize("line", [["models", "nano"], ["--version"], ["info", "--help"]], ids=" ".join)
def test_a_result_that_cannot_be_printed_is_an_error(line: list[str]) -> None:
    closed = run(*line, stdout=None, preexec_fn=close(1))
    with Path("/dev/full").open("w") as full:
        disk = run(*line, stdout=full)
    for done, why in ((closed, "it is closed"), (disk, "No space left on device")):
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert why in done.stderr


@pytest.mark.parametrize("stderr", ["closed", pytest.param("full", marks=pytest.mark.slow)])
def test_work_goes_on_where_notes_cannot_be_printed(store: Path, stderr: str, tmp_path: Path) -> None:
    line = ["extract", store.parent / "photos", "--out", "run:2"]
    if stderr == "closed":
        done = run(*line, cwd=tmp_path, stderr=None, preexec_fn=close(2))
    else:
        with Path("/dev/full").open("w") as full:
            done = run(*line, cwd=tmp_path, stderr=full)
    assert done.returncode == 0
    assert "3 images read, 1 failed: run:2" in done.stdout
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", done.stdout)
    assert len(FeatureStore(tmp_path / "run:2")) == 3


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "vitbackbone", "models", "nano"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=120) == 128 + signal.SIGPIPE


def test_a_limit_on_file_size_is_a_sentence(store: Path, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    done = run("extract", store.parent / "photos", "--out", tmp_path / "out", "-q", preexec_fn=limit)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert "File too large" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("after", [0.2, 1.0, 2.5])
def test_ctrl_c_is_130_without_a_traceback_at_any_time(after: float, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "vitbackbone", "demo", "--out", str(tmp_path / "demo")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    time.sleep(after)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=120)[1]
    if process.returncode == -signal.SIGINT:
        pytest.skip("Python itself had not started")
    assert process.returncode == 130
    assert "interrupted" in error
    assert "Traceback" not in error


def test_a_module_heads_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "heads.py").write_text("count = 2\n")
    done = run("demo", "--out", "demo", cwd=tmp_path)
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert said.startswith(f"vitbackbone demo: {tmp_path / 'heads.py'} hides the package heads")


def test_a_locale_without_our_characters_is_no_error() -> None:
    done = run("info", "nano", env={**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert done.returncode == 0
    assert r"N\xb2" in done.stdout


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(["--version"], capsys) == (0, f"vitbackbone {__version__}\n", "")


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    def fault(*_: object) -> None:
        raise KeyError("k\x1b[2J")

    monkeypatch.setattr("vitbackbone.checkpoints.list_backbones", fault)
    code, out, err = said(["models"], capsys)
    assert (code, out) == (70, "")
    first, second = err.splitlines()
    assert first == r"""vitbackbone models: KeyError: 'k\x1b[2J'"""
    kept = Path(second.split(" ")[-1])
    assert "in fault\n" in kept.read_text()
    kept.unlink()
    for full in (False, True):
        if full:
            monkeypatch.setattr("tempfile.tempdir", "/no/such/folder")
        code, _, err = said(["models", *["-v"] * (not full)], capsys)
        assert code == 70
        assert "Traceback (most recent call last):" in err.splitlines()
        assert "\x1b" not in err
