"""Non-blocking byte streams on the reactor: plain TCP, and what TLS shares with it.

Rule: a transport knows bytes, not protocols. Input is pushed to the owner as it arrives unless reading is paused; output is
queued by `write` and leaves when the reactor flushes. Queues are bounded by their users: `backlog` says how much waits,
and `drained` is called once it has fallen under half of `limit` after `full` was seen. One call reads `READ_BUDGET` bytes at
most; the rest is read in the next turn. A closed transport has let go of its owner: the two are no cycle.
Not for: connecting, accepting, deadlines.
"""

from __future__ import annotations

import socket
import struct
from abc import abstractmethod
from contextlib import suppress
from fcntl import ioctl
from sys import byteorder
from termios import TIOCOUTQ
from typing import Final

from mypy_extensions import trait

from agent.tcp.relay import Stream
from agent.worker.reactor import ERR, ET, HUP, IN, OUT, RDHUP, Flushable, Handler, Reactor

RECEIVE: Final = 65536
"""Bytes asked of the kernel at once; a shorter answer means that the socket is empty."""
READ_BUDGET: Final = 262144
"""Bytes received in a row before others get their turn."""
_RESET: Final = struct.pack("ii", 1, 0)


@trait
class TransportOwner:
    """Who hears from a transport."""

    @abstractmethod
    def received(self, data: bytes) -> None:
        """Bytes arrived."""

    @abstractmethod
    def ended(self) -> None:
        """The peer will send no more; writing may still work."""

    @abstractmethod
    def lost(self, reason: str) -> None:
        """The connection broke. The transport is closed already."""

    @abstractmethod
    def drained(self) -> None:
        """The output queue was full and has room again."""

    def hung_up(self, broken: bool) -> None:
        """While reading is paused, the peer has closed its side (`broken`: has reset the connection). What it sent before waits
        in the socket, and `ended` or `lost` would follow it; may be called again. Owners that wait for it do nothing."""

    def sent(self) -> None:
        """`close_when_sent` has closed the transport. Who does not wait for that changes nothing."""


class Nobody(TransportOwner):
    """The owner of a transport that has not been started, or is closed."""

    def received(self, data: bytes) -> None: ...

    def ended(self) -> None: ...

    def lost(self, reason: str) -> None: ...

    def drained(self) -> None: ...


NOBODY: Final = Nobody()


class PlainTransport(Handler, Flushable, Stream):
    """A TCP (or Unix) stream, edge-triggered. Invariant: `out` is empty unless the kernel's buffer is full or a flush
    is due; after `closed` nothing is called back."""

    __slots__ = (
        "_blocked", "_dirty", "_gone", "_left", "_readable", "_shut", "_soon", "backlog", "closed", "descriptor", "full", "limit",
        "out", "owner", "paused", "peer_ended", "reactor", "receive_size", "socket",
    )  # fmt: skip
    tls = False

    def __init__(
        self, sock: socket.socket, reactor: Reactor, owner: TransportOwner, limit: int = 1 << 20
    ) -> None:
        self.socket = sock
        self.descriptor = sock.fileno()
        self.reactor = reactor
        self.owner = owner
        self.limit = limit
        """Bytes of `backlog` over which the transport is `full`."""
        self.out: list[bytes] = []
        self.backlog = 0
        self.full = False
        self.paused = False
        self.closed = False
        self.receive_size = RECEIVE
        self.peer_ended = False
        self._blocked = False
        self._dirty = False
        self._gone = 0
        """RDHUP, HUP or ERR, once epoll has reported them."""
        self._readable = False
        self._soon = False
        self._shut = ""
        self._left: memoryview | None = None

    def start(self) -> None:
        """Begin to listen for events."""
        self.reactor.register(self.descriptor, IN | OUT | RDHUP | ET, self)

    # Input

    def on_event(self, mask: int) -> None:
        """See reactor.Handler."""
        if mask & OUT and self._blocked:
            self._blocked = False
            self.flush()
            if self.closed:
                return
        if mask & (IN | RDHUP | HUP | ERR):
            self._gone |= mask & (RDHUP | HUP | ERR)
            if self.paused:
                self._hold()
            else:
                self._read(self._gone != 0)

    def on_failure(self) -> None:
        """See reactor.Handler."""
        if not self.closed:
            owner = self.owner
            self.abort()
            owner.lost("internal error")

    def _hold(self) -> None:
        """There is something to read while reading is paused."""
        self._readable = True
        if self._gone and not self.peer_ended and not self.closed:
            self.owner.hung_up(self._gone & ERR != 0)

    def _read(self, to_the_end: bool) -> None:
        """Read until the socket is empty; with `to_the_end`, until its end, which a short read does not show."""
        receive = self.socket.recv
        owner = self.owner
        size = self.receive_size
        budget = READ_BUDGET
        while budget > 0:
            try:
                data = receive(size)
            except BlockingIOError:
                return
            except OSError as error:
                self._break(error.strerror or "connection reset")
                return
            if not data:
                self.peer_ended = True
                owner.ended()
                return
            budget -= len(data)
            owner.received(data)
            if self.closed:
                return
            if len(data) < size and not to_the_end:
                return
            if self.paused:
                self._hold()
                return
            owner = self.owner
        self._readable = True
        self._read_soon()

    def pause(self) -> None:
        """Stop calling `received` until `resume`."""
        self.paused = True

    def resume(self) -> None:
        """Call `received` again, with what has been waiting first."""
        if self.paused:
            self.paused = False
            if self._readable:
                self._read_soon()

    def _read_soon(self) -> None:
        if not self._soon:
            self._soon = True
            self.reactor.soon(self._resumed)

    def _resumed(self) -> None:
        self._soon = False
        if not self._readable or self.closed or self.peer_ended:
            return
        if self.paused:
            self._hold()
        else:
            self._readable = False
            self._read(True)

    # Output

    def write(self, data: bytes) -> None:
        """Queue bytes; they leave when the reactor flushes."""
        self.out.append(data)
        self.backlog += len(data)
        if self.backlog > self.limit:
            self.full = True
        if not self._dirty:
            self._dirty = True
            self.reactor.dirty.append(self)

    def flush(self) -> None:
        """Send what is queued, as far as the kernel takes it."""
        self._dirty = False
        if self._blocked or self.closed:
            return
        out = self.out
        if self._left is not None and not self._send(self._left):
            return
        if out:
            data = out[0] if len(out) == 1 else b"".join(out)
            out.clear()
            if not self._send(data):
                return
        self.backlog = 0
        if self.full and self.backlog <= self.limit >> 1:
            self.full = False
            self.owner.drained()
        if self._shut and not self.backlog and not self.closed:
            self._shut_now()

    def _send(self, data: bytes | memoryview) -> bool:
        """Send one piece; what the kernel does not take becomes `_left`. False: wait until it is writable."""
        try:
            sent = self.socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._break(error.strerror or "connection reset")
            return False
        if sent == len(data):
            self._left = None
            return True
        self._blocked = True
        self._left = memoryview(data)[sent:]
        self.backlog = len(self._left) + sum(map(len, self.out))
        if self.full and self.backlog <= self.limit >> 1:
            self.full = False
            self.owner.drained()
        return False

    def _stuck(self) -> bool:
        return self._blocked or self.closed

    # The end

    def finish(self) -> None:
        """Send what is queued, then FIN; the peer may still send."""
        self._shut = self._shut or "write"
        if not self.backlog:
            self._shut_now()

    def close_when_sent(self) -> None:
        """Send what is queued, then close."""
        self._shut = "close"
        if not self.backlog:
            self._shut_now()

    def _shut_now(self) -> None:
        if self._shut == "close":
            owner = self.owner
            self.close()
            owner.sent()
        elif self._shut == "write":
            self._shut = "done"
            with suppress(OSError):
                self.socket.shutdown(socket.SHUT_WR)

    def unsent(self) -> int:
        """Bytes that the peer's kernel has not taken: queued here, and in the socket."""
        if self.closed:
            return 0
        return self.backlog + int.from_bytes(ioctl(self.descriptor, TIOCOUTQ, bytes(4)), byteorder)

    def close(self) -> None:
        """Close at once. Queued output is lost."""
        if not self.closed:
            self.closed = True
            self.reactor.unregister(self.descriptor)
            self.owner = NOBODY
            self.out.clear()
            self._left = None
            self.backlog = 0
            self.socket.close()

    def abort(self) -> None:
        """Close with RST, so that the peer cannot take what it got for the whole."""
        if not self.closed:
            with suppress(OSError):
                self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self.close()

    def _break(self, reason: str) -> None:
        owner = self.owner
        self.close()
        owner.lost(reason)
