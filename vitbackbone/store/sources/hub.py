"""Data sets of the Hugging Face Hub, through its own file system: tokens, endpoints and offline mode are the Hub's."""

import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from vitbackbone.files import ServiceError, Stored

T = TypeVar("T")


class Hub:
    """The Hub as a service with files. Keys are `datasets/OWNER/NAME[@REVISION]/PATH`."""

    def __init__(self) -> None:
        from huggingface_hub import HfFileSystem

        self._files = HfFileSystem()
        self._opened = threading.local()  # the file that this thread has read last

    def describe(self, key: str) -> Stored:
        return _stored(_asked(lambda: self._files.info(key, refresh=True, expand_info=True)))

    def read(self, key: str, start: int, length: int, version: str | None = None) -> bytes:
        def read() -> bytes:
            if getattr(self._opened, "key", None) != key:
                self._opened.file = self._files.open(key, "rb", cache_type="none")
                self._opened.key = key
            self._opened.file.seek(start)
            return bytes(self._opened.file.read(length))

        return _asked(read)

    def list(self, prefix: str) -> Iterator[Stored]:
        found: Any = _asked(lambda: self._files.find(prefix, detail=True, refresh=True))
        for name in sorted(found):
            yield _stored(found[name])


def _stored(info: dict[str, Any]) -> Stored:
    if info["type"] != "file":
        raise IsADirectoryError(f"{info['name']} is a folder")
    return Stored(info["name"], info["size"], info.get("blob_id") or info.get("xet_hash") or "-")


def _asked(request: Callable[[], T]) -> T:
    """Send a request. The Hub's library repeats it by itself; its errors become errors of the system."""
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return request()
    except OfflineModeIsEnabled as error:
        raise ConnectionError("the Hub is not asked, because HF_HUB_OFFLINE is set") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        if status in (401, 403):
            raise PermissionError(f"the Hub denies access ({error}); run `hf auth login`") from error
        if status == 404:
            raise FileNotFoundError(str(error)) from error
        raise ServiceError(str(error)) from error
    except (OSError, ValueError):
        raise
    except Exception as error:  # errors of the HTTP library are not `OSError`s
        raise ServiceError(f"the Hub does not answer as it should ({error})") from error
