"""The PROXY protocol's header, whole, cut at every byte, and broken."""

from __future__ import annotations

import pytest

from agent.worker.proxy_header import NO_HEADER, BadHeader, ProxyHeader, read_header

V1 = b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 80\r\n"
V2 = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c\x01\x02\x03\x04\x05\x06\x07\x08\x03\xe8\x00P"
ENDS = (("1.2.3.4", 1000), ("5.6.7.8", 80))


@pytest.mark.parametrize("header", [V1, V2])
def test_a_header_is_read_whole_and_never_before(header: bytes) -> None:
    for size in range(1, len(header)):
        assert read_header(header[:size]) is None
    assert read_header(header + b"GET") == ProxyHeader(len(header), *ENDS)


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1000\r\n",
        b"PROXY TCP4 1::2 3::4 1000 80\r\n",
        b"PROXY TCP4 1.2.3.4 5.6.7.8 1000 99999\r\n",
        b"PROXY " + b"x" * 120,
        V2[:12] + b"\x31" + V2[13:],
        V2[:12] + b"\x22" + V2[13:],
        V2[:13] + b"\x31" + V2[14:],
    ],
)
def test_what_is_no_header_is_refused(data: bytes) -> None:
    with pytest.raises(BadHeader):
        read_header(data)


def test_an_optional_header_may_be_missing_and_must_be_right() -> None:
    assert read_header(b"GET /", optional=True) is NO_HEADER
    with pytest.raises(BadHeader):
        read_header(b"PROXY TCP4 nonsense\r\n", optional=True)
