"""Statistics in shared memory: one region for each worker, written by it alone, read by anybody.

A region is a memfd: a header page, an append-only index that says which block of slots means what, and the slots
(signed 64-bit). The writer counts in a list of its own, `region.counts[i] += 1`, because an item of shared memory costs
ten times as much as one of a list, and copies it with `publish` whenever it has nothing else to do; readers parse the
index and add the slots of all regions up (agent/telemetry/reading).
Rule: an index entry, once visible, never changes; a block is never freed; when the region is full, writers are given a
scratch block that nobody reads, and `dropped` counts that.
Not for: the meaning of names and labels (scopes.py, series.py).
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import struct
import time
from array import array
from collections.abc import Iterator, Mapping
from typing import NamedTuple

_MAGIC = 0x48_4D_53_54_41_54_53_31
_HEADER_BYTES = 4096
_MAX_BYTES = 256 << 20
_MAGIC_AT, _INDEX_BYTES, _SLOTS, _INDEX_USED, _SLOTS_USED, _STARTED, _PID, _DROPPED = range(8)
_ENTRY = struct.Struct("<HBII")
"""Length of the text, kind, first slot, number of slots."""

SCRATCH = 256
"""Slots at the front that take what finds no room; no block may be larger."""


class Entry(NamedTuple):
    """One block of the index."""

    kind: str
    """`d` definitions, `c` counter, `g` gauge, `s` scope, `r` request series, `t` TCP series."""
    first: int
    size: int
    text: str


class StatsRegion:
    """One worker's numbers. `fd` is to be passed to readers; close() ends this process's view only."""

    def __init__(self, fd: int, memory: mmap.mmap, writable: bool) -> None:
        self.fd = fd
        self._memory = memory
        self._view = memoryview(memory)
        self._header = self._view[:_HEADER_BYTES].cast("q")
        self._index_at = _HEADER_BYTES
        self._limit = self._header[_SLOTS]
        self._slots_at = len(self._view) - self._limit * 8
        self.slots = self._view[self._slots_at :].cast("q")
        """What readers see: all slots as of the last `publish`."""
        self.counts = [0] * SCRATCH if writable else []
        """What the worker that created the region counts in; as long as there are blocks."""
        self._known: dict[tuple[str, str], int] = {}
        self._writable = writable

    @classmethod
    def create(cls, *, slots: int = 1 << 20, index_bytes: int = 8 << 20) -> StatsRegion:
        """A new, empty region for this process to write. Pages that are never touched cost nothing."""
        fd = os.memfd_create("hostmesh-stats", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        size = _HEADER_BYTES + index_bytes + slots * 8
        os.ftruncate(fd, size)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
        memory = mmap.mmap(fd, size)
        header = memoryview(memory)[:_HEADER_BYTES].cast("q")
        header[_INDEX_BYTES] = index_bytes
        header[_SLOTS] = slots
        header[_SLOTS_USED] = SCRATCH
        header[_STARTED] = int(time.time())
        header[_PID] = os.getpid()
        header[_MAGIC_AT] = _MAGIC
        header.release()
        return cls(fd, memory, writable=True)

    @classmethod
    def attach(cls, fd: int) -> StatsRegion:
        """A read-only view of another process's region; takes the descriptor over. Raises ValueError.

        The writer is not trusted: a region that could shrink would end its readers by SIGBUS.
        """
        try:
            sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
            size = os.fstat(fd).st_size
        except OSError as error:
            os.close(fd)
            raise ValueError(f"not a statistics region: {error}") from None
        if not sealed or not _HEADER_BYTES < size <= _MAX_BYTES:
            os.close(fd)
            raise ValueError("not a statistics region")
        memory = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        with memoryview(memory) as view, view[:_HEADER_BYTES].cast("q") as header:
            index, slots = header[_INDEX_BYTES], header[_SLOTS]
            good = (
                header[_MAGIC_AT] == _MAGIC
                and index >= 0
                and index % 8 == 0
                and slots >= 0
                and size == _HEADER_BYTES + index + slots * 8
            )
        if not good:
            memory.close()
            os.close(fd)
            raise ValueError("not a statistics region")
        return cls(fd, memory, writable=False)

    def close(self) -> None:
        """Give up the mapping and the descriptor. Nothing of this region may be used afterwards."""
        self.slots.release()
        self._header.release()
        self._view.release()
        self._memory.close()
        os.close(self.fd)

    @property
    def pid(self) -> int:
        """The writer's process id."""
        return self._header[_PID]

    @property
    def started(self) -> int:
        """When the region was created, seconds since the epoch."""
        return self._header[_STARTED]

    @property
    def dropped(self) -> int:
        """Blocks that found no room."""
        return self._header[_DROPPED]

    def block(self, kind: str, text: str, count: int = 1) -> int:
        """The first slot of the block for (kind, text), new or known. Only for the writer."""
        if not self._writable:
            raise ValueError("only the process that created a region writes to it")
        if count > SCRATCH:
            raise ValueError(f"a block of {count} slots is larger than {SCRATCH}")
        found = self._known.get((kind, text))
        if found is not None:
            return found
        encoded = text.encode()
        used, first = self._header[_INDEX_USED], self._header[_SLOTS_USED]
        size = _ENTRY.size + len(encoded)
        full = used + size > self._header[_INDEX_BYTES] or first + count > self._header[_SLOTS]
        if full or len(encoded) > 0xFFFF:
            self._header[_DROPPED] += 1
            return 0
        at = self._index_at + used
        _ENTRY.pack_into(self._memory, at, len(encoded), ord(kind), first, count)
        self._view[at + _ENTRY.size : at + size] = encoded
        self._header[_SLOTS_USED] = first + count
        self.counts.extend([0] * count)
        self._header[_INDEX_USED] = used + size
        self._known[kind, text] = first
        return first

    def define(self, definitions: Mapping[str, object]) -> None:
        """Write down what scopes and series of this region look like, for readers of another version."""
        self.block("d", json.dumps(definitions), 0)

    def counter(self, name: str) -> int:
        """The slot of a counter with this Envoy name."""
        return self.block("c", name)

    def gauge(self, name: str) -> int:
        """The slot of a gauge with this Envoy name."""
        return self.block("g", name)

    def entries(self) -> Iterator[Entry]:
        """The index as it stands; entries that are being written are left for the next reading."""
        end = min(self._index_at + self._header[_INDEX_USED], self._slots_at)
        at = self._index_at
        while at + _ENTRY.size <= end:
            length, kind, first, count = _ENTRY.unpack_from(self._memory, at)
            at += _ENTRY.size + length
            if kind == 0 or at > end or first + count > self._limit:
                return
            yield Entry(chr(kind), first, count, self._memory[at - length : at].decode())

    def publish(self) -> None:
        """Let readers see what was counted. Only for the writer; a reader's copy does nothing."""
        if self._writable:
            self.slots[: len(self.counts)] = memoryview(array("q", self.counts))

    def reset_counters(self) -> None:
        """Zero everything but gauges. Only for the writer (Envoy's /reset_counters)."""
        gauges = self._gauge_slots()
        for entry in list(self.entries()):
            for slot in range(entry.first, entry.first + entry.size):
                if slot not in gauges:
                    self.counts[slot] = 0
        self.publish()

    def _gauge_slots(self) -> set[int]:
        from agent.telemetry.scopes import SCOPES

        found: set[int] = set()
        for entry in self.entries():
            if entry.kind == "g":
                found.add(entry.first)
            elif entry.kind == "s":
                scope = SCOPES[entry.text.partition(".")[0]]
                found.update(entry.first + scope.names().index(name) for name in scope.gauges)
        return found
