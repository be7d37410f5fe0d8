"""The numbers behind a host's limits, in memory that all its workers share.

A region is a memfd made by the host process before its workers: a header page, an append-only index (name → block), rows
of counts with one signed 64-bit number for each worker, and states: doubles that any worker changes under a lock.
Rule: a worker writes only its own column of the rows; a state is touched only while its byte range is locked; blocks
are given out under the header's lock, when a table is applied, and never freed. When there is no room left, what is new
counts for each worker alone, and the log says so once.
Not for: what is counted (Shares' users), statistics (agent/telemetry/stats).
"""

from __future__ import annotations

import fcntl
import logging
import mmap
import os
import struct
from array import array
from collections.abc import Sequence
from types import TracebackType

from agent.limits.tally import SharedTally, Tally

_MAGIC = 0x48_4D_4C_49_4D_49_54_31
_HEADER_BYTES = 4096
_MAX_BYTES = 1 << 30
_MAGIC_AT, _WORKERS, _INDEX_BYTES, _ROWS, _STATES, _INDEX_USED, _ROWS_USED, _STATES_USED = range(8)
_ENTRY = struct.Struct("<HBII")
"""Length of the name, kind, first row or double, how many of them."""
_COUNTS, _STATE = ord("c"), ord("s")
_log = logging.getLogger("hostmesh.limits")


class State:
    """Doubles of a block that any worker may change, inside `with`. They begin as zeros."""

    __slots__ = ("_fd", "_numbers", "_size", "_start")

    def __init__(self, fd: int, start: int, numbers: memoryview[float]) -> None:
        self._fd, self._start = fd, start
        self._size = numbers.nbytes
        self._numbers = numbers

    def __enter__(self) -> memoryview[float]:
        fcntl.lockf(self._fd, fcntl.LOCK_EX, self._size, self._start)
        return self._numbers

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        fcntl.lockf(self._fd, fcntl.LOCK_UN, self._size, self._start)


class LimitsRegion:
    """A region as one process sees it."""

    def __init__(self, fd: int, memory: mmap.mmap) -> None:
        self.fd = fd
        view = memoryview(memory)
        self._memory = memory
        self._header = view[:_HEADER_BYTES].cast("q")
        self.workers = self._header[_WORKERS]
        self._index_bytes, self._capacity = self._header[_INDEX_BYTES], self._header[_ROWS]
        self._rows_at = _HEADER_BYTES + self._index_bytes
        self._states_at = self._rows_at + self._capacity * self.workers * 8
        self._index = view[_HEADER_BYTES : self._rows_at]
        self._rows = view[self._rows_at : self._states_at].cast("q")
        self._states = view[self._states_at :].cast("d")
        self._known: dict[tuple[int, str, int], int] = {}
        self._read = 0
        self._full = False

    @classmethod
    def create(
        cls, workers: int, *, rows: int = 1 << 17, states: int = 1 << 17, index_bytes: int = 8 << 20
    ) -> LimitsRegion:
        """A new region for so many workers. Pages that are never touched cost nothing."""
        fd = os.memfd_create("hostmesh-limits", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        size = _HEADER_BYTES + index_bytes + rows * workers * 8 + states * 8
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        memory = mmap.mmap(fd, size)
        with memoryview(memory)[:_HEADER_BYTES].cast("q") as header:
            header[_WORKERS], header[_INDEX_BYTES] = workers, index_bytes
            header[_ROWS], header[_STATES] = rows, states
            header[_MAGIC_AT] = _MAGIC
        return cls(fd, memory)

    @classmethod
    def attach(cls, fd: int) -> LimitsRegion:
        """The region that the host process made; takes the descriptor over. Raises ValueError, OSError."""
        size = os.fstat(fd).st_size
        if (
            not _HEADER_BYTES < size <= _MAX_BYTES
            or not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        ):
            raise ValueError("not a region of limits")
        memory = mmap.mmap(fd, size)
        with memoryview(memory)[:_HEADER_BYTES].cast("q") as header:
            index, rows, states, workers = (header[i] for i in (_INDEX_BYTES, _ROWS, _STATES, _WORKERS))
            if header[_MAGIC_AT] != _MAGIC or size != _HEADER_BYTES + index + rows * workers * 8 + states * 8:
                raise ValueError("not a region of limits")
        return cls(fd, memory)

    def forget(self, column: int) -> None:
        """The worker of this column has ended: what it held is free. Only for who started it, after its end."""
        used = min(self._header[_ROWS_USED], self._capacity)
        self._rows[column : used * self.workers : self.workers] = memoryview(array("q", bytes(used * 8)))

    def row(self, first: int) -> memoryview:
        """The numbers of all workers in one row."""
        return self._rows[first * self.workers : (first + 1) * self.workers]

    def counts(self, name: str, number: int) -> int | None:
        """The first of so many rows with this name; None when there is no room."""
        return self._block(_COUNTS, name, number, _ROWS_USED, self._capacity)

    def state(self, name: str, size: int) -> State | None:
        """So many doubles with this name; None when there is no room."""
        first = self._block(_STATE, name, size, _STATES_USED, len(self._states))
        if first is None:
            return None
        return State(self.fd, self._states_at + first * 8, self._states[first : first + size])

    def _block(self, kind: int, name: str, size: int, used_at: int, capacity: int) -> int | None:
        key = kind, name, size
        found = self._known.get(key)
        if found is not None:
            return found
        fcntl.lockf(self.fd, fcntl.LOCK_EX, _HEADER_BYTES, 0)
        try:
            self._read_index()
            found = self._known.get(key)
            if found is not None:
                return found
            encoded = name.encode()
            first, at = self._header[used_at], self._header[_INDEX_USED]
            end = at + _ENTRY.size + len(encoded)
            if first + size > capacity or end > self._index_bytes or len(encoded) > 0xFFFF:
                self._say_full()
                return None
            _ENTRY.pack_into(self._index, at, len(encoded), kind, first, size)
            self._index[at + _ENTRY.size : end] = encoded
            self._header[used_at] = first + size
            self._header[_INDEX_USED] = self._read = end
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN, _HEADER_BYTES, 0)
        self._known[key] = first
        return first

    def _read_index(self) -> None:
        """Learn what other workers have added."""
        end = min(self._header[_INDEX_USED], self._index_bytes)
        while self._read + _ENTRY.size <= end:
            length, kind, first, size = _ENTRY.unpack_from(self._index, self._read)
            at = self._read + _ENTRY.size
            self._read = at + length
            self._known[kind, str(self._index[at : at + length], "utf-8"), size] = first

    def _say_full(self) -> None:
        if not self._full:
            self._full = True
            _log.error("no room for more shared limits: new ones count for each worker alone")


class Shares:
    """A worker's way to the region: its column, and the names of one of its workloads."""

    __slots__ = ("_column", "_prefix", "_region")

    def __init__(self, region: LimitsRegion, column: int, prefix: str = "") -> None:
        if not 0 <= column < region.workers:
            raise ValueError(f"there is no column {column}")
        self._region, self._column, self._prefix = region, column, prefix

    def of(self, workload: str) -> Shares:
        """The shares of one workload: the same names mean something else to another one."""
        return Shares(self._region, self._column, f"{workload}|")

    def tallies(self, name: str, number: int) -> Sequence[Tally]:
        """So many counts, all at zero where they are new to the host."""
        first = self._region.counts(self._prefix + name, number)
        if first is None:
            return [Tally() for _ in range(number)]
        return [SharedTally(self._region.row(first + i), self._column) for i in range(number)]

    def state(self, name: str, size: int) -> State | None:
        """So many doubles; None when there is no room, and the worker keeps its own."""
        return self._region.state(self._prefix + name, size)
