"""A small name of the zoo, and a change of a directory's config."""

import json
from pathlib import Path

SMALL = "vit_tiny_patch16_224.augreg_in21k"


def edit(directory: Path, **fields: object) -> None:
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps({**config, **fields}))
