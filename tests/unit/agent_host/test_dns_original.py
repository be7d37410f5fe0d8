"""Where a redirected question was going: what is asked of the kernel, and what is taken for its answer."""

from __future__ import annotations

import socket
import struct

from hypothesis import given
from hypothesis import strategies as st

from agent.host.dns.original import original_destination, request


def answer(kind: int = 0x100, port: int = 53) -> bytes:
    """A flow as the kernel prints it: the original direction, from 10.0.0.1:4000 to 10.9.9.9."""
    addresses = struct.pack("=HH4sHH4s", 8, 1, bytes([10, 0, 0, 1]), 8, 2, bytes([10, 9, 9, 9]))
    protocol = struct.pack("=HHB3xHHHHHHH", 5, 1, 17, 6, 2, socket.htons(4000), 0, 6, 3, socket.htons(port))
    protocol += bytes(-len(protocol) % 4)
    parts = struct.pack("=HH", 4 + len(addresses), 0x8001) + addresses
    parts += struct.pack("=HH", 4 + len(protocol), 0x8002) + protocol
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + struct.pack("=HH", 4 + len(parts), 0x8001) + parts
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_the_destination_is_read_from_the_flows_original_direction() -> None:
    assert original_destination(socket.AF_INET, answer()) == ("10.9.9.9", 53)


def test_an_error_is_no_destination() -> None:
    assert original_destination(socket.AF_INET, answer(kind=2)) is None
    assert original_destination(socket.AF_INET6, answer()) is None
    assert original_destination(socket.AF_INET, b"") is None


@given(st.data())
def test_a_damaged_answer_is_no_destination_and_no_error(data: st.DataObject) -> None:
    damaged = bytearray(answer())
    for _ in range(data.draw(st.integers(1, 8))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(damaged)))
    original_destination(socket.AF_INET, bytes(damaged[:end]))


def test_a_request_names_the_reply_direction() -> None:
    wire = request(socket.AF_INET, ("10.0.0.1", 4000), ("127.0.0.1", 15053))
    assert struct.unpack_from("=IH", wire) == (len(wire), 0x101)
    assert socket.inet_aton("127.0.0.1") + struct.pack("=HH", 8, 2) + socket.inet_aton("10.0.0.1") in wire
