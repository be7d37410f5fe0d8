"""Time and wires of a simulated mesh: events in order, deadlines on a virtual clock, two fake streams.

Rule: nothing here decides anything; the shipped exchange decides, and what it sends is handed on as values. Nothing is
delivered in the middle of a call, so an exchange sees the same order of events as on sockets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

from agent.exchange.exchange import Exchange
from agent.http.h1_message import InboundResponse
from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, PeerIdentity, ResponseHead
from agent.upstream import reset
from agent.upstream.pool import Pool
from agent.worker.timers import Timer, Timers


class Loop:
    """Events first, then the clock jumps to the next deadline."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.timers = Timers()
        self._events: deque[Callable[[], None]] = deque()

    def wall(self) -> float:
        """Seconds since the epoch."""
        return 1_800_000_000.0 + self.now

    def http_date(self) -> bytes:
        """For `date`."""
        return b"Fri, 15 Jan 2027 08:00:00 GMT"

    def soon(self, call: Callable[[], None]) -> None:
        """Call it after what is being handled."""
        self._events.append(call)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call it later."""
        if seconds <= 0:
            self.soon(call)
        else:
            self.timers.timer(call).set(self.now + seconds)

    def run_until(self, done: Callable[[], bool]) -> None:
        """Run until it is done."""
        for _ in range(100_000):
            if done():
                return
            if self._events:
                self._events.popleft()()
                continue
            due = self.timers.next_due()
            assert due != inf, "the simulation waits for something that never comes"
            self.now = max(self.now, due)
            self.timers.run(self.now)
        raise AssertionError("the simulation does not end")


@dataclass(slots=True)
class Response:
    """What came back: status 0 means that the connection ended without an answer."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""


@dataclass(slots=True)
class Sent:
    """A request as it left a proxy."""

    method: bytes
    path: bytes
    authority: bytes
    headers: Headers
    body: bytes = b""


Answered = Callable[[Response], None]


class Caller:
    """A ClientStream: who sends the request to a proxy; `answered` hears the response once."""

    def __init__(
        self, loop: Loop, connection: ConnectionInfo, element: bytes | None, answered: Answered
    ) -> None:
        self.connection = connection
        self.certificate_element = element
        self.closing = False
        self.exchange: Exchange
        self.timer: Timer = loop.timers.timer(self._fired)
        self.response = Response()
        self._loop = loop
        self._answered = answered

    def _fired(self) -> None:
        self.exchange.timer_fired()

    def full(self) -> bool:
        return False

    def send_continue(self) -> None:
        pass

    def send_informational(self, status: int, headers: Headers) -> None:
        pass

    def send_head(self, head: ResponseHead, method: bytes, ended: bool, tunnel: bool) -> None:
        self.response.status = head.status
        self.response.headers = list(head.headers.every())

    def send_data(self, data: bytes) -> None:
        self.response.body += data

    def send_end(self, trailers: Headers | None) -> None:
        pass

    def abort(self) -> None:
        self.response.status = 0

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def exchange_over(self) -> None:
        self._loop.soon(lambda: self._answered(self.response))


Far = Callable[[Sent, Answered], None]
"""The other end of a wire: takes a request and calls back with the response."""


class Wire:
    """An UpstreamStream good for one request, to whatever stands at the other end."""

    def __init__(self, loop: Loop, pool: Pool, far: Far, local: str, peer: PeerIdentity | None) -> None:
        self.reused = False
        self.generation = pool.generation
        self.resting = False
        self.connected_at = loop.now
        self.local_address = local
        self.peer = peer
        self._loop = loop
        self._pool = pool
        self._far = far
        self._exchange: Exchange | None = None
        self._sent: Sent | None = None
        self._closed = False

    def full(self) -> bool:
        return False

    def begin(
        self,
        exchange: Exchange,
        method: bytes,
        path: bytes,
        authority: bytes,
        headers: Headers,
        ended: bool,
        upgrade: bytes,
    ) -> None:
        self._exchange = exchange
        self._sent = Sent(method, path, authority, headers)
        if ended:
            self._go()

    def send_data(self, data: bytes) -> None:
        assert self._sent is not None
        self._sent.body += data

    def send_end(self, trailers: Headers | None) -> None:
        self._go()

    def _go(self) -> None:
        sent = self._sent
        assert sent is not None
        self._loop.soon(lambda: self._far(sent, self._answered))

    def _answered(self, response: Response) -> None:
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        self._close()
        if not response.status:
            exchange.upstream_reset(reset.TERMINATION, "")
            return
        headers = Headers(response.headers)
        head = InboundResponse(response.status, headers)
        head.length = len(response.body)
        # The exchange may leave this attempt for another one while it reads the head.
        self._exchange = exchange
        exchange.upstream_head(head)
        if self._still_wanted() and response.body:
            exchange.upstream_data(response.body)
        if self._still_wanted():
            self._exchange = None
            exchange.upstream_end(None)

    def _still_wanted(self) -> bool:
        return self._exchange is not None

    def let_go(self) -> None:
        self.cancel()

    def cancel(self) -> None:
        self._exchange = None
        self._close()

    def close_idle(self) -> None:
        self._close()

    def pause(self) -> None:
        pass

    def resume(self) -> None:
        pass

    def _close(self) -> None:
        if not self._closed:
            self._closed = True
            self._pool.closed(self)
