"""Optional libraries that are missing."""

import sys

import pytest

from vitbackbone.files import is_installed, open_bucket


class Blocked:
    """A finder that finds no obstore."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.partition(".")[0] == "obstore":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def test_a_bucket_without_its_library_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [Blocked(), *sys.meta_path])
    for name in [name for name in sys.modules if name.partition(".")[0] == "obstore"]:
        monkeypatch.delitem(sys.modules, name)
    assert is_installed("json")
    assert not is_installed("obstore")
    with pytest.raises(ImportError, match=r"pip install 'vitbackbone\[cloud\]'"):
        open_bucket("s3://bucket/prefix")
