"""The pure parts of gRPC: metadata, deadlines, statuses, framing at every split, back-off, rate limits."""

from __future__ import annotations

import struct

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from wire.grpc import Backoff, GrpcError, GrpcStatus, Metadata
from wire.grpc import metadata as grpc_metadata
from wire.grpc.messages import AssemblyBudget, MessageReader, prefix
from wire.grpc.status import (
    decode_message,
    encode_message,
    parse_status,
    status_of_http,
    status_of_reset,
)
from wire.rate import RateLimit


@given(st.text())
def test_every_status_message_survives_the_wire(text: str) -> None:
    valid = text.encode(errors="ignore").decode()
    encoded = encode_message(valid)
    assert all(0x20 <= byte < 0x7F for byte in encoded)
    assert decode_message(encoded) == valid


@given(st.floats(min_value=0, max_value=1e9))
def test_a_deadline_is_never_lengthened_by_its_encoding(seconds: float) -> None:
    encoded = grpc_metadata.format_timeout(seconds)
    assert len(encoded) <= 9
    assert grpc_metadata.parse_timeout(encoded) <= seconds * (1 + 1e-9)


@pytest.mark.parametrize("value", [b"", b"1", b"S", b"-1S", b"1.5S", b"123456789S", b"1s", b" 1S", b"1S\n"])
def test_what_is_no_deadline_is_refused(value: bytes) -> None:
    with pytest.raises(ValueError, match="grpc-timeout"):
        grpc_metadata.parse_timeout(value)


def test_metadata_survives_the_wire_and_reserved_names_are_left_out() -> None:
    pairs: list[tuple[str, str | bytes]] = [("authorization", "Bearer x"), ("k-bin", b"\x00\xff"), ("k", "1")]
    received = grpc_metadata.decode(
        [(b":path", b"/"), (b"te", b"trailers"), (b"grpc-timeout", b"1S"), *grpc_metadata.encode(pairs)]
    )
    assert list(received) == pairs
    assert received.get("authorization") == "Bearer x"
    assert received.get("none", "default") == "default"
    assert "Bearer" not in repr(received)
    assert grpc_metadata.decode([(b"k-bin", b"AP8=,AP8"), (b"bad-bin", b"!")]).binary("k-bin") == b"\x00\xff"
    assert Metadata().binary("k-bin") is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Upper", "x"),
        ("grpc-x", "x"),
        ("te", "x"),
        ("a b", "x"),
        ("k", "\n"),
        ("k", "é"),
        ("k", b"x"),
        ("k-bin", "x"),
    ],
)
def test_metadata_that_grpc_does_not_allow_is_refused(name: str, value: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"name|value|bytes"):
        grpc_metadata.encode([(name, value)])


def test_statuses_of_other_outcomes() -> None:
    assert parse_status("7") is GrpcStatus.PERMISSION_DENIED
    assert parse_status("99") is parse_status("x") is GrpcStatus.UNKNOWN
    assert status_of_http("503") is GrpcStatus.UNAVAILABLE
    assert status_of_http("302") is GrpcStatus.UNKNOWN
    assert status_of_reset(8) is GrpcStatus.CANCELLED
    assert status_of_reset(7) is GrpcStatus.UNAVAILABLE
    assert status_of_reset(12345) is GrpcStatus.INTERNAL


class Chunks:
    """A stream that gives what it is told to."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = list(chunks)

    async def receive(self) -> bytes | None:
        await trio.lowlevel.checkpoint()
        return self.chunks.pop(0) if self.chunks else None


def read_all(*chunks: bytes, limit: int = 100, budget: AssemblyBudget | None = None) -> list[bytes]:
    async def main() -> list[bytes]:
        reader = MessageReader(Chunks(*chunks), limit, budget or AssemblyBudget(1000))  # type: ignore[arg-type]
        messages = []
        while (message := await reader.next()) is not None:
            messages.append(message)
        return messages

    return trio.run(main)


def test_messages_come_out_whole_however_they_are_cut() -> None:
    messages = [b"", b"a", b"hello" * 10, b""]
    wire = b"".join(prefix(message) + message for message in messages)
    budget = AssemblyBudget(1000)
    assert read_all(wire, budget=budget) == messages
    assert read_all(*(bytes([byte]) for byte in wire), budget=budget) == messages
    for cut in range(len(wire)):
        assert read_all(wire[:cut], wire[cut:], budget=budget) == messages
    assert budget.held == 0


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (struct.pack("!BI", 0, 101), GrpcStatus.RESOURCE_EXHAUSTED),
        (struct.pack("!BI", 1, 1) + b"x", GrpcStatus.UNIMPLEMENTED),
        (struct.pack("!BI", 0, 2) + b"x", GrpcStatus.INTERNAL),
        (b"\x00\x00", GrpcStatus.INTERNAL),
    ],
)
def test_messages_that_cannot_be_read_say_why(wire: bytes, status: GrpcStatus) -> None:
    with pytest.raises(GrpcError) as caught:
        read_all(wire)
    assert caught.value.status is status


def test_back_off_grows_to_its_maximum_with_jitter_and_begins_anew() -> None:
    middle = Backoff(lambda: 0.5, initial=1, multiplier=2, maximum=10)
    assert [middle.next_delay() for _ in range(6)] == [1, 2, 4, 8, 10, 10]
    middle.reset()
    assert middle.next_delay() == 1
    low, high = Backoff(lambda: 0.0, initial=1, jitter=0.3), Backoff(lambda: 1.0, initial=1, jitter=0.3)
    assert (low.next_delay(), high.next_delay()) == (pytest.approx(0.7), pytest.approx(1.3))


def test_a_rate_limit_allows_a_burst_and_then_its_rate() -> None:
    limit = RateLimit(burst=3, rate=2)
    assert [limit.spend(0) for _ in range(4)] == [True, True, True, False]
    assert [limit.spend(0.4), limit.spend(0.5), limit.spend(0.6)] == [False, True, False]
    assert [limit.spend(100) for _ in range(4)] == [True, True, True, False]
