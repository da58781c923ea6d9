"""Export a store to formats of other programs. Each format is one file here; `FORMATS` lists them."""

from vitbackbone.store.formats.exporting import FORMATS, export

__all__ = ["FORMATS", "export"]
