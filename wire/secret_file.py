"""Files that hold secrets, replaced at once and readable by their owner only.

Not for: what is in them.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write_secret(path: Path | str, content: bytes) -> None:
    """Replace a file's content at once, readable by its owner only (0600).

    A reader, or a host that loses power, sees the old file or the new one, never a part. Its folder exists.
    """
    path = Path(path)
    # mkstemp makes the file 0600 before a byte is in it.
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
