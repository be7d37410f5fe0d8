"""What a hostile or broken peer may do to our server, frame by frame: it is ended, the server lives."""

from __future__ import annotations

import logging
import struct
from collections.abc import Awaitable, Callable

import hpack
import pytest
import trio
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from wire.grpc import GrpcError, GrpcStatus, Handler, Limits, ServerCall, open_channel, serve

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
ENHANCE_YOUR_CALM = 11


class MemoryListener(trio.abc.Listener[trio.abc.Stream]):
    """Accepts streams in memory; those of the first connection may be without any buffer."""

    def __init__(self, *, unbuffered: bool = False) -> None:
        self._send, self._receive = trio.open_memory_channel[trio.abc.Stream](10)
        self._unbuffered = unbuffered

    async def accept(self) -> trio.abc.Stream:
        return await self._receive.receive()

    async def connect(self) -> trio.abc.Stream:
        pair = lockstep_stream_pair if self._unbuffered else memory_stream_pair
        self._unbuffered = False
        ours, theirs = pair()
        await self._send.send(theirs)
        return ours

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


class Attacker:
    """A raw HTTP/2 peer that reads everything and remembers what ended it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self.encoder = hpack.Encoder()
        self.frames: list[Frame] = []
        self.ended = False

    async def read(self) -> None:
        buffer = bytearray()
        while True:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
            if not data:
                self.ended = True
                return
            buffer += data
            while len(buffer) >= 9:
                frame, length = Frame.parse_frame_header(memoryview(bytes(buffer[:9])))
                if len(buffer) < 9 + length:
                    break
                frame.parse_body(memoryview(bytes(buffer[9 : 9 + length])))
                del buffer[: 9 + length]
                self.frames.append(frame)

    async def send(self, *frames: Frame | bytes) -> None:
        data = b"".join(frame if isinstance(frame, bytes) else frame.serialize() for frame in frames)
        try:
            await self.stream.send_all(data)
        except trio.BrokenResourceError:
            self.ended = True

    def request(self, stream_id: int, *flags: str, path: str = "/t/wait") -> HeadersFrame:
        fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "x"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        return HeadersFrame(stream_id, self.encoder.encode(fields), flags=["END_HEADERS", *flags])

    @property
    def goaway(self) -> int | None:
        codes = [frame.error_code for frame in self.frames if isinstance(frame, GoAwayFrame)]
        return codes[-1] if codes else None


active = [0]
most = [0]


async def wait_for_ever(call: ServerCall) -> None:
    active[0] += 1
    most[0] = max(most[0], active[0])
    try:
        await trio.sleep_forever()
    finally:
        active[0] -= 1


async def echo(call: ServerCall) -> None:
    while (message := await call.receive()) is not None:
        await call.send(message)


async def refuse(call: ServerCall) -> None:
    raise GrpcError(GrpcStatus.PERMISSION_DENIED, "no")


class Errors(logging.Handler):
    """Collects what the server logs as its own failures."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record.getMessage())


HANDLERS: dict[str, Handler] = {"/t/wait": wait_for_ever, "/t/echo": echo, "/t/refuse": refuse}


def attack(
    deed: Callable[[Attacker], Awaitable[None]], *, reads: bool = True, limits: Limits | None = None
) -> Attacker:
    """Do the deed to a server; afterwards a good client must be served as ever. Gives what the attacker saw."""
    attackers = []

    async def main() -> None:
        listener = MemoryListener(unbuffered=not reads)
        active[0] = most[0] = 0
        with trio.fail_after(600):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lambda: serve([listener], HANDLERS, limits=limits))
                attacker = Attacker(await listener.connect())
                attackers.append(attacker)
                if reads:
                    nursery.start_soon(attacker.read)
                await attacker.send(PREFACE, SettingsFrame(0))
                await deed(attacker)
                await wait_all_tasks_blocked(0.01)
                async with open_channel(listener.connect, "good") as channel:
                    assert await channel.unary("/t/echo", b"x", deadline=5) == b"x"
                nursery.cancel_scope.cancel()

    errors = Errors()
    logging.getLogger("wire").addHandler(errors)
    try:
        trio.run(main, clock=MockClock(autojump_threshold=0.05))
    finally:
        logging.getLogger("wire").removeHandler(errors)
    assert errors.records == [], "a peer's doing is never an error of ours"
    return attackers[0]


def test_rapid_reset_is_ended_and_never_runs_more_handlers_than_streams() -> None:
    async def deed(attacker: Attacker) -> None:
        for stream_id in range(1, 20_001, 2):
            await attacker.send(attacker.request(stream_id), RstStreamFrame(stream_id, error_code=8))

    attacker = attack(deed)
    assert attacker.ended
    assert most[0] <= 100
    assert active[0] == 0


@pytest.mark.parametrize("offence", ["window", "data", "self-dependency"])
def test_resets_that_the_server_is_made_to_send_are_counted_too(offence: str) -> None:
    async def deed(attacker: Attacker) -> None:
        for stream_id in range(1, 4001, 2):
            bad: Frame
            if offence == "window":
                bad = WindowUpdateFrame(stream_id, window_increment=2**31 - 1)
            elif offence == "data":
                bad = DataFrame(stream_id, b"x")
            else:
                bad = PriorityFrame(stream_id, depends_on=stream_id)
            flags = ["END_STREAM"] if offence == "data" else []
            await attacker.send(attacker.request(stream_id, *flags), bad)

    attacker = attack(deed)
    if offence != "self-dependency":
        # Priorities of RFC 7540 are not read at all, so the last kind does nothing.
        assert attacker.ended
    assert most[0] <= 100


def test_a_continuation_flood_is_ended() -> None:
    async def deed(attacker: Attacker) -> None:
        await attacker.send(HeadersFrame(1, attacker.request(1).data))
        for _ in range(1000):
            await attacker.send(ContinuationFrame(1, attacker.encoder.encode([("x-a", "b")])))

    attacker = attack(deed)
    assert attacker.ended
    assert attacker.goaway == ENHANCE_YOUR_CALM


def test_headers_above_the_limit_are_ended_also_when_they_are_small_on_the_wire() -> None:
    async def large(attacker: Attacker) -> None:
        fields = [(":method", "POST"), *((f"x-{number}", "v" * 1000) for number in range(17))]
        await attacker.send(HeadersFrame(1, attacker.encoder.encode(fields), flags=["END_HEADERS"]))

    async def bomb(attacker: Attacker) -> None:
        # One long field in the dynamic table, then named by a byte each time.
        literal = b"\x40" + b"\x01a" + b"\x7f" + bytes([0x80 | (3900 - 127) % 128, (3900 - 127) // 128])
        await attacker.send(HeadersFrame(1, literal + b"v" * 3900 + b"\xbe" * 4000, flags=["END_HEADERS"]))

    async def crumbs(attacker: Attacker) -> None:
        fields = [("cookie", "a=b")] * 1000
        await attacker.send(HeadersFrame(1, attacker.encoder.encode(fields), flags=["END_HEADERS"]))

    for deed in (large, bomb, crumbs):
        attacker = attack(deed)
        assert attacker.ended, deed.__name__
        assert attacker.goaway == ENHANCE_YOUR_CALM, deed.__name__


@pytest.mark.parametrize("frame", [SettingsFrame(0, settings={3: 1}), PingFrame(0, b"12345678")])
@pytest.mark.parametrize("reads", [True, False])
def test_settings_and_ping_floods_are_ended(frame: Frame, reads: bool) -> None:
    async def deed(attacker: Attacker) -> None:
        for _ in range(100):
            await attacker.send(*[frame] * 100)

    attacker = attack(deed, reads=reads)
    assert attacker.ended
    if reads:
        assert attacker.goaway == ENHANCE_YOUR_CALM


def test_a_flood_of_empty_data_frames_is_ended() -> None:
    async def deed(attacker: Attacker) -> None:
        await attacker.send(attacker.request(1))
        for _ in range(100):
            await attacker.send(*[DataFrame(1, b"")] * 50)

    assert attack(deed).ended


def test_data_for_a_finished_stream_harms_nobody() -> None:
    async def deed(attacker: Attacker) -> None:
        for stream_id in range(1, 41, 2):
            await attacker.send(attacker.request(stream_id, path="/t/refuse"))
            await wait_all_tasks_blocked(0.01)
            await attacker.send(DataFrame(stream_id, b"late"), DataFrame(stream_id, b"later"))

    attacker = attack(deed)
    assert not attacker.ended
    assert attacker.goaway is None


def test_a_request_that_goes_on_after_its_refusal_is_reset_without_blame() -> None:
    async def deed(attacker: Attacker) -> None:
        await attacker.send(attacker.request(1, path="/t/refuse"))
        await wait_all_tasks_blocked(0.01)

    attacker = attack(deed)
    kinds = [type(frame) for frame in attacker.frames if frame.stream_id == 1]
    assert kinds == [HeadersFrame, RstStreamFrame]
    (reset,) = (frame for frame in attacker.frames if isinstance(frame, RstStreamFrame))
    assert reset.error_code == 0


def test_more_streams_than_allowed_are_refused_and_end_who_knew_the_limit() -> None:
    async def deed(attacker: Attacker) -> None:
        await attacker.send(*(attacker.request(stream_id) for stream_id in range(1, 301, 2)))
        await wait_all_tasks_blocked(0.01)
        assert active[0] <= 100

    attacker = attack(deed)
    refused = [frame for frame in attacker.frames if isinstance(frame, RstStreamFrame)]
    assert len(refused) == 50
    assert {frame.error_code for frame in refused} == {7}
    assert not attacker.ended

    async def knowing(attacker: Attacker) -> None:
        await wait_all_tasks_blocked(0.01)
        await attacker.send(SettingsFrame(0, flags=["ACK"]))
        await deed(attacker)

    assert attack(knowing).ended


def test_a_client_that_does_not_read_its_answer_is_dropped_in_the_end() -> None:
    async def deed(attacker: Attacker) -> None:
        await attacker.send(SettingsFrame(0, settings={4: 0}))
        await attacker.send(attacker.request(1, path="/t/echo"))
        message = b"x" * 1000
        framed = struct.pack("!BI", 0, len(message)) + message
        await attacker.send(DataFrame(1, framed, flags=["END_STREAM"]))
        await trio.sleep(60)

    attacker = attack(deed)
    resets = [frame for frame in attacker.frames if isinstance(frame, RstStreamFrame)]
    assert [frame.stream_id for frame in resets] == [1]


def test_a_message_longer_than_allowed_is_refused_at_its_prefix() -> None:
    async def deed(attacker: Attacker) -> None:
        await attacker.send(attacker.request(1, path="/t/echo"))
        await attacker.send(DataFrame(1, struct.pack("!BI", 0, 0xFFFFFFFF)))
        await wait_all_tasks_blocked(0.01)

    attacker = attack(deed)
    headers = next(frame for frame in attacker.frames if isinstance(frame, HeadersFrame))
    assert dict(hpack.Decoder().decode(headers.data))["grpc-status"] == "8"


@pytest.mark.parametrize(
    "garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00" + bytes(600), bytes(200)]
)
def test_what_is_not_http2_is_ended(garbage: bytes) -> None:
    ended = []

    async def main() -> None:
        listener = MemoryListener()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, [listener], HANDLERS)
            attacker = Attacker(await listener.connect())
            nursery.start_soon(attacker.read)
            await attacker.send(garbage)
            await wait_all_tasks_blocked(0.01)
            ended.append(attacker.ended)
            nursery.cancel_scope.cancel()

    trio.run(main)
    assert ended == [True]


def test_what_is_no_grpc_request_is_told_so() -> None:
    async def deed(attacker: Attacker) -> None:
        get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "x")]
        html = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "x")]
        for stream_id, fields in ((1, get), (3, [*html, ("content-type", "text/html")])):
            block = attacker.encoder.encode(fields)
            await attacker.send(HeadersFrame(stream_id, block, flags=["END_HEADERS", "END_STREAM"]))
        await wait_all_tasks_blocked(0.01)

    attacker = attack(deed)
    decoder = hpack.Decoder()
    answers = [decoder.decode(frame.data) for frame in attacker.frames if isinstance(frame, HeadersFrame)]
    assert [dict(answer)[":status"] for answer in answers] == ["405", "415"]


raw_frames = st.builds(
    lambda kind, flags, stream_id, payload: (
        struct.pack("!I", len(payload))[1:] + bytes([kind, flags]) + struct.pack("!I", stream_id) + payload
    ),
    st.integers(0, 16),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 2**31 - 1]),
    st.binary(max_size=64),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(raw_frames, max_size=12))
def test_no_sequence_of_frames_breaks_the_server(frames: list[bytes]) -> None:
    async def deed(attacker: Attacker) -> None:
        await attacker.send(attacker.request(1), *frames)

    attack(deed)
