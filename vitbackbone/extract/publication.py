"""How every file gets into a store: whole, and by the one process that writes it."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from vitbackbone.files import leftovers, publish


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """`publish` for the one writer of a file: what killed ones left of it goes, and a full disk says what to do."""
    for path in leftovers(target):
        shutil.rmtree(path)
    try:
        with publish(target) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        if not full and "os error 28" not in str(error) and os.strerror(errno.ENOSPC) not in str(error):
            raise
        raise OSError(
            errno.ENOSPC,
            f"{os.strerror(errno.ENOSPC)}, for {target.name}; free some and run the same extraction again: what is "
            "done is kept",
            str(target.parent),
        ) from error
