"""Repeat requests to a service while its faults may pass, and turn obstore's errors into errors of the system."""

import errno
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from vitbackbone.files.bucket_clients import CREDENTIALS

PATIENCE = 300.0  # seconds in which a request is repeated
PAUSE, LONGEST_PAUSE = 0.2, 10.0  # seconds before the first repetition and the latest; a pause doubles the one before
IN_A_ROW = 3  # requests of a bucket that fail at every repetition, with no success between them: the service is down
PASSING = (408, 409, 425, 429)  # refusals that may pass

T = TypeVar("T")
_failed: dict[str, int] = {}  # such requests of each bucket


class ServiceError(OSError):
    """The service failed at every repetition. The fault may pass: the same request may succeed later."""


class ServiceDown(ServiceError):
    """Several requests in a row failed at every repetition, so that others need not be tried."""


class ConditionsUnusable(OSError):
    """The service ignores the conditions of writes, or refuses them with the ETags that it gives."""


def repeat(request: Callable[[], T], place: str) -> T:
    """Send a request until it succeeds, is refused, or the patience ends.

    Raises `FileNotFoundError`, `PermissionError`, `ServiceError`, `ServiceDown` or another `OSError` that names the
    place. The errors of obstore that answer a condition, `AlreadyExistsError` and `PreconditionError`, pass through.
    """
    from obstore import exceptions

    deadline, pause = time.monotonic() + PATIENCE, PAUSE
    bucket = "/".join(place.split("/", 3)[:3])
    while True:
        try:
            found = request()
            _failed.pop(bucket, None)
            return found
        except FileNotFoundError as error:
            if "NoSuchBucket" in str(error) or "ContainerNotFound" in str(error):
                raise OSError(errno.EINVAL, "there is no bucket with this name", place) from error
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), place) from error
        except (exceptions.AlreadyExistsError, exceptions.PreconditionError):
            raise
        except (exceptions.BaseError, OSError) as error:
            final = _final(error, place)
            if final or time.monotonic() + pause > deadline:
                text = (
                    f"the service does not answer as it should ({_sentence(error)}); run the same command again later"
                )
                if final:
                    raise final from error
                _failed[bucket] = _failed.get(bucket, 0) + 1
                raise (ServiceDown if _failed[bucket] >= IN_A_ROW else ServiceError)(errno.EIO, text, place) from error
        time.sleep(pause * random.uniform(0.5, 1))
        pause = min(2 * pause, LONGEST_PAUSE)


def status_of(error: Exception) -> int | None:
    """Return the HTTP status in an error of obstore; None if there was no answer."""
    found = re.search(r"status code: (\d{3})", str(error))
    return int(found[1]) if found else None


def _final(error: Exception, place: str) -> OSError | None:
    """Return the error of a refusal; None if the fault may pass."""
    from obstore import exceptions

    status, text = status_of(error), _sentence(error)
    if isinstance(error, PermissionError):  # it says already what to do
        return error
    denied = isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError)
    no_credentials = re.search(r"169\.254\.169\.254|metadata\.google|[Cc]redential|Azure CLI|azure cli", str(error))
    if denied or status in (401, 403) or (no_credentials and status != 503):
        return PermissionError(errno.EACCES, f"access is denied ({text}); {CREDENTIALS[place[:2]]}", place)
    if isinstance(error, exceptions.InvalidPathError):
        why = f"the listing has a key that cannot be read, with '//', '.', '..' or a control character ({text})"
        return OSError(errno.EINVAL, f"{why}; give a prefix without it", place)
    redirected = "redirect" in str(error).lower()
    if redirected or (status is not None and 300 <= status < 500 and status not in PASSING):
        why = "; check the name of the bucket, its region (AWS_REGION) and its endpoint (AWS_ENDPOINT_URL)"
        return OSError(errno.EINVAL, f"the service refuses the request ({text}){why}", place)
    return None


def _sentence(error: Exception) -> str:
    """Return the core of an error: without the XML that services send and obstore's debug source."""
    text = str(error).split("\n\nDebug source")[0]
    message = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
    text = message[1] if message else re.sub(r"\s+", " ", text.split(": <?xml")[0])
    text = re.sub(r" in \d[\d.]*\D{1,2}s\b", "", text)  # the time that a request took
    text = "".join(c if c.isprintable() else " " for c in text).strip().rstrip(".")
    return text if len(text) <= 300 else f"{text[:300]}…"
