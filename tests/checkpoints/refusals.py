"""Directories of small models, and the assertion that a damaged one is refused with a clear error."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.oracles.transformers_models import hf_model

INDEX = "model.safetensors.index.json"


def save(directory: Path, name: str = "vit", shards: bool = False) -> Path:
    hf_model(name).save_pretrained(directory, **({"max_shard_size": "20kB"} if shards else {}))
    return directory


def edit(file: Path, **fields: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def assert_refused(call: Callable[[], object], *words: str) -> str:
    """Assert one clear error that needs little memory."""
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, OSError)) as caught:
            call()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    text = str(caught.value)
    assert type(caught.value).__module__.split(".")[0] in ("builtins", "vitbackbone"), type(caught.value)
    assert all(word in text for word in words), text
    assert len(text) < 10_000
    assert peak < 1 << 28
    return text
