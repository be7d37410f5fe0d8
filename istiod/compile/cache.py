"""Compiled parts, kept by exactly what they were made from, and encoded once for all proxies.

Rule: a key names every input that the part reads; a hit and a fresh compile are the same bytes.
Not for: which parts a proxy gets.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar, cast

T = TypeVar("T")


class Cache:
    """Two generations: what a round of pushes used survives the next `turn`, the rest is forgotten."""

    def __init__(self) -> None:
        self._young: dict[Hashable, object] = {}
        self._old: dict[Hashable, object] = {}
        self.hits = 0
        self.misses = 0

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The part for `key`, made now if it is not known."""
        found = self._young.get(key)
        if found is not None:
            self.hits += 1
            return cast(T, found)
        found = self._old.get(key)
        if found is None:
            self.misses += 1
            found = make()
        else:
            self.hits += 1
        self._young[key] = found
        return cast(T, found)

    def turn(self) -> None:
        """Start a new generation; call it once a snapshot. Parts unused for two generations are dropped."""
        self._old = self._young
        self._young = {}

    def __len__(self) -> int:
        return len(self._young.keys() | self._old.keys())
