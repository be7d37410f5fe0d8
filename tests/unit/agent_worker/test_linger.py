"""The end of a connection on real sockets: who gets on loses nothing, who does not is closed. Time is a number."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from agent.worker.linger import Linger
from agent.worker.reactor import Reactor
from agent.worker.transport import PlainTransport
from tests.unit.agent_worker.stage import Wire

MUCH = 8_000_000


class Ending:
    """A connection that ends with much to send, and its peer."""

    def __init__(self, queued: int = MUCH) -> None:
        self.reactor = Reactor()
        self.reactor.now = 100.0
        near, self.peer = socket.socketpair()
        for sock in (near, self.peer):
            sock.setblocking(False)
        self.transport = PlainTransport(near, self.reactor, Wire(self.reactor))  # type: ignore[arg-type]
        self.transport.start()
        self.closed = 0
        if queued:
            self.transport.write(bytes(queued))
        self.linger = Linger(self.transport, 1.0, self.over)

    def over(self) -> None:
        self.closed += 1

    def later(self, seconds: float) -> None:
        """Time passes, then what has happened is handled."""
        now = self.reactor.now + seconds
        for descriptor, mask in self.reactor._epoll.poll(0):
            handler = self.reactor._handlers.get(descriptor)
            if handler is not None:
                handler.on_event(mask)
        self.reactor.flush_dirty()
        self.reactor.now = now
        self.reactor.timers.run(now)

    def take(self, size: int) -> int:
        """What the peer reads of so much."""
        taken = 0
        while taken < size:
            try:
                data = self.peer.recv(min(65536, size - taken))
            except BlockingIOError:
                break
            if not data:
                break
            taken += len(data)
        return taken


@pytest.fixture
def make() -> Iterator[type[Ending]]:
    made: list[Ending] = []

    class Made(Ending):
        def __init__(self, queued: int = MUCH) -> None:
            super().__init__(queued)
            made.append(self)

    yield Made
    for ending in made:
        ending.linger.close()
        ending.peer.close()
        ending.reactor.close()


def test_a_slow_reader_gets_everything_however_long_it_takes(make: type[Ending]) -> None:
    ending = make()
    ending.linger.close_when_sent()
    taken = 0
    for _ in range(300):
        taken += ending.take(100_000)
        ending.later(0.9)
    assert taken == MUCH
    assert ending.closed == 1


def test_a_stuck_reader_is_closed_after_its_patience(make: type[Ending]) -> None:
    ending = make()
    ending.linger.close_when_sent()
    ending.later(0.9)
    assert not ending.closed
    ending.later(0.2)
    assert (ending.closed, ending.transport.closed) == (1, True)


def test_patience_begins_again_only_with_progress(make: type[Ending]) -> None:
    ending = make()
    ending.linger.close_when_sent()
    ending.take(1_000_000)
    ending.later(1.1)
    assert not ending.closed
    ending.later(1.1)
    assert ending.closed == 1


def test_a_peer_that_ends_too_ends_the_wait(make: type[Ending]) -> None:
    ending = make(queued=0)
    ending.linger.finish()
    assert ending.peer.recv(10) == b""
    ending.later(0.1)
    assert not ending.closed
    ending.peer.shutdown(socket.SHUT_WR)
    ending.later(0.1)
    assert (ending.closed, ending.transport.closed) == (1, True)
    assert len(ending.reactor._handlers) == 0


def test_input_is_thrown_away_up_to_a_limit_and_then_not_read(make: type[Ending]) -> None:
    ending = make(queued=0)
    ending.linger.wait()
    sent = 0
    for _ in range(100):
        try:
            sent += ending.peer.send(bytes(65536))
        except BlockingIOError:
            break
        ending.later(0.001)
    assert sent < 1_000_000
    assert ending.transport.paused
    ending.later(1.1)
    assert ending.closed == 1


def test_a_peer_that_breaks_off_ends_it_once(make: type[Ending]) -> None:
    ending = make()
    ending.linger.close_when_sent()
    ending.peer.close()
    ending.later(0.1)
    ending.later(5)
    assert ending.closed == 1
