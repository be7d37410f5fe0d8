"""gRPC client: one channel is one connection, for as long as it lives.

Rule: every call ends with exactly one outcome, its messages or a GrpcError; nothing waits for a peer that
has ended the call. A broken channel stays broken: connecting anew (`Backoff`) is the caller's loop. Not for
what is in a message.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import ngh2
import trio

from wire.grpc import metadata as grpc_metadata
from wire.grpc.messages import AssemblyBudget, MessageReader, prefix
from wire.grpc.metadata import Metadata
from wire.grpc.status import (
    GrpcError,
    GrpcStatus,
    decode_message,
    parse_status,
    status_of_http,
    status_of_reset,
)
from wire.http2 import Http2Connection, Http2Limits
from wire.http2_stream import Headers, Http2Error, Stream

Connect = Callable[[], Awaitable[trio.abc.Stream]]
Pairs = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """What a server may cost us. Sizes in bytes."""

    http2: Http2Limits = field(default_factory=partial(Http2Limits, stream_window=1 << 20, max_streams=16))
    max_message: int = 64 * 1024 * 1024
    max_half_read: int = 256 * 1024 * 1024


class ClientCall:
    """A call in progress. Receiving and sending may go on in different tasks."""

    def __init__(self, stream: Stream, reader: MessageReader) -> None:
        self._stream = stream
        self._reader = reader

    async def send(self, message: bytes) -> None:
        """Send a message; waits while the server reads too slowly.

        Raises GrpcError as soon as the server has ended the call, also while waiting.
        """
        try:
            await self._stream.send(prefix(message), message)
        except Http2Error as error:
            self._check_end(error)
            raise GrpcError(GrpcStatus.CANCELLED, "the server has ended the call") from error

    async def receive(self) -> bytes | None:
        """The server's next message, None when it ended the call with OK.

        Raises GrpcError for any other end, and for a lost connection (UNAVAILABLE).
        """
        try:
            await self._stream.wait_response()
            message = await self._reader.next()
        except Http2Error as error:
            self._check_end(error)
            raise GrpcError(GrpcStatus.UNAVAILABLE, str(error)) from error
        if message is None:
            self._check_end(None)
        return message

    async def end(self) -> None:
        """Say that no more messages will be sent."""
        self._stream.end()
        await trio.lowlevel.checkpoint()

    @property
    def initial_metadata(self) -> Metadata:
        """What came with the response's headers; empty until they have come."""
        return grpc_metadata.decode(self._stream.response or ())

    @property
    def trailing_metadata(self) -> Metadata:
        """What came after the last message; empty until the call has ended."""
        return grpc_metadata.decode(self._stream.trailers)

    def _check_end(self, error: Http2Error | None) -> None:
        """Raise the GrpcError of the call's end, if it is one; `error` is what the stream says."""
        stream = self._stream
        for fields in (stream.trailers, stream.response or ()):
            if (status := _status_in(fields)) is not None:
                if status.status is not GrpcStatus.OK:
                    raise status
                return
        if stream.remote_ended:
            http = dict(stream.response or ()).get(b":status", b"").decode("latin-1")
            raise GrpcError(status_of_http(http), f"an answer without grpc-status, HTTP status {http}")
        if error is not None and error.error_code is not None:
            raise GrpcError(status_of_reset(error.error_code), str(error)) from error
        if error is not None:
            raise GrpcError(GrpcStatus.UNAVAILABLE, str(error)) from error


class Channel:
    """One connection to a server; get it from `open_channel`."""

    def __init__(self, connection: Http2Connection, authority: str, limits: ChannelLimits) -> None:
        self._connection = connection
        self._authority = authority.encode("ascii")
        self._limits = limits
        self._budget = AssemblyBudget(limits.max_half_read)
        self.closed = trio.Event()
        """Set when the connection has ended; all calls have failed then."""

    @property
    def usable(self) -> bool:
        """Whether new calls can be made: not after the connection's end nor after the server's GOAWAY."""
        return not self._connection.going_away and not self.closed.is_set()

    @property
    def failure(self) -> str | None:
        """Why the connection ended."""
        return self._connection.failure

    async def unary(
        self, path: str, request: bytes, metadata: Pairs = (), deadline: float | None = None
    ) -> bytes:
        """One message there, one back, within `deadline` seconds if given; raises GrpcError."""
        with trio.move_on_after(float("inf") if deadline is None else deadline):
            async with self.stream(path, metadata, deadline) as call:
                await call.send(request)
                await call.end()
                response = await call.receive()
                if response is None:
                    raise GrpcError(GrpcStatus.INTERNAL, "the server sent no message")
                if await call.receive() is not None:
                    raise GrpcError(GrpcStatus.INTERNAL, "the server sent more than one message")
                return response
        raise GrpcError(GrpcStatus.DEADLINE_EXCEEDED, f"no answer within {deadline:g} s")

    @asynccontextmanager
    async def stream(
        self, path: str, metadata: Pairs = (), deadline: float | None = None
    ) -> AsyncIterator[ClientCall]:
        """Begin a call; leaving the block before the call has ended cancels it.

        `deadline` (seconds) is told to the server; it is the server that ends the call then. Raises GrpcError
        UNAVAILABLE when no call can be begun, ValueError for bad metadata.
        """
        headers = [
            (b":method", b"POST"),
            (b":scheme", b"https"),
            (b":path", path.encode("ascii")),
            (b":authority", self._authority),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"user-agent", b"grpc-python-hostmesh/1"),
            *grpc_metadata.encode(metadata),
        ]
        if deadline is not None:
            headers.insert(4, (b"grpc-timeout", grpc_metadata.format_timeout(deadline)))
        try:
            stream = self._connection.request(headers)
        except Http2Error as error:
            raise GrpcError(GrpcStatus.UNAVAILABLE, str(error)) from error
        reader = MessageReader(stream, self._limits.max_message, self._budget)
        try:
            yield ClientCall(stream, reader)
        finally:
            reader.close()
            stream.abandon()
            stream.reset(ngh2.ErrorCode.CANCEL)


@asynccontextmanager
async def open_channel(
    connect: Connect, authority: str, limits: ChannelLimits | None = None
) -> AsyncIterator[Channel]:
    """Connect, and keep the connection while the block runs.

    `connect` gives a stream that is ready for HTTP/2 (`wire.tls.connect`); its errors pass. `authority` is
    the name the server is called by. The block is not interrupted when the connection is lost: its calls
    fail, and `channel.closed` is set.
    """
    limits = limits or ChannelLimits()
    transport = await connect()
    connection = Http2Connection(transport, ngh2.Role.CLIENT, limits.http2)
    channel = Channel(connection, authority, limits)

    async def run() -> None:
        try:
            await connection.run()
        finally:
            channel.closed.set()

    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        try:
            yield channel
        except Exception as error:
            # Raised outside the nursery, so that the caller sees its own error and not a group around it.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


def _status_in(fields: Headers) -> GrpcError | None:
    """The status that headers or trailers carry, as the error to raise for it."""
    values = dict(fields)
    if (code := values.get(b"grpc-status")) is None:
        return None
    return GrpcError(parse_status(code.decode("latin-1")), decode_message(values.get(b"grpc-message", b"")))
