"""Secrets for libraries that read files only: a file in memory, without a name in any file system.

Not for: secrets that are kept (`wire.secret_file`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def memory_file(content: bytes) -> Iterator[str]:
    """A path under which this process alone can read `content`, for as long as the block runs."""
    descriptor = os.memfd_create("hostmesh-tls", os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
