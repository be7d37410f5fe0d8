"""How many of something there are now: in this worker alone, or in all workers of the host.

Rule: `add` for what comes and for what goes, `total` to decide. A shared count writes nothing but its own worker's number
and adds up everybody's, so that no lock is needed; two workers that decide within the same microseconds may both say yes.
Not for: where the numbers are (region.py); whose limit it is.
"""

from __future__ import annotations


class Tally:
    """Of this worker alone."""

    __slots__ = ("_own",)

    def __init__(self) -> None:
        self._own = 0

    def add(self, change: int) -> None:
        """More of it, or less."""
        self._own += change

    def total(self) -> int:
        """How many there are now."""
        return self._own


class SharedTally(Tally):
    """Of all workers. Invariant: this process is the only one that writes `_row[_column]`."""

    __slots__ = ("_column", "_row")

    def __init__(self, row: memoryview, column: int) -> None:
        super().__init__()
        self._row = row
        self._column = column

    def add(self, change: int) -> None:
        """See Tally."""
        self._row[self._column] += change

    def total(self) -> int:
        """See Tally."""
        return sum(self._row)
