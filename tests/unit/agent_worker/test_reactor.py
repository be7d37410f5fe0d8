"""Turns of the reactor: what a connection, a timer or a postponed call adds waits for the next turn; and whose event is whose."""

from __future__ import annotations

import gc
import os
import socket
import time
import weakref
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from agent.worker.reactor import ET, IN, Handler, Reactor
from agent.worker.timers import Timers
from agent.worker.transport import READ_BUDGET, PlainTransport, TransportOwner


@pytest.fixture
def reactor() -> Iterator[Reactor]:
    made = Reactor()
    yield made
    made.close()


@pytest.fixture
def pairs() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    for sock in (near, far):
        sock.setblocking(False)
        stack.callback(sock.close)
    return near, far


class Story(TransportOwner):
    """What an owner hears of its transport."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.bytes = 0

    def received(self, data: bytes) -> None:
        self.bytes += len(data)

    def ended(self) -> None:
        self.heard.append("ended")

    def lost(self, reason: str) -> None:
        self.heard.append(reason)

    def drained(self) -> None:
        self.heard.append("drained")

    def hung_up(self, broken: bool) -> None:
        self.heard.append(("hung up", broken))


# Turns


def test_a_call_that_postpones_itself_for_ever_keeps_nobody_waiting(
    reactor: Reactor, pairs: ExitStack
) -> None:
    near, far = pair(pairs)
    calls = 0

    def again() -> None:
        nonlocal calls
        calls += 1
        reactor.soon(again)

    reactor.soon(again)
    reactor.turn(0.0)
    story = Story()
    transport = PlainTransport(near, reactor, story)
    transport.start()
    far.send(b"my turn")
    reactor.turn(0.0)
    assert (calls, story.bytes) == (2, 7)
    transport.close()


def test_a_timer_that_sets_itself_to_now_keeps_nobody_waiting(reactor: Reactor) -> None:
    fired = 0

    def again() -> None:
        nonlocal fired
        fired += 1
        timer.set(0.0)

    timer = reactor.timer(again)
    timer.set(0.0)
    reactor.turn(0.0)
    assert fired == 1
    reactor.turn(0.0)
    assert fired == 2


def test_output_that_a_flush_queues_leaves_with_the_next_one(reactor: Reactor) -> None:
    class Endless:
        flushes = 0

        def flush(self) -> None:
            self.flushes += 1
            reactor.dirty.append(self)

        def on_failure(self) -> None: ...

    endless = Endless()
    reactor.dirty.append(endless)
    reactor.turn(0.0)
    assert endless.flushes == 1


def test_a_stream_at_full_speed_gets_its_share_of_a_turn_and_no_more(
    reactor: Reactor, pairs: ExitStack
) -> None:
    near, far = pair(pairs)
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
    story = Story()
    transport = PlainTransport(near, reactor, story)
    transport.start()
    sent = 0
    for _ in range(64):
        try:
            sent += far.send(bytes(65536))
        except BlockingIOError:
            break
    if sent <= READ_BUDGET:
        pytest.fail(f"the socket takes only {sent} bytes: the test shows nothing")
    reactor.turn(0.0)
    assert 0 < story.bytes <= READ_BUDGET
    while story.bytes < sent:
        before = story.bytes
        assert reactor.turn(0.0), "bytes were left in the socket"
        assert story.bytes - before <= READ_BUDGET
    transport.close()


# Events


class Reader(Handler):
    """Counts what it hears."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.events = 0

    def on_event(self, mask: int) -> None:
        self.events += 1

    def on_failure(self) -> None: ...


def test_an_event_of_a_closed_descriptor_does_not_reach_the_one_that_got_its_number(
    reactor: Reactor, pairs: ExitStack
) -> None:
    sockets = [pair(pairs) for _ in range(2)]
    readers = [Reader(near) for near, _ in sockets]
    replaced: list[Reader] = []

    def replace(this: int) -> None:
        """The first of the two that is called closes the other one, and a new socket takes its number."""
        readers[this].events += 1
        if replaced:
            return
        victim = readers[1 - this]
        number = victim.sock.fileno()
        reactor.unregister(number)
        victim.sock.close()
        new, _ = pair(pairs)
        moved = socket.socket(fileno=os.dup(new.fileno())) if new.fileno() != number else new
        pairs.callback(moved.close)
        assert moved.fileno() == number, "the kernel gave another number: the test shows nothing"
        replaced.append(Reader(moved))
        reactor.register(number, IN | ET, replaced[0])

    for number, reader in enumerate(readers):
        reader.on_event = lambda mask, number=number: replace(number)  # type: ignore[method-assign,misc]
        reactor.register(reader.sock.fileno(), IN | ET, reader)
    for _, far in sockets:
        far.send(b"x")
    reactor.turn(0.0)
    assert sum(reader.events for reader in readers) == 1
    assert replaced[0].events == 0
    reactor.unregister(replaced[0].sock.fileno())
    for reader in readers:
        if reader.sock.fileno() >= 0:
            reactor.unregister(reader.sock.fileno())


@pytest.mark.parametrize("reset", [False, True])
def test_the_departure_of_a_peer_is_seen_while_reading_is_paused(
    reactor: Reactor, pairs: ExitStack, reset: bool
) -> None:
    server = socket.create_server(("127.0.0.1", 0))
    pairs.callback(server.close)
    far = socket.create_connection(server.getsockname())
    near, _ = server.accept()
    near.setblocking(False)
    story = Story()
    transport = PlainTransport(near, reactor, story)
    transport.start()
    far.send(b"before")
    transport.pause()
    reactor.turn(0.0)
    if reset:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    far.close()
    deadline = time.monotonic() + 5
    while not story.heard and time.monotonic() < deadline:
        reactor.turn(0.1)
    assert story.heard[0] == ("hung up", reset)
    assert story.bytes == 0
    if not reset:
        transport.resume()
        reactor.turn(0.0)
        assert (story.bytes, story.heard[-1]) == (6, "ended")
    transport.close()


def test_a_closed_transport_has_let_go_of_its_owner_without_the_collector(
    reactor: Reactor, pairs: ExitStack
) -> None:
    near, _ = pair(pairs)
    story = Story()
    transport = PlainTransport(near, reactor, story)
    timer = reactor.timer(story.ended)
    timer.set(1e12)
    transport.start()
    alive = weakref.ref(story)
    gc.disable()
    try:
        transport.close()
        timer.close()
        del story
        assert alive() is None
    finally:
        gc.enable()


# Timers


class Owner:
    def due(self) -> None: ...


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_a_cancelled_timer_holds_nothing_until_its_old_deadline(end: str) -> None:
    timers = Timers()
    owner = Owner()
    alive = weakref.ref(owner)
    timer = timers.timer(owner.due)
    timer.set(3600.0)
    getattr(timer, end)()
    if end == "cancel":
        del timer
    del owner
    gc.disable()
    try:
        assert alive() is None
    finally:
        gc.enable()


def test_a_hundred_thousand_cancelled_timers_leave_no_places() -> None:
    timers = Timers()
    kept = [timers.timer(lambda: None) for _ in range(10)]
    for timer in kept:
        timer.set(7200.0)
    for number in range(100_000):
        timer = timers.timer(lambda: None)
        timer.set(3600.0 + number)
        timer.cancel()
    assert len(timers) == 10
    assert timers.places() < 100
    assert timers.next_due() <= 7200.0


def test_a_timer_that_another_one_cancels_in_the_same_turn_does_not_fire() -> None:
    timers, fired = Timers(), []
    second = timers.timer(lambda: fired.append("second"))
    third = timers.timer(lambda: fired.append("third"))

    def first() -> None:
        second.cancel()
        third.set(9.0)

    one = timers.timer(first)
    one.set(1.0)
    second.set(1.0)
    third.set(1.0)
    timers.run(1.0)
    assert fired == []
    timers.run(9.0)
    assert fired == ["third"]


def test_a_timer_set_to_never_keeps_its_place_for_the_next_deadline() -> None:
    timers, fired = Timers(), []
    timer = timers.timer(lambda: fired.append("now"))
    timer.set(5.0)
    timer.set(float("inf"))
    timers.run(4.0)
    timer.set(7.0)
    timers.run(6.0)
    assert (fired, timers.places()) == ([], 1)
    timers.run(7.0)
    assert fired == ["now"]
