"""When a burst of changes counts as one.

Job: collect pokes; return once nothing more came for `quiet` seconds, or `longest` seconds after the first.
Rule: a poke is never lost: one that arrives while the caller works is answered by the next `settled`.
Not for: what changed (the caller reads everything again).
"""

from __future__ import annotations

import trio

QUIET = 0.1
"""Seconds without a change after which a burst is over (Istio: PILOT_DEBOUNCE_AFTER, 100 ms)."""
LONGEST = 1.0
"""Seconds after which a burst that does not end is acted on all the same (Istio: PILOT_DEBOUNCE_MAX)."""


class Debounce:
    """One burst at a time; for one waiting task."""

    def __init__(self, quiet: float = QUIET, longest: float = LONGEST) -> None:
        self._quiet = quiet
        self._longest = longest
        self._poked = trio.Event()
        self._first = 0.0
        self._last = 0.0
        self.merged = 0
        """Pokes that the last burst consisted of."""
        self._count = 0

    def poke(self) -> None:
        """Something changed."""
        self._last = trio.current_time()
        if not self._poked.is_set():
            self._first = self._last
            self._poked.set()
        self._count += 1

    async def settled(self) -> float:
        """Wait for a burst to be over; returns the time (trio's clock) of its first poke."""
        await self._poked.wait()
        while True:
            until = min(self._last + self._quiet, self._first + self._longest)
            if trio.current_time() >= until:
                break
            await trio.sleep_until(until)
        self._poked = trio.Event()
        self.merged, self._count = self._count, 0
        return self._first
