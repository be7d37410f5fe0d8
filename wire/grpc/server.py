"""gRPC server: one task per call, handlers by path, raw bytes as messages.

Rule: whatever happens to a call ends in one place, `_finish`, with one status; a handler is cancelled when
its client goes. Handlers see verified peers only. Not for what is in a message, nor for who may call what.
"""

from __future__ import annotations

import logging
import math
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import ngh2
import trio

from wire import tls
from wire.grpc import metadata as grpc_metadata
from wire.grpc.admission import Admission, ConnectionLimits, RefusedError, Ticket
from wire.grpc.messages import AssemblyBudget, MessageReader, prefix
from wire.grpc.metadata import Metadata
from wire.grpc.status import GrpcError, GrpcStatus, encode_message
from wire.http2 import Http2Connection, Http2Limits
from wire.http2_stream import Headers, Http2Error, Stream
from wire.liveness import end_when_peer_is_gone
from wire.private_socket import peer_user
from wire.spiffe import SpiffeError, SpiffeId

_log = logging.getLogger(__name__)

_CONTENT_TYPE = (b"content-type", b"application/grpc")
_ROUND_TRIP = 0.1
_LAST_TRAILERS = 0.2


@dataclass(frozen=True, slots=True)
class Limits:
    """What one client may cost. Sizes in bytes, times in seconds."""

    http2: Http2Limits = field(default_factory=Http2Limits)
    max_message: int = 4 * 1024 * 1024
    max_message_anonymous: int = 64 * 1024
    """The same for a peer that presented no certificate over TLS."""
    max_half_read: int = 16 * 1024 * 1024
    """Bytes of unfinished messages over all calls of one connection."""
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    linger: float = 30.0
    """How long a finished call may wait for a client that does not read its answer."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection. `spiffe_id` is set for verified client certificates only."""

    address: str
    spiffe_id: SpiffeId | None = None
    cert_der: bytes | None = None
    barred: str = ""
    """Why every call of this peer is refused; "" for others."""

    def __str__(self) -> str:
        return f"{self.spiffe_id or 'anonymous'} at {self.address}"


class ServerCall:
    """One call as its handler sees it. Invariant: headers go out before the first message, once."""

    def __init__(
        self, stream: Stream, reader: MessageReader, path: str, metadata: Metadata, peer: Peer
    ) -> None:
        self.path = path
        self.metadata = metadata
        self.peer = peer
        self._stream = stream
        self._reader = reader
        self.responded = False
        self.headers: list[tuple[bytes, bytes]] = []
        """Further headers of the response; they go out before the first message."""

    async def receive(self) -> bytes | None:
        """The client's next message, None when it sends no more. Raises GrpcError; let it pass."""
        return await self._reader.next()

    async def send(self, message: bytes) -> None:
        """Send a message; waits while the client reads too slowly. The bytes are not copied."""
        if not self.responded:
            self._stream.respond([(b":status", b"200"), _CONTENT_TYPE, *self.headers])
            self.responded = True
        await self._stream.send(prefix(message), message)


Handler = Callable[[ServerCall], Awaitable[None]]
Judge = Callable[[SpiffeId, bytes], str | None]
"""Why the holder of a verified certificate (identity, DER) is refused, None when it is not."""
Listener = trio.abc.Listener[trio.abc.Stream]


async def listen(host: str, port: int, context: ssl.SSLContext | None = None) -> list[Listener]:
    """Listen on `host:port` (port 0: any free one), with TLS when a context is given; raises OSError."""
    sockets = await trio.open_tcp_listeners(port, host=host)
    if context is None:
        return list(sockets)
    return [trio.SSLListener(listener, context, https_compatible=True) for listener in sockets]


def port_of(listener: Listener) -> int:
    """The TCP port that a listener of `listen` is bound to."""
    while isinstance(listener, trio.SSLListener):
        listener = listener.transport_listener
    assert isinstance(listener, trio.SocketListener)
    return int(listener.socket.getsockname()[1])


async def serve(
    listeners: Sequence[Listener],
    handlers: Mapping[str, Handler],
    *,
    limits: Limits | None = None,
    shutdown: trio.Event | None = None,
    grace: float = 5.0,
    barred: Judge = lambda _, __: None,
) -> None:
    """Serve until cancelled, or until `shutdown` is set and the calls have ended.

    At shutdown the listeners close, clients are told by GOAWAY, calls may go on for `grace` seconds and are
    then ended with UNAVAILABLE. Handlers are called with one `ServerCall`; returning means OK, GrpcError
    means its status, any other exception is logged and means INTERNAL. `barred` is asked after each handshake;
    whoever it names counts as a stranger, and its calls are refused with the reason.
    """
    server = _Server(
        handlers, limits or Limits(), trio.Event() if shutdown is None else shutdown, grace, barred
    )
    for listener in listeners:
        plain = listener.transport_listener if isinstance(listener, trio.SSLListener) else listener
        if isinstance(plain, trio.SocketListener):
            end_when_peer_is_gone(plain.socket)
    async with trio.open_nursery() as nursery:
        accepting = trio.CancelScope()

        async def accept() -> None:
            with accepting:
                await trio.serve_listeners(server.serve_stream, list(listeners), handler_nursery=nursery)

        nursery.start_soon(accept)
        await server.shutdown.wait()
        accepting.cancel()
        for handshake in server.handshakes:
            handshake.cancel()


class _Server:
    """What all connections of one `serve` share."""

    def __init__(
        self,
        handlers: Mapping[str, Handler],
        limits: Limits,
        shutdown: trio.Event,
        grace: float,
        barred: Judge,
    ) -> None:
        self.handlers = handlers
        self.limits = limits
        self.shutdown = shutdown
        self.grace = grace
        self.barred = barred
        self.admission = Admission(limits.connections)
        self.handshakes: set[trio.CancelScope] = set()

    async def serve_stream(self, transport: trio.abc.Stream) -> None:
        """One connection, from its handshake to its end; trio.serve_listeners closes the transport after."""
        address = _address(transport)
        try:
            async with self.admission.enter(host_of(address)) as ticket:
                if (peer := await self._identify(transport, address, ticket)) is not None:
                    lifetime = math.inf
                    if isinstance(transport, trio.SSLStream) and (peer.spiffe_id is None or peer.barred):
                        ticket.stay_stranger()
                        lifetime = self.limits.connections.stranger_lifetime
                    else:
                        ticket.identify()
                    with trio.move_on_after(lifetime):
                        await _ServerConnection(self, transport, peer).run()
        except RefusedError as error:
            if self.admission.may_complain():
                _log.warning("%s: connection refused: %s", address, error)
        except Exception:
            # One connection's bug must not end the others: it is logged with its trace, and this one closed.
            _log.exception("%s: the connection failed", address)

    async def _identify(self, transport: trio.abc.Stream, address: str, ticket: Ticket) -> Peer | None:
        if not isinstance(transport, trio.SSLStream):
            return Peer(address)
        async with ticket.handshake():
            return await self._handshake(transport, address)

    async def _handshake(self, transport: trio.SSLStream[trio.abc.Stream], address: str) -> Peer | None:
        timeout = self.limits.connections.handshake_timeout
        scope = trio.move_on_after(timeout)
        self.handshakes.add(scope)
        try:
            with scope:
                await transport.do_handshake()
                if transport.selected_alpn_protocol() != "h2":
                    _log.info("%s: refused, it does not offer HTTP/2", address)
                    return None
                identity, certificate = tls.peer_spiffe_id(transport), tls.peer_certificate(transport)
                if identity is None or certificate is None:
                    return Peer(address)
                return Peer(address, identity, certificate, self.barred(identity, certificate) or "")
            _log.info("%s: no TLS handshake within %g s", address, timeout)
        except SpiffeError as error:
            _log.warning("%s: refused, its certificate names no workload: %s", address, error)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _log.info("%s: the TLS handshake failed: %s", address, error.__cause__ or error)
        finally:
            self.handshakes.discard(scope)
        return None


class _ServerConnection:
    """One client's calls."""

    def __init__(self, server: _Server, transport: trio.abc.Stream, peer: Peer) -> None:
        limits = server.limits
        self._server = server
        self._limits = limits
        self._peer = peer
        self._connection = Http2Connection(transport, ngh2.Role.SERVER, limits.http2, self._begin)
        self._budget = AssemblyBudget(limits.max_half_read)
        anonymous = isinstance(transport, trio.SSLStream) and (peer.spiffe_id is None or bool(peer.barred))
        self._max_message = limits.max_message_anonymous if anonymous else limits.max_message
        self._nursery: trio.Nursery
        self._calls = 0
        self._stopping = False

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._shut_down)
            await self._connection.run()
            nursery.cancel_scope.cancel()
        _log.debug("%s: %s", self._peer, self._connection.failure)

    async def _shut_down(self) -> None:
        """Drain in two steps, so that a call that crosses our GOAWAY is still served (RFC 9113 §6.8)."""
        await self._server.shutdown.wait()
        connection, grace = self._connection, self._server.grace
        connection.go_away(notice=True)
        with trio.move_on_after(grace):
            await trio.sleep(min(_ROUND_TRIP, grace / 2))
            connection.go_away(notice=False)
            for stream in list(connection.streams.values()):
                await stream.closed.wait()
        self._stopping = True
        for stream in list(connection.streams.values()):
            if stream.handler is not None:
                stream.handler.cancel()
        await trio.sleep(_LAST_TRAILERS)
        connection.close("the server shut down", ngh2.ErrorCode.NO_ERROR)

    def _begin(self, stream: Stream, headers: Headers) -> None:
        fields = dict(headers)
        if fields.get(b":method") != b"POST":
            stream.respond([(b":status", b"405"), (b"allow", b"POST")], end=True)
        elif not fields.get(b"content-type", b"").startswith(b"application/grpc"):
            stream.respond([(b":status", b"415")], end=True)
        elif self._stopping or self._calls >= 2 * self._limits.http2.max_streams:
            # Streams free their place as soon as they end, the tasks behind them a little later: as many may be ending as
            # may be open, so that an honest client is never refused, and one that resets without end is.
            stream.reset(ngh2.ErrorCode.REFUSED_STREAM)
        else:
            self._calls += 1
            self._nursery.start_soon(self._call, stream, headers)

    async def _call(self, stream: Stream, headers: Headers) -> None:
        reader = MessageReader(stream, self._max_message, self._budget)
        path = dict(headers)[b":path"].decode("latin-1")
        call = ServerCall(stream, reader, path, grpc_metadata.decode(headers), self._peer)
        scope = stream.handler = trio.CancelScope()
        if stream.closed.is_set():
            scope.cancel()
        status, message = GrpcStatus.UNAVAILABLE, "the server is shutting down"
        try:
            with scope:
                status, message = await self._outcome(call, dict(headers).get(b"grpc-timeout"))
            stream.abandon()
            self._finish(stream, call, status, message)
            with trio.move_on_after(self._limits.linger):
                await stream.closed.wait()
            stream.reset(ngh2.ErrorCode.CANCEL)
        finally:
            reader.close()
            self._calls -= 1

    async def _outcome(self, call: ServerCall, time_limit: bytes | None) -> tuple[GrpcStatus, str]:
        """Run the handler; how the call is to end."""
        handler = self._server.handlers.get(call.path)
        if handler is None:
            return GrpcStatus.UNIMPLEMENTED, f"no such method: {call.path}"
        if self._peer.barred:
            return GrpcStatus.PERMISSION_DENIED, self._peer.barred
        try:
            seconds = math.inf if time_limit is None else grpc_metadata.parse_timeout(time_limit)
        except ValueError as error:
            return GrpcStatus.INTERNAL, str(error)
        try:
            with trio.move_on_after(seconds) as deadline:
                await handler(call)
        except Exception as error:
            # The one place where handlers' errors end: told to the client, or logged with their trace.
            for cause in _leaves(error):
                if isinstance(cause, GrpcError):
                    return cause.status, cause.message
                if isinstance(cause, Http2Error):
                    return GrpcStatus.CANCELLED, str(cause)
            _log.exception("%s: %s failed", self._peer, call.path)
            return GrpcStatus.INTERNAL, "internal error"
        if deadline.cancelled_caught:
            return GrpcStatus.DEADLINE_EXCEEDED, "the deadline has passed"
        return GrpcStatus.OK, ""

    def _finish(self, stream: Stream, call: ServerCall, status: GrpcStatus, message: str) -> None:
        """The end of every call."""
        trailers = [(b"grpc-status", b"%d" % status)]
        if message:
            trailers.append((b"grpc-message", encode_message(message[:1024])))
        if call.responded:
            stream.end(trailers)
        else:
            stream.respond([(b":status", b"200"), _CONTENT_TYPE, *trailers], end=True)
        _log.debug("%s: %s: %s %s", self._peer, call.path, status.name, message)


def _leaves(error: BaseException) -> Iterator[BaseException]:
    """The errors inside nested groups, as nurseries make them."""
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _leaves(inner)
    else:
        yield error


def host_of(address: str) -> str:
    """The host of `HOST:PORT` or `[HOST]:PORT`."""
    return address.rpartition(":")[0].strip("[]") or address


def _address(transport: trio.abc.Stream) -> str:
    """`IP:port` of the peer, `[IP]:port` for IPv6, `unix uid UID` for a process of this machine on a Unix socket."""
    while isinstance(transport, trio.SSLStream):
        transport = transport.transport_stream
    if not isinstance(transport, trio.SocketStream):
        return "local"
    try:
        if transport.socket.family == socket.AF_UNIX:
            return f"unix uid {peer_user(transport.socket)}"
        name = transport.socket.getpeername()
    except OSError:
        return "gone"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"
