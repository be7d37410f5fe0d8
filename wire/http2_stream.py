"""One stream of an HTTP/2 connection: its half-read body, its senders in waiting, its end.

Rule: the connection tells a stream what came (`on_…`), the stream asks the connection to queue what goes; it
holds at most its flow-control window of unread bytes. Not for frames (ngh2) nor for messages (wire.grpc).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from wire.http2 import Http2Connection

Headers = tuple[tuple[bytes, bytes], ...]


class Http2Error(Exception):
    """The stream or its connection ended before the message was complete."""

    def __init__(self, reason: str, error_code: int | None = None) -> None:
        super().__init__(reason)
        self.error_code = error_code
        """HTTP/2 error code of the reset (RFC 9113 §7); None when the connection was lost."""


class Stream:
    """One request and its response. Invariant: once `closed` is set, nothing more is received or sent."""

    def __init__(self, connection: Http2Connection, stream_id: int) -> None:
        self.connection = connection
        self.id = stream_id
        self.handler: trio.CancelScope | None = None
        """What works on the request (servers): cancelled when the stream closes."""
        self.reset_code: int | None = None
        self.closed = trio.Event()
        self.failure: Http2Error | None = None
        self.response: Headers | None = None
        """Response headers (clients), once they have come."""
        self.trailers: Headers = ()
        self.remote_ended = False
        self._chunks: deque[bytes] = deque()
        self._abandoned = False
        self._readable = trio.lowlevel.ParkingLot()
        self._writable = trio.lowlevel.ParkingLot()
        self._sender = trio.Lock()

    async def receive(self) -> bytes | None:
        """The next bytes of the body, or None at its end; gives the peer leave to send as many more.

        Raises Http2Error when the stream was reset or the connection lost.
        """
        # A response that ended may still be half read when its request is reset: that is no failure.
        while not self._chunks:
            if self.failure is not None:
                raise self.failure
            if self.remote_ended:
                await trio.lowlevel.checkpoint()
                return None
            await self._readable.park()
        await trio.lowlevel.checkpoint()
        chunk = self._chunks.popleft()
        self.connection.consumed(self.id, len(chunk))
        return chunk

    async def wait_response(self) -> Headers:
        """The response's headers (clients); raises Http2Error."""
        while self.response is None:
            if self.failure is not None:
                raise self.failure
            await self._readable.park()
        return self.response

    async def send(self, *parts: bytes) -> None:
        """Queue body bytes once little is queued before them; raises Http2Error when the stream has ended.

        Parts are queued together; the bytes are not copied.
        """
        async with self._sender:
            while True:
                if self.failure is not None:
                    raise self.failure
                if self.closed.is_set() or (self.remote_ended and self.connection.is_client):
                    raise Http2Error("the stream has ended")
                if self.connection.queued(self.id) < self.connection.limits.send_queue:
                    break
                self.connection.blocked.add(self)
                try:
                    await self._writable.park()
                finally:
                    self.connection.blocked.discard(self)
            self.connection.queue_data(self.id, parts)
        await trio.lowlevel.checkpoint()

    def respond(self, headers: Iterable[tuple[bytes, bytes]], *, end: bool = False) -> None:
        """Queue the response's headers (servers)."""
        if not self.closed.is_set():
            self.connection.queue_response(self.id, list(headers), end)

    def end(self, trailers: Iterable[tuple[bytes, bytes]] = ()) -> None:
        """End our direction after all queued bytes, with trailers if any."""
        if not self.closed.is_set():
            self.connection.queue_end(self.id, list(trailers))

    def reset(self, error_code: int) -> None:
        """End both directions now (RST_STREAM); what is queued is dropped."""
        self.connection.queue_reset(self, error_code)

    def _wake(self) -> None:
        self._readable.unpark_all()
        self._writable.unpark_all()

    def on_response(self, headers: Headers, ended: bool) -> None:
        self.response = headers
        self.remote_ended = self.remote_ended or ended
        self._wake()

    def on_data(self, data: bytes, ended: bool) -> None:
        if self._abandoned:
            self.connection.consumed(self.id, len(data))
        elif data:
            self._chunks.append(data)
        self.remote_ended = self.remote_ended or ended
        self._wake()

    def on_trailers(self, headers: Headers) -> None:
        self.trailers = headers
        self.remote_ended = True
        self._wake()

    def on_writable(self) -> None:
        self._writable.unpark_all()

    def on_closed(self, failure: Http2Error | None) -> None:
        """The end. Bytes that came before a failure are dropped, those before a proper end can be read."""
        if failure is not None and not self.remote_ended:
            self.failure = failure
            self._drop_unread()
        self.closed.set()
        if self.handler is not None:
            self.handler.cancel()
        self._wake()

    def abandon(self) -> None:
        """Nobody will read any more: what came and what comes no longer counts against the connection."""
        self._abandoned = True
        self._drop_unread()

    def _drop_unread(self) -> None:
        unread = sum(map(len, self._chunks))
        self._chunks.clear()
        self.connection.consumed(self.id, unread)
