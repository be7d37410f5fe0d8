"""Memory that only the start of a process needed, given back to the host.

Rule: what is given back is either free (malloc_trim) or a clean page of a file, which the kernel reads again if it is touched:
the same as it does itself when memory is short. Not for: garbage, which there is none of (holdings).
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterator
from pathlib import Path

_MADV_DONTNEED = 4
_MAPPING = re.compile(r"([0-9a-f]+)-([0-9a-f]+) (r-xp|r--p) \S+ \S+ \d+ +/")


def give_back() -> None:
    """Return what can be returned, where the C library can (glibc)."""
    libc = ctypes.CDLL(None)
    trim = getattr(libc, "malloc_trim", None)
    if trim is not None:
        trim(0)
    advise = getattr(libc, "madvise", None)
    if advise is None:
        return
    try:
        text = Path("/proc/self/smaps").read_text(errors="replace")
    except OSError:
        return
    for start, end in clean_mappings(text):
        advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def clean_mappings(smaps: str) -> Iterator[tuple[int, int]]:
    """Address ranges of read-only private mappings of files in which no page was ever written (relocated, for example)."""
    found: tuple[int, int] | None = None
    for line in smaps.splitlines():
        if line.startswith("Anonymous:"):
            if found is not None and line.split()[1] == "0":
                yield found
            found = None
        elif (match := _MAPPING.match(line)) is not None:
            found = int(match[1], 16), int(match[2], 16)
        elif line[:1] in "0123456789abcdef":
            found = None
