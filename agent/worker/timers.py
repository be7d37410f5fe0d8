"""Deadlines in one heap, for code that moves them on every request and almost never reaches them.

Rule: the heap holds times, never owners. A timer that is set has exactly one place in it, and `_at` maps the place to the timer;
cancelling removes that mapping, so what the timer would have called is free at once, however far away its deadline was.
Places without a timer are removed when they are reached, or all together when they are the majority. Moving a deadline
later costs one assignment: the place comes up early, sees the new deadline, and is made anew there.
Time is an argument (monotonic seconds). Not for: waiting; the reactor asks when the next place is due.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from math import inf
from typing import Final

from agent.exchange import setting

_SLACK: Final = 64
"""Places without a timer that are never worth a clean-up."""


def _never() -> None:
    """What a closed timer calls."""


class Timer(setting.Timer):
    """One deadline and what happens at it. Invariant: `_place` is 0, or this timer is in `_at` under it, at or before `deadline`.

    `set(inf)` keeps the place, which costs nothing; `cancel` gives it back; `close` also drops the callback, which usually
    is a method of the timer's owner: an owner that ends closes its timers, so that the two are no cycle."""

    __slots__ = ("_armed", "_place", "_timers", "call", "deadline")

    def __init__(self, timers: Timers, call: Callable[[], None]) -> None:
        self._timers = timers
        self._armed = inf
        self._place = 0
        self.call = call
        self.deadline = inf

    def set(self, deadline: float) -> None:
        """Fire at this time, unless moved again; `inf`: not at all, while the owner lives and will set it again."""
        self.deadline = deadline
        if deadline < self._armed:
            self._timers.move(self, deadline)

    def cancel(self) -> None:
        """Never fire, unless set again."""
        self.deadline = inf
        if self._place:
            self._timers.remove(self)

    def close(self) -> None:
        """The owner ends: never fire again, and let go of what would have been called."""
        self.cancel()
        self.call = _never


class Timers:
    """The heap. Invariant: `_at` holds every timer with a finite deadline, once; each of its places is in `_heap`."""

    __slots__ = ("_at", "_count", "_heap")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int]] = []
        self._at: dict[int, Timer] = {}
        self._count = 0

    def timer(self, call: Callable[[], None]) -> Timer:
        """A timer that is not set."""
        return Timer(self, call)

    def __len__(self) -> int:
        """Timers that have a place."""
        return len(self._at)

    def places(self) -> int:
        """Entries of the heap, those without a timer included."""
        return len(self._heap)

    def move(self, timer: Timer, when: float) -> None:
        """For Timer.set: give it a place at `when`, instead of the one that it had."""
        if timer._place:
            del self._at[timer._place]
        self._count += 1
        timer._place = self._count
        timer._armed = when
        self._at[self._count] = timer
        heappush(self._heap, (when, self._count))
        self._tidy()

    def remove(self, timer: Timer) -> None:
        """For Timer.cancel."""
        del self._at[timer._place]
        timer._place = 0
        timer._armed = inf
        self._tidy()

    def _tidy(self) -> None:
        """Drop the places without a timer once they are the majority: a constant share of the work that made them."""
        heap, at = self._heap, self._at
        if len(heap) > 2 * len(at) + _SLACK:
            heap[:] = [place for place in heap if place[1] in at]
            heapify(heap)

    def next_due(self) -> float:
        """When to call `run` at the latest."""
        return self._heap[0][0] if self._heap else inf

    def due(self, now: float) -> list[Timer]:
        """Take out the timers whose deadlines have passed, in order. What they set when called is not among them, so a turn
        of the reactor ends, whatever its timers do. Some may be cancelled by others before their call: see `fire`."""
        heap, at = self._heap, self._at
        found: list[Timer] = []
        while heap and heap[0][0] <= now:
            place = heappop(heap)[1]
            timer = at.pop(place, None)
            if timer is None:
                continue
            timer._place = 0
            timer._armed = inf
            if timer.deadline <= now:
                found.append(timer)
            elif timer.deadline != inf:
                self.move(timer, timer.deadline)
        return found

    def run(self, now: float) -> None:
        """Fire what is due."""
        for timer in self.due(now):
            fire(timer, now)


def fire(timer: Timer, now: float) -> None:
    """Call a timer that `due` gave, unless it was cancelled or moved since."""
    if timer.deadline <= now and not timer._place:
        timer.deadline = inf
        timer.call()
