"""One HTTP/2 connection on a trio stream, as client or server: the shell around ngh2's state machine.

Rule: every buffer is bounded. Received DATA waits unread inside the stream's flow-control window and is
granted anew only when read; `Stream.send` waits until little is queued before it queues more. The peer's
abuse ends the connection with GOAWAY ENHANCE_YOUR_CALM, its death is found by PING. One task reads, one
writes, one keeps time; all state is changed between their checkpoints. Not for what messages mean
(wire.grpc), nor for the data plane.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import ngh2
import trio

from wire.http2_stream import Headers, Http2Error, Stream
from wire.rate import RateLimit

_log = logging.getLogger(__name__)

_READ_BYTES = 65_536
_WRITE_BYTES = 65_536
_FINAL_WRITE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Http2Limits:
    """What one peer may cost. Sizes in bytes, times in seconds."""

    max_streams: int = 100
    max_header_bytes: int = 16_384
    stream_window: int = 65_535
    send_queue: int = 65_536
    """`Stream.send` waits while this much is queued; the queue holds at most this and one more message."""
    keepalive_interval: float = 30.0
    keepalive_timeout: float = 10.0
    idle_timeout: float = 300.0
    """A connection without streams for so long is ended (servers only)."""

    @property
    def connection_window(self) -> int:
        """Room for every stream's window, so that one reader who does not read never blocks the others."""
        return min(max(self.stream_window * self.max_streams, 65_535), 2**31 - 1)


class Http2Connection:
    """A connection and its streams. `run()` is its life; everything else is called while that runs.

    `on_request(stream, headers)` is called for each request (servers); it must not block.
    """

    def __init__(
        self,
        transport: trio.abc.Stream,
        role: ngh2.Role,
        limits: Http2Limits,
        on_request: Callable[[Stream, Headers], None] | None = None,
    ) -> None:
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.blocked: set[Stream] = set()
        self.failure: str | None = None
        """Why the connection ended; None while it lives or when it ended by agreement."""
        self.going_away = False
        """No new streams: a GOAWAY was sent or received."""
        self._transport = transport
        self._server = role is ngh2.Role.SERVER
        self.is_client = not self._server
        self._on_request = on_request
        self._engine = ngh2.Connection(
            role,
            ngh2.Configuration(
                auto_window_update=False,
                max_inbound_header_list_size=limits.max_header_bytes,
                max_inbound_header_count=128,
                max_outbound_ack=200,
                stream_reset_rate_limit=(200, 33),
                glitch_rate_limit=(200, 33),
            ),
        )
        # Frames that cost us an answer or a wake-up and the peer next to nothing.
        self._control_frames = RateLimit(burst=200, rate=20)
        self._empty_frames = RateLimit(burst=100, rate=10)
        # Rapid reset and MadeYouReset alike: work begun for a stream that the peer's doing ended.
        self._abandoned = RateLimit(burst=200, rate=33)
        self._output = trio.Event()
        self._over = False
        self._ours_to_end = False
        self._mid_write = False
        self._last_words = b""
        self._last_received = 0.0
        self._idle_since = 0.0
        self._finishing: set[int] = set()
        self._scope = trio.CancelScope()
        settings = {
            ngh2.Setting.MAX_CONCURRENT_STREAMS: limits.max_streams,
            ngh2.Setting.INITIAL_WINDOW_SIZE: limits.stream_window,
            ngh2.Setting.MAX_HEADER_LIST_SIZE: limits.max_header_bytes,
        }
        if not self._server:
            settings[ngh2.Setting.ENABLE_PUSH] = 0
        self._engine.initiate_connection(settings)
        self._engine.set_local_window_size(limits.connection_window)

    async def run(self) -> None:
        """Drive the connection until it ends, then fail what is still open and close the transport.

        The peer's faults and the transport's never raise; `failure` tells them.
        """
        self._last_received = self._idle_since = trio.current_time()
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._read)
                    nursery.start_soon(self._write)
                    nursery.start_soon(self._keep_time)
        finally:
            self._over = self.going_away = True
            lost = Http2Error(self.failure or "the connection was closed")
            for stream in list(self.streams.values()):
                stream.on_closed(lost)
            self.streams.clear()
            # A write that was cut off leaves a transport that takes nothing sensible any more.
            if self._ours_to_end and not self._mid_write:
                with trio.move_on_after(_FINAL_WRITE_SECONDS, shield=True):
                    await self._say_goodbye()
            await trio.aclose_forcefully(self._transport)

    def request(self, headers: Iterable[tuple[bytes, bytes]]) -> Stream:
        """Open a stream with request headers (clients); raises Http2Error when none may be opened."""
        if self._over or self.going_away:
            raise Http2Error(self.failure or "the connection is going away")
        try:
            stream_id = self._engine.send_request(list(headers))
        except ngh2.NGH2Error as error:
            raise Http2Error(str(error)) from error
        stream = self.streams[stream_id] = Stream(self, stream_id)
        self._output.set()
        return stream

    def go_away(self, *, notice: bool) -> None:
        """Ask for no more streams (servers): first with `notice`, a round trip later without."""
        if self._over:
            return
        self.going_away = True
        if notice:
            self._engine.send_shutdown_notice()
        else:
            self._engine.send_goaway()
        self._output.set()

    def close(self, reason: str, error_code: int | None = None) -> None:
        """End the connection at once, with a last GOAWAY when an error code is given."""
        if self._over:
            return
        self._over = self._ours_to_end = True
        self.failure = reason
        if error_code is not None:
            self._last_words = _goaway(error_code, reason)
        self._scope.cancel()

    def _lose(self, reason: str) -> None:
        if not self._over:
            self.close(reason)
            self._ours_to_end = False

    # What streams ask for. A stream that the engine has closed meanwhile takes nothing more; its events tell.

    def queued(self, stream_id: int) -> int:
        """Bytes of a stream's body that are not yet framed."""
        return 0 if self._over else self._engine.queued_body_size(stream_id)

    def consumed(self, stream_id: int, count: int) -> None:
        """Grant the peer as many more bytes."""
        if count and not self._over:
            self._engine.acknowledge_received_data(count, stream_id)
            self._output.set()

    def queue_data(self, stream_id: int, parts: Iterable[bytes]) -> None:
        if self._over:
            raise Http2Error(self.failure or "the connection was closed")
        try:
            for part in parts:
                self._engine.send_data(stream_id, part)
        except ngh2.StreamProtocolError as error:
            raise Http2Error(str(error)) from error
        self._output.set()

    def queue_response(self, stream_id: int, headers: list[tuple[bytes, bytes]], end: bool) -> None:
        if not self._over:
            self._engine.send_response(stream_id, headers, end_stream=end)
            if end:
                self._finishing.add(stream_id)
            self._output.set()

    def queue_end(self, stream_id: int, trailers: list[tuple[bytes, bytes]]) -> None:
        if self._over:
            return
        if trailers:
            self._engine.send_trailers(stream_id, trailers)
        else:
            self._engine.end_stream(stream_id)
        if self._server:
            self._finishing.add(stream_id)
        self._output.set()

    def queue_reset(self, stream: Stream, error_code: int) -> None:
        if not self._over and not stream.closed.is_set():
            self._engine.reset_stream(stream.id, error_code)
            self._output.set()

    # The three tasks.

    async def _read(self) -> None:
        try:
            while True:
                data = await self._transport.receive_some(_READ_BYTES)
                if not data:
                    return self._lose("the peer closed the connection")
                self._last_received = trio.current_time()
                self._engine.receive_data(data)
                self._dispatch()
                self._output.set()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._lose(f"the connection broke: {error.__cause__ or error}")
        except ngh2.DenialOfServiceError as error:
            self.close(f"the peer exceeds a limit: {error}", ngh2.ErrorCode.ENHANCE_YOUR_CALM)
        except ngh2.NGH2Error as error:
            self.close(f"the peer breaks HTTP/2: {error}", ngh2.ErrorCode.PROTOCOL_ERROR)

    async def _write(self) -> None:
        try:
            while True:
                while data := self._engine.data_to_send(_WRITE_BYTES):
                    self._dispatch()
                    self._wake_senders()
                    self._mid_write = True
                    await self._transport.send_all(data)
                    self._mid_write = False
                self._dispatch()
                self._wake_senders()
                if self._finish_responses():
                    continue
                if not self._engine.want_read and not self._engine.want_write:
                    return self.close("the connection was ended")
                await self._output.wait()
                self._output = trio.Event()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._lose(f"the connection broke: {error.__cause__ or error}")
        except ngh2.NGH2Error as error:
            self.close(f"HTTP/2 failed: {error}", ngh2.ErrorCode.INTERNAL_ERROR)

    async def _keep_time(self) -> None:
        limits = self.limits
        while True:
            await trio.sleep_until(self._last_received + limits.keepalive_interval)
            now = trio.current_time()
            if self._server and not self.streams and now - self._idle_since >= limits.idle_timeout:
                return self.close("idle", ngh2.ErrorCode.NO_ERROR)
            if now - self._last_received < limits.keepalive_interval:
                continue
            self._engine.ping()
            self._output.set()
            await trio.sleep(limits.keepalive_timeout)
            if self._last_received < now:
                return self.close("the peer does not answer PING")

    async def _say_goodbye(self) -> None:
        """Write what tells the peer why, and wait for its end: closing on unread bytes would lose our last ones."""
        transport = self._transport
        try:
            if self._last_words:
                await transport.send_all(self._last_words)
            while isinstance(transport, trio.SSLStream):
                transport = transport.transport_stream
            if isinstance(transport, trio.SocketStream):
                await transport.send_eof()
                while await transport.receive_some(_READ_BYTES):
                    continue
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.BusyResourceError) as error:
            _log.debug("the last words were not heard: %s", error)

    def _wake_senders(self) -> None:
        for stream in self.blocked:
            if self._engine.queued_body_size(stream.id) < self.limits.send_queue:
                stream.on_writable()

    def _finish_responses(self) -> bool:
        """Reset requests that go on after their response ended (RFC 9113 §8.1); whether there were any.

        Called when all that could be framed was written: a response whose queue is empty while both windows
        are open is out, trailers included.
        """
        done = [
            stream
            for stream_id in self._finishing
            if (stream := self.streams.get(stream_id)) is not None
            and not stream.remote_ended
            and not self._engine.queued_body_size(stream_id)
            and self._engine.remote_window_size > 0
            and self._engine.stream_remote_window_size(stream_id) > 0
        ]
        for stream in done:
            self._finishing.discard(stream.id)
            self._engine.reset_stream(stream.id, ngh2.ErrorCode.NO_ERROR)
        return bool(done)

    def _dispatch(self) -> None:
        """Hand the engine's events to the streams they are for."""
        for event in self._engine.events():
            match event:
                case ngh2.DataReceived(stream_id, data, ended):
                    if not data and not ended:
                        self._spend(self._empty_frames, "empty DATA frames")
                    if (stream := self.streams.get(stream_id)) is not None:
                        stream.on_data(data, ended)
                    else:
                        self.consumed(stream_id, len(data))
                case ngh2.RequestReceived(stream_id, headers, ended):
                    self._receive_request(stream_id, headers, ended)
                case ngh2.ResponseReceived(stream_id, headers, ended):
                    if (stream := self.streams.get(stream_id)) is not None:
                        stream.on_response(headers, ended)
                case ngh2.TrailersReceived(stream_id, headers):
                    if (stream := self.streams.get(stream_id)) is not None:
                        stream.on_trailers(headers)
                case ngh2.StreamReset(stream_id, error_code):
                    if (stream := self.streams.get(stream_id)) is not None:
                        stream.reset_code = error_code
                case ngh2.StreamClosed(stream_id, error_code, local_error):
                    self._close_stream(stream_id, error_code, local_error)
                case ngh2.PingReceived() | ngh2.SettingsReceived():
                    self._spend(self._control_frames, "SETTINGS and PING frames")
                case ngh2.GoAwayReceived():
                    self.going_away = True
                case _:
                    # Acknowledgements and window updates: the engine has acted on them already.
                    pass

    def _receive_request(self, stream_id: int, headers: Headers, ended: bool) -> None:
        stream = Stream(self, stream_id)
        stream.remote_ended = ended
        self.streams[stream_id] = stream
        if self._on_request is not None:
            self._on_request(stream, headers)

    def _close_stream(self, stream_id: int, error_code: int, local_error: Exception | None) -> None:
        self._finishing.discard(stream_id)
        if (stream := self.streams.pop(stream_id, None)) is None:
            return
        if not self.streams:
            self._idle_since = trio.current_time()
        if error_code == ngh2.ErrorCode.NO_ERROR and stream.remote_ended:
            stream.on_closed(None)
            return
        if self._server and error_code != ngh2.ErrorCode.NO_ERROR:
            self._spend(self._abandoned, "streams ended by reset")
        if stream.reset_code is not None:
            stream.on_closed(Http2Error("the peer reset the stream", stream.reset_code))
        else:
            stream.on_closed(Http2Error(str(local_error or "the stream was reset"), error_code))

    def _spend(self, limit: RateLimit, what: str) -> None:
        if not limit.spend(trio.current_time()):
            self.close(f"too many {what}", ngh2.ErrorCode.ENHANCE_YOUR_CALM)


def _goaway(error_code: int, reason: str) -> bytes:
    """A GOAWAY frame (RFC 9113 §6.8) for when the engine has given up; any stream may have run."""
    payload = struct.pack("!II", 0x7FFFFFFF, error_code) + reason.encode()[:128]
    return struct.pack("!I", len(payload))[1:] + b"\x07\x00" + struct.pack("!I", 0) + payload
