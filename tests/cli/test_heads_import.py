"""A module of the user's that hides our package `heads`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import cases

ROOT = Path(__file__).parents[2]
FILES = {"a module": "heads.py", "a package": "heads/__init__.py"}
RAN = "raise SystemExit('the module of the user was run')\n"
COMMANDS = {
    "the module": [sys.executable, "-m", "vitbackbone.cli"],
    "the command": [sys.executable, "-c", "import sys; from vitbackbone.cli import main; sys.exit(main())"],
}


@pytest.mark.parametrize("command", cases(COMMANDS, {"the module"}))
@pytest.mark.parametrize("file", FILES.values(), ids=FILES)
def test_the_command_names_the_file_in_the_way_and_does_not_run_it(file: str, command: str, tmp_path: Path) -> None:
    path = tmp_path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(RAN)
    done = subprocess.run(
        [*COMMANDS[command], "demo", "--out", "demo"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert done.returncode == 2, done.stderr
    assert f"{path} hides the package heads, which is a part of vitbackbone. Rename that file" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_module_that_was_imported_before_is_in_the_way_too(tmp_path: Path) -> None:
    (tmp_path / "heads.py").write_text("")
    code = (
        "import heads\nfrom vitbackbone.cli.heads_import import our_heads\n"
        "try:\n    with our_heads():\n        import heads.probes\n"
        "except ImportError as error: assert 'heads.py hides the package heads' in str(error), error\n"
        "else: raise SystemExit('imported')"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)  # cwd comes first


def test_a_folder_that_is_no_package_hides_nothing(tmp_path: Path) -> None:
    (tmp_path / "heads").mkdir()
    code = "from vitbackbone.cli.heads_import import our_heads\nwith our_heads():\n    from heads import list_heads"
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})
