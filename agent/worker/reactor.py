"""The loop of the data plane: one epoll descriptor, owned by one trio task.

Rule: while there are events they are dispatched without a single await; the epoll descriptor itself is waited on by trio
when there are none, and at least every `BUDGET` seconds trio's other tasks get their turn. Handlers are called with
the event mask and must not block. Output that handlers queue is flushed when the handler returns, so that a head, its
body and pipelined messages leave in one send.
A turn is bounded: it runs the events, timers and postponed calls that were there when it began, each once. What these
add waits for the next turn, after new events, so that no connection can keep the others from theirs.
Not for: protocols, and how much a connection may do in one call (transport.py, agent/http/codecs).
"""

from __future__ import annotations

import logging
import os
import select
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import trio
from mypy_extensions import trait

from agent.exchange.setting import Clock
from agent.worker.timers import Timer, Timers, fire

BUDGET: Final = 0.005
"""Seconds for which the reactor may keep trio's other tasks waiting."""
LINGER: Final = 0.004
"""Seconds to block in epoll after a busy turn before trio is asked to wait: a wake-up by trio costs more than a request."""

IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
ET: Final = select.EPOLLET
RDHUP: Final = select.EPOLLRDHUP
HUP: Final = select.EPOLLHUP
ERR: Final = select.EPOLLERR
READABLE: Final = IN | RDHUP | HUP | ERR

_log: Final = logging.getLogger("hostmesh.worker")


_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def _http_date(wall: float) -> bytes:
    """IMF-fixdate, whatever the locale (RFC 9110 section 5.6.7)."""
    at = time.gmtime(wall)
    clock = f"{at.tm_hour:02d}:{at.tm_min:02d}:{at.tm_sec:02d}"
    return f"{_DAYS[at.tm_wday]}, {at.tm_mday:02d} {_MONTHS[at.tm_mon - 1]} {at.tm_year} {clock} GMT".encode()


def _ends_first(event: tuple[int, int]) -> bool:
    return not event[1] & (RDHUP | HUP | ERR)


@trait
class Flushable:
    """Something with queued output."""

    @abstractmethod
    def flush(self) -> None: ...

    @abstractmethod
    def on_failure(self) -> None:
        """`flush` raised, which is a bug that must cost this one connection only."""


@trait
class Handler:
    """Owner of a descriptor."""

    @abstractmethod
    def on_event(self, mask: int) -> None:
        """Epoll reported `mask`."""

    @abstractmethod
    def on_failure(self) -> None:
        """`on_event` raised, which is a bug that must cost this one connection only."""


class Reactor(Clock):
    """Handlers by descriptor. `now` is the monotonic time of the event being handled."""

    def __init__(self) -> None:
        self.now = time.monotonic()
        self.timers = Timers()
        self.turns = 0
        """How often there was something to do."""
        self.at_rest: Callable[[], None] | None = None
        """Called when there is nothing to do, and in between where there always is."""
        self.dirty: list[Flushable] = []
        """Flushed after the handler in progress returns."""
        self._soon: deque[Callable[[], None]] = deque()
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._fresh: set[int] = set()
        """Descriptors registered since epoll was asked: what it said about their numbers was about closed ones."""
        self._stopped = False
        self._date = b""
        self._date_until = 0.0
        self._wall_offset = 0.0
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._bell, IN | ET)

    def register(self, descriptor: int, events: int, handler: Handler) -> None:
        """Call `handler.on_event(mask)` for these epoll events of a descriptor."""
        self._handlers[descriptor] = handler
        self._fresh.add(descriptor)
        self._epoll.register(descriptor, events)

    def modify(self, descriptor: int, events: int) -> None:
        """Change the events; with edge triggering a condition that holds now is reported again."""
        self._epoll.modify(descriptor, events)

    def rehandle(self, descriptor: int, handler: Handler) -> None:
        """Another handler for a registered descriptor."""
        self._handlers[descriptor] = handler

    def unregister(self, descriptor: int) -> None:
        """Before the descriptor is closed."""
        if self._handlers.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)

    def wall(self) -> float:
        """Seconds since the epoch at `now`."""
        if self.now >= self._date_until:
            self._new_second()
        return self.now + self._wall_offset

    def http_date(self) -> bytes:
        """The time for `date` fields (RFC 9110 section 5.6.7), made once a second."""
        if self.now >= self._date_until:
            self._new_second()
        return self._date

    def _new_second(self) -> None:
        wall = time.time()
        self._wall_offset = wall - time.monotonic()
        self._date = _http_date(wall)
        self._date_until = self.now + 1.0 - wall % 1.0

    def timer(self, call: Callable[[], None]) -> Timer:
        """A timer that is not set."""
        return self.timers.timer(call)

    def soon(self, call: Callable[[], None]) -> None:
        """Call in the next turn, without a wait before it. Only for code that the reactor called."""
        self._soon.append(call)

    def call(self, call: Callable[[], None]) -> None:
        """Call in the reactor's next turn; for other tasks, whose own changes it would sleep through."""
        self._soon.append(call)
        os.eventfd_write(self._bell, 1)

    def flush_dirty(self) -> None:
        """Send what handlers queued. What a flush queues (a drained buffer makes room for its source) leaves with the next."""
        dirty, self.dirty = self.dirty, []
        for transport in dirty:
            try:
                transport.flush()
            except Exception:
                _log.exception("output failed; its connection is closed")
                self._guarded(transport.on_failure)

    def holds(self) -> dict[str, int]:
        """What the loop holds for others: registered descriptors, set timers, and calls and output that wait."""
        return {
            "descriptors": len(self._handlers),
            "timers": len(self.timers),
            "timer_places": self.timers.places(),
            "calls": len(self._soon),
            "outputs": len(self.dirty),
        }

    def _guarded(self, call: Callable[[], None]) -> None:
        """What fails here has no connection that could be closed for it; the others must go on."""
        try:
            call()
        except Exception:
            _log.exception("a timer, a postponed call or the end of a failed connection failed")

    def _rest(self) -> None:
        if self.at_rest is not None:
            self._guarded(self.at_rest)

    def stop(self) -> None:
        """End `run` after the turn in progress."""
        self._stopped = True
        os.eventfd_write(self._bell, 1)

    def turn(self, wait: float) -> bool:
        """Ask epoll once, waiting so many seconds at most, and handle what there is. False: nothing was to be done."""
        soon, timers, fresh = self._soon, self.timers, self._fresh
        fresh.clear()
        events = self._epoll.poll(wait, 256)
        waiting = len(soon)
        if not events and not waiting and not self.dirty and timers.next_due() > self.now:
            return False
        self.turns += 1
        if len(events) > 1:
            # Ends first: a connection that its peer has closed must not be taken from a pool by the next event.
            events.sort(key=_ends_first)
        handlers = self._handlers
        clock = time.monotonic
        for fd, mask in events:
            handler = handlers.get(fd)
            if handler is None or fd in fresh:
                continue
            self.now = clock()
            try:
                handler.on_event(mask)
            except Exception:
                _log.exception("a handler failed; its connection is closed")
                self._guarded(handler.on_failure)
            if self.dirty:
                self.flush_dirty()
        now = self.now = clock()
        if timers.next_due() <= now:
            for timer in timers.due(now):
                self._guarded(partial(fire, timer, now))
        for _ in range(waiting):
            self._guarded(soon.popleft())
        if self.dirty:
            self.flush_dirty()
        return True

    async def run(self) -> None:
        """Dispatch until `stop`."""
        descriptor = self._epoll.fileno()
        clock = time.monotonic
        timers = self.timers
        while not self._stopped:
            started = self.now = clock()
            wait = 0.0
            while True:
                if self.turn(wait):
                    wait = 0.0
                elif wait:
                    self.now = clock()
                    if timers.next_due() > self.now:
                        break
                    wait = 0.0
                else:
                    self._rest()
                    wait = min(LINGER, max(timers.next_due() - self.now, 0.0))
                if self.now - started > BUDGET or self._stopped:
                    break
            if self.now - started > BUDGET:
                self._rest()
                await trio.lowlevel.checkpoint()
                continue
            delay = timers.next_due() - clock()
            with trio.move_on_after(max(delay, 0.0)):
                await trio.lowlevel.wait_readable(descriptor)

    def close(self) -> None:
        """After `run`, and after everything has been unregistered."""
        self._epoll.close()
        os.close(self._bell)
