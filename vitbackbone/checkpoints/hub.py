"""Files from the Hugging Face Hub, or from its cache on disk."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vitbackbone.checkpoints.zoo import ZOO
from vitbackbone.files import bars_are_hidden, read_json


class WeightsUnavailable(OSError):
    """The weights could not be found or downloaded. The message says what to do without a network."""


def download_config(known: str, revision: str | None) -> Path:
    """Return the folder with a repository's `config.json`, or `open_clip_config.json` if it has no other, and with its
    image processor's file if it has one."""
    repository = known.removeprefix("hf:")
    config = download_if_there(known, repository, "config.json", revision)
    if config is None:
        return download(known, repository, "open_clip_config.json", revision).parent
    settings = read_json(config, dict)
    if "architecture" in settings and "model_type" not in settings:  # timm's, perhaps the image tower of a CLIP
        download_if_there(known, repository, "open_clip_config.json", revision)
        return config.parent
    if download_if_there(known, repository, "preprocessor_config.json", revision) is None:
        download_if_there(known, repository, "processor_config.json", revision)
    return config.parent


def download_if_there(known: str, repository: str, file: str, revision: str | None) -> Path | None:
    """Return the file, or None if the repository has no such file. Raises `WeightsUnavailable` if that is not known."""
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return download(known, repository, file, revision)
    except WeightsUnavailable as error:
        cause = error.__cause__
        if isinstance(cause, EntryNotFoundError) and not isinstance(cause, LocalEntryNotFoundError):
            return None
        if _is_known_missing(repository, file, revision):
            return None
        raise


def _is_known_missing(repository: str, file: str, revision: str | None) -> bool:
    """Return whether the cache remembers that the repository has no such file."""
    from huggingface_hub import try_to_load_from_cache

    # A path if the file is cached, None if nothing is known, and a marker of a private name if the file is missing
    found = try_to_load_from_cache(repository, file, revision=revision)
    return found is not None and not isinstance(found, str)


def download(known: str, repository: str, file: str, revision: str | None) -> Path:
    """Return the path of a repository's file in the cache. `known` is the backbone's name, for the error."""
    from huggingface_hub import hf_hub_download

    try:
        with _hub_bars():
            return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # no network, not in the cache, gated, a broken proxy: the client has no one error type
        why = f"{repository}/{file} could not be downloaded from the Hub: {error}"
        raise WeightsUnavailable(by_hand(known, why)) from error


@contextmanager
def _hub_bars() -> Iterator[None]:
    """Hide the Hub's own progress bars where this package hides its bars."""
    import huggingface_hub

    utils: Any = huggingface_hub.utils
    if not bars_are_hidden() or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def by_hand(known: str, why: str) -> str:
    """Say why there are no weights, and how to load without a network."""
    if known in ZOO:
        way = f"load_backbone({known!r}, weights=PATH) takes a file downloaded by hand, weights='random' is untrained"
    else:
        way = "load_backbone(DIR) takes a directory downloaded by hand, with config.json and safetensors"
    return f"no weights for {known!r}: {why}\nWithout a network: {way}, and 'nano' is built in."
