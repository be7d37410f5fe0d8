"""Deadlines in one heap, for code that moves them on every request and almost never reaches them.

Rule: moving a deadline later costs one assignment; the heap entry fires early, sees the new deadline and goes back in.
A timer is in the heap at most once for each time it was moved earlier. Time is an argument (monotonic seconds).
Not for: waiting; the reactor asks when the next entry is due.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from math import inf

from agent.exchange import setting


class Timer(setting.Timer):
    """One deadline and what happens at it. `deadline` may be set directly only to a later time or `inf`."""

    __slots__ = ("_armed", "_timers", "call", "deadline")

    def __init__(self, timers: Timers, call: Callable[[], None]) -> None:
        self._timers = timers
        self._armed = inf
        self.call = call
        self.deadline = inf

    def set(self, deadline: float) -> None:
        """Fire at this time, unless moved again."""
        self.deadline = deadline
        if deadline < self._armed:
            self._armed = deadline
            self._timers.push(deadline, self)

    def cancel(self) -> None:
        """Never fire, unless set again."""
        self.deadline = inf


class Timers:
    """The heap. Invariant: every timer with a finite deadline has an entry at or before it."""

    __slots__ = ("_count", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Timer]] = []
        self._count = 0

    def timer(self, call: Callable[[], None]) -> Timer:
        """A timer that is not set."""
        return Timer(self, call)

    def push(self, when: float, timer: Timer) -> None:
        """For Timer.set."""
        self._count += 1
        heappush(self._heap, (when, self._count, timer))

    def next_due(self) -> float:
        """When to call `run` at the latest."""
        return self._heap[0][0] if self._heap else inf

    def run(self, now: float) -> None:
        """Fire what is due."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            when, _, timer = heappop(heap)
            if when != timer._armed:
                continue
            if timer.deadline <= now:
                timer._armed = inf
                timer.deadline = inf
                timer.call()
            elif timer.deadline != inf:
                timer._armed = timer.deadline
                self.push(timer.deadline, timer)
            else:
                timer._armed = inf
