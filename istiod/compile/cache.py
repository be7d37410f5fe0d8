"""Compiled parts, kept by exactly what they were made from, and encoded once for all proxies.

Rule: a key names every input that the part reads; a hit and a fresh compile are the same bytes. A part lives as
long as something that was made with it: the resources of a proxy, or another part. There is no other eviction.
Not for: which parts a proxy gets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")

_RECENT = 32
"""How many of the newest results are kept although no proxy holds them: one that comes back finds its parts."""


class Part(Generic[T]):
    """A cached value with the parts that were read while it was made."""

    __slots__ = ("__weakref__", "uses", "value")

    def __init__(self, value: T, uses: tuple[Part[Any], ...] = ()) -> None:
        self.value = value
        self.uses = uses


Parts = tuple[Part[Any], ...]


class Cache:
    """Parts by their keys. Whoever holds what `part` returns keeps it, and all that it uses, from being evicted."""

    def __init__(self) -> None:
        self._parts: WeakValueDictionary[Hashable, Part[Any]] = WeakValueDictionary()
        self._recent: deque[Part[Any]] = deque(maxlen=_RECENT)
        self._reading: list[list[Part[Any]]] = []
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The part for `key`, made now if it is not known. What `make` raises is raised, and nothing is kept."""
        return self.part(key, make).value

    def part(self, key: Hashable, make: Callable[[], T]) -> Part[T]:
        """As `get`, with what keeps it alive."""
        found = self._parts.get(key)
        if found is None:
            self.misses += 1
            with self._recording() as uses:
                value = make()
            found = self._parts[key] = Part(value, tuple(uses))
        else:
            self.hits += 1
        if self._reading:
            self._reading[-1].append(found)
        else:
            self._recent.append(found)
        return found

    @contextmanager
    def _recording(self) -> Iterator[list[Part[Any]]]:
        uses: list[Part[Any]] = []
        self._reading.append(uses)
        try:
            yield uses
        finally:
            self._reading.pop()

    def __len__(self) -> int:
        return len(self._parts)
