"""The script of the GPU page runs at toy size on any device, and writes every part of the page."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_page_is_written_at_toy_size(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    page = tmp_path / "page.md"
    command = [sys.executable, "-m", "benchmarks.cuda", "--toy", "--out", str(page)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    text = page.read_text()
    for library in ("Python", "torch", "timm", "transformers", "vitbackbone"):
        assert re.search(rf"{library} \d+\.\d+", text), library
    assert "At the start" in text
    assert "Measured peak" in text
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| vit_")]
    assert {row[2] for row in rows} >= {"timm", "timm, compiled", "transformers", "ours"}
    assert all(float(row[-1].strip(" |")) > 0.99 for row in rows), rows  # closeness to float32
    assert all(row[-2].endswith("%") for row in rows)
    assert {"| exact", "| fast", "| draft"} <= {line.split(" | ")[0] for line in text.splitlines()}
