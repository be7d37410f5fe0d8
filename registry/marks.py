"""Change marks: wakes every watcher after a change, merging what a slow watcher has missed.

Rule: a mark says "read again", never what changed; a watcher is only a number, so it needs no closing.
Not for carrying data.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

import trio

__all__ = ["Changes"]


class Changes:
    """Counts changes; `watch` iterators compare the count with what they have seen."""

    def __init__(self) -> None:
        self._count = 1
        self._changed = trio.Event()

    def mark(self) -> None:
        """Something changed: wake all watchers."""
        self._count += 1
        self._changed.set()
        self._changed = trio.Event()

    def watch(self) -> AsyncIterator[int]:
        """The first mark at once, then one after each burst of changes."""
        return _Watch(self)

    async def beyond(self, seen: int) -> int:
        """Wait until the count differs from `seen`; return it."""
        await trio.lowlevel.checkpoint()
        while self._count == seen:
            await self._changed.wait()
        return self._count


class _Watch:
    def __init__(self, changes: Changes) -> None:
        self._changes = changes
        self._seen = 0

    def __aiter__(self) -> _Watch:
        return self

    async def __anext__(self) -> int:
        self._seen = await self._changes.beyond(self._seen)
        return self._seen
