"""Progress bars, and `--quiet`, which hides all of them."""

from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.utils import are_progress_bars_disabled

from vitbackbone import progress_bar
from vitbackbone.checkpoints.hub import download
from vitbackbone.cli import main
from vitbackbone.cli.commands import demo
from vitbackbone.files import no_progress_bars, progress


def test_a_passing_bar_is_shown_only_for_long_tasks(monkeypatch, capsys):
    assert list(progress_bar(range(3), "counting", passing=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "DELAY", 0)
    list(progress_bar(range(3), "counting", passing=True))
    assert "counting" in capsys.readouterr().err


def test_bars_can_be_hidden_by_the_caller_and_around_it(capsys):
    list(progress_bar(range(3), "counting", shown=False))
    with no_progress_bars():
        list(progress_bar(range(3), "counting"))
        with no_progress_bars(False):
            list(progress_bar(range(3), "counting"))
    assert capsys.readouterr().err == ""
    list(progress_bar(range(3), "counting"))
    assert "counting" in capsys.readouterr().err


@pytest.mark.parametrize("quiet", [False, True])
def test_quiet_hides_the_bars_of_a_command(quiet, monkeypatch, capsys):
    def run(out: Path, measure: object) -> int:
        print("note")
        list(progress_bar(range(3), "counting"))
        return 0

    monkeypatch.setattr(demo, "_run", run)
    assert main(["demo", *["-q"] * quiet]) == 0
    shown = capsys.readouterr()
    assert ("counting" in shown.err) is not quiet
    assert ("note" in shown.out) is not quiet


@pytest.mark.parametrize("hidden", [False, True])
def test_the_hubs_bars_are_hidden_too(hidden, monkeypatch):
    seen = []
    monkeypatch.setattr(
        huggingface_hub, "hf_hub_download", lambda *_, **__: seen.append(are_progress_bars_disabled()) or "file"
    )
    before = are_progress_bars_disabled()
    with no_progress_bars(hidden):
        download("hf:a/b", "a/b", "config.json", None)
    assert seen == [hidden or before]
    assert are_progress_bars_disabled() == before
