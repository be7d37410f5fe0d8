"""TLS streams on the reactor, in two shapes chosen by measurement (docs/decisions: two TLS transports).

`TlsTransport` (ssl.SSLSocket) for HTTP: one call a message, and level-triggered, so that an empty socket never has to
be discovered by an exception. `BulkTlsTransport` (memory BIOs) for opaque streams: many records in one system call.
Rule: no application byte goes to the owner before the handshake is over and the owner's `handshaken` has judged the peer.
Not for: certificates and contexts (tls_contexts), deadlines of the handshake.
"""

from __future__ import annotations

import socket
import ssl
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from mypy_extensions import trait

from agent.worker.reactor import ERR, HUP, IN, OUT, RDHUP, Reactor
from agent.worker.transport import READ_BUDGET, Nobody, PlainTransport, TransportOwner

_BULK: Final = 262144
_RECORDS: Final = 8
"""Records read in a row before others get their turn."""
_PIECE: Final = 65536
"""Bytes encrypted in one call: OpenSSL says how far it came only when it has written all that it was given."""
_RECORD: Final = 16384
_PLAIN: Final = bytearray(_BULK + _RECORD + 1)
"""Where records are decrypted before they go on as one piece; the reactor reads one connection at a time."""


@trait
class TlsOwner(TransportOwner):
    """Who hears from a TLS transport."""

    @abstractmethod
    def handshaken(self) -> bool:
        """The handshake is over; False refuses the peer (the owner has closed the transport)."""


class _NobodySecure(Nobody, TlsOwner):
    """Whom a transport asks after its handshake: nobody, lest who judged it lives as long as the connection."""

    def handshaken(self) -> bool:
        return False


_JUDGED: Final = _NobodySecure()


class TlsTransport(PlainTransport):
    """An SSLSocket, level-triggered. Invariant: `_events` is what epoll watches."""

    __slots__ = ("_events", "_retry", "_tls", "_tls_owner", "first_data", "handshaking", "tls_socket")
    tls = True

    def __init__(self, sock: ssl.SSLSocket, reactor: Reactor, owner: TlsOwner, limit: int = 1 << 20) -> None:
        super().__init__(sock, reactor, owner, limit)
        self.tls_socket = sock
        self._tls: Any = sock._sslobj  # type: ignore[attr-defined]
        """What the SSLSocket wraps: two frames of the interpreter less for each record."""
        self._tls_owner = owner
        self.handshaking = True
        self.first_data: Callable[[], object] | None = None
        """Called once, when the first data of the peer has arrived."""
        self._events = 0
        self._retry: bytes | memoryview = b""

    def start(self) -> None:
        """Begin the handshake."""
        self._events = IN
        self.reactor.register(self.descriptor, IN, self)
        self._handshake()

    def ssl_object(self) -> ssl.SSLSocket | ssl.SSLObject:
        """For the peer's certificate and the negotiated parameters."""
        return self.tls_socket

    def _first_received(self) -> None:
        told, self.first_data = self.first_data, None
        if told is not None:
            told()

    def _watch(self, events: int) -> None:
        if events != self._events and not self.closed:
            self._events = events
            self.reactor.modify(self.descriptor, events)

    def _watch_input(self) -> None:
        """Bytes; while reading is paused only the peer's end, which is level-triggered too and therefore told once."""
        events = self._events & ~(IN | RDHUP)
        if not self.peer_ended:
            if not self.paused:
                events |= IN
            elif not self._gone:
                events |= RDHUP
        self._watch(events)

    def _handshake(self) -> None:
        try:
            self.tls_socket.do_handshake()
        except ssl.SSLWantReadError:
            self._watch(IN)
            return
        except ssl.SSLWantWriteError:
            self._watch(IN | OUT)
            return
        except OSError as error:
            self._break(describe(error))
            return
        self.handshaking = False
        self._watch(0)
        self._watch_input()
        judge, self._tls_owner = self._tls_owner, _JUDGED
        if not judge.handshaken():
            return
        if self.out:
            self.flush()
        if not self.closed and not self.paused and self.tls_socket.pending():
            self._read(False)

    def on_event(self, mask: int) -> None:
        """See reactor.Handler."""
        if self.handshaking:
            self._handshake()
            return
        if mask & OUT and self._blocked:
            self._blocked = False
            self._watch(self._events & ~OUT)
            self.flush()
            if self.closed:
                return
        if mask & IN:
            if not self.paused and not self.peer_ended:
                self._read(False)
        elif mask & (HUP | ERR) and not self.closed:
            self._break("connection reset")
        elif mask & RDHUP and self.paused and not self.closed:
            self._gone = RDHUP
            self._watch_input()
            self.owner.hung_up(False)

    def _read(self, to_the_end: bool) -> None:
        tls = self._tls
        owner = self.owner
        for _ in range(_RECORDS):
            try:
                data = tls.read(_RECORD)
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            except ssl.SSLEOFError:
                data = b""
            except OSError as error:
                self._break(describe(error))
                return
            if not data:
                self.peer_ended = True
                self._watch_input()
                owner.ended()
                return
            if self.first_data is not None:
                self._first_received()
            owner.received(data)
            if self.closed or self.paused or not tls.pending():
                return
            owner = self.owner
        self._readable = True
        self._read_soon()

    def pause(self) -> None:
        """See PlainTransport."""
        if not self.paused:
            self.paused = True
            if not self.handshaking:
                self._watch_input()

    def resume(self) -> None:
        """See PlainTransport."""
        if self.paused:
            self.paused = False
            if not self.handshaking and not self.peer_ended and not self.closed:
                self._watch_input()
                if self.tls_socket.pending():
                    self._readable = True
                    self._read_soon()

    def close(self) -> None:
        """See PlainTransport."""
        self._tls_owner = _JUDGED
        self.first_data = None
        self._retry = b""
        super().close()

    def flush(self) -> None:
        """See PlainTransport."""
        self._dirty = False
        if self._blocked or self.closed or self.handshaking:
            return
        out = self.out
        if out or self._retry:
            data: bytes | memoryview = self._retry
            if not data:
                data = out[0] if len(out) == 1 else b"".join(out)
                out.clear()
            try:
                while len(data) > _PIECE:
                    if not isinstance(data, memoryview):
                        data = memoryview(data)
                    piece: int = self._tls.write(data[:_PIECE])
                    data = data[piece:]
                sent: int = self._tls.write(data)
                while sent < len(data):
                    data = memoryview(data)[sent:]
                    sent = self._tls.write(data)
                self._retry = b""
            except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
                self._retry = data
                self._blocked = True
                self._watch(self._events | OUT)
            except OSError as error:
                self._break(describe(error))
                return
            self.backlog = len(self._retry) + sum(map(len, out))
        if out and not self._blocked:
            self.flush()
            return
        if self.full and self.backlog <= self.limit >> 1:
            self.full = False
            self.owner.drained()
        if self._shut and not self.out and not self._retry and not self.closed:
            self._shut_now()

    def finish(self) -> None:
        """See PlainTransport."""
        self._shut = self._shut or "write"
        if not self.out and not self._retry:
            self._shut_now()

    def close_when_sent(self) -> None:
        """See PlainTransport."""
        self._shut = "close"
        if not self.out and not self._retry:
            self._shut_now()

    def _shut_now(self) -> None:
        """close_notify, as TLS ends (RFC 8446 section 6.1), then what the plain transport does."""
        if self._shut in ("close", "write") and not self.handshaking:
            with suppress(OSError, ValueError):
                self.tls_socket.unwrap()
        if self._shut == "close":
            owner = self.owner
            self.close()
            owner.sent()
        else:
            self._shut = "done"


class BulkTlsTransport(PlainTransport):
    """TLS through memory BIOs, edge-triggered like the plain transport it extends."""

    __slots__ = ("_incoming", "_object", "_outgoing", "_tls_owner", "first_data", "handshaking")
    tls = True

    def __init__(
        self, sock: socket.socket, context: ssl.SSLContext, reactor: Reactor, owner: TlsOwner, *,
        server_side: bool, server_name: str | None = None, session: ssl.SSLSession | None = None, limit: int = 1 << 20,
    ) -> None:  # fmt: skip
        super().__init__(sock, reactor, owner, limit)
        self._tls_owner = owner
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_side,
            server_hostname=server_name,
            session=session,
        )
        self.handshaking = True
        self.first_data: Callable[[], object] | None = None
        """As TlsTransport.first_data."""

    def start(self) -> None:
        """Begin the handshake."""
        super().start()
        self._handshake()

    def ssl_object(self) -> ssl.SSLSocket | ssl.SSLObject:
        """For the peer's certificate and the negotiated parameters."""
        return self._object

    def _first_received(self) -> None:
        told, self.first_data = self.first_data, None
        if told is not None:
            told()

    def _handshake(self) -> None:
        failure, over = "", False
        try:
            self._object.do_handshake()
            over = True
        except ssl.SSLWantReadError:
            pass
        except OSError as error:
            failure = describe(error)
        self._send_outgoing()
        if failure:
            self._break(failure)
        elif over:
            self.handshaking = False
            judge, self._tls_owner = self._tls_owner, _JUDGED
            if judge.handshaken():
                if self.out:
                    self.flush()
                if self._incoming.pending and not self.closed:
                    self._decrypt()

    def close(self) -> None:
        """See PlainTransport."""
        self._tls_owner = _JUDGED
        self.first_data = None
        super().close()

    def _cut_short(self) -> None:
        if self.handshaking and not self.closed:
            self._break("connection closed during the handshake")

    def _read(self, to_the_end: bool) -> None:
        receive = self.socket.recv
        budget = READ_BUDGET
        while budget > 0:
            try:
                data = receive(_BULK)
            except BlockingIOError:
                return
            except OSError as error:
                self._break(error.strerror or "connection reset")
                return
            budget -= len(data)
            if not data:
                self._incoming.write_eof()
            else:
                self._incoming.write(data)
            if self.handshaking:
                self._handshake()
                if not data:
                    self._cut_short()
            else:
                self._decrypt()
            if self.closed or self.peer_ended or not data:
                return
            if len(data) < _BULK and not to_the_end:
                return
            if self.paused:
                self._hold()
                return
        self._readable = True
        self._read_soon()

    def _decrypt(self) -> None:
        """Everything that has arrived, as one piece."""
        read: Any = self._object.read  # into a buffer, where it returns a number
        plain = memoryview(_PLAIN)
        filled = 0
        ended = False
        try:
            while filled <= _BULK:
                size: int = read(_RECORD, plain[filled:])
                if not size:
                    ended = True
                    break
                filled += size
                if not self._incoming.pending and not self._object.pending():
                    break
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            ended = self._incoming.eof and not self._incoming.pending
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            ended = True
        except OSError as error:
            self._break(describe(error))
            return
        if filled:
            if self.first_data is not None:
                self._first_received()
            self.owner.received(bytes(plain[:filled]))
            if filled > _BULK and not self.closed:
                self._decrypt()
                return
        if (ended or (self._incoming.eof and not self._incoming.pending)) and not self.closed:
            self.peer_ended = True
            self.owner.ended()

    def flush(self) -> None:
        """Encrypt what is queued and send it, as far as the kernel takes it."""
        self._dirty = False
        if self._stuck() or self.handshaking:
            return
        if self.out:
            data = self.out[0] if len(self.out) == 1 else b"".join(self.out)
            self.out.clear()
            try:
                self._object.write(data)
            except OSError as error:
                self._break(describe(error))
                return
        self._send_outgoing()
        if self._stuck():
            return
        if self.full and self.backlog <= self.limit >> 1:
            self.full = False
            self.owner.drained()
        if self._shut and not self.backlog and not self.closed:
            self._shut_now()

    def finish(self) -> None:
        """See PlainTransport."""
        self._shut = self._shut or "write"
        if not self.backlog:
            self._shut_now()

    def close_when_sent(self) -> None:
        """See PlainTransport."""
        self._shut = "close"
        if not self.backlog:
            self._shut_now()

    def _shut_now(self) -> None:
        """close_notify (RFC 8446 section 6.1), then what the plain transport does."""
        if self._shut in ("close", "write") and not self.handshaking:
            with suppress(OSError, ValueError):
                self._object.unwrap()
            self._send_outgoing()
            if self.closed:
                return
        super()._shut_now()

    def _send_outgoing(self) -> None:
        """Ciphertext waits in the BIO; what the kernel does not take now is `_left` and goes first next time."""
        if self.handshaking:
            # Whether this fails is told by what the peer sends.
            with suppress(OSError):
                self.socket.send(self._outgoing.read())
            return
        if self._left is not None and not self._send(self._left):
            return
        data = self._outgoing.read()
        if not data or self._send(data):
            self.backlog = 0


def describe(error: OSError) -> str:
    """A TLS or socket error in one line, in the form of Envoy's transport failure reason where it is one of TLS."""
    told: Any = error  # the standard library's types do not say that these may be None
    if isinstance(error, ssl.SSLError):
        return f"TLS_error:{told.reason or told.strerror or type(error).__name__}"
    return str(told.strerror or type(error).__name__)
