"""Plain heads: what is read without the parser is what the parser reads, and what is not plain is left to it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.http.h1_message import Limits
from agent.http.h1_plain import plain_request, plain_response
from tests.unit.agent_http.test_h1_codecs import Requests, Responses

NAMES = [
    b"Host",
    b"host",
    b"Accept",
    b"user-agent",
    b"Content-Length",
    b"X-Request-Id",
    b"Connection",
    b"Expect",
    b"TE",
    b"Server",
]
REQUEST = b"GET /a?b=%20c HTTP/1.1\r\nHost: a.example:80\r\nuser-agent:  curl \r\nX-Request-Id: \r\n\r\n"
RESPONSE = b"HTTP/1.1 200 All Right\r\nServer: x y\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc"


@pytest.fixture(autouse=True, scope="module")
def _names_are_known() -> None:
    """A parser has found each name once."""
    for name in NAMES:
        value = b"1" if name.lower() == b"content-length" else b"x"
        host = b"" if name.lower() == b"host" else b"Host: h\r\n"
        data = b"POST / HTTP/1.1\r\n" + host + name + b": " + value + b"\r\n\r\n"
        Requests("fast", Limits()).feed([data[:1], data[1:]])


def plain(data: bytes) -> Any:
    return plain_request(data, 60 * 1024, 100)


def test_a_plain_request_is_read_at_one_go() -> None:
    head = plain(REQUEST)
    assert (head.method, head.target, head.length, head.start) == (b"GET", b"/a?b=%20c", 0, len(REQUEST))
    assert head.headers.first == {b"host": b"a.example:80", b"user-agent": b"curl", b"x-request-id": b""}


def test_a_plain_response_is_read_at_one_go() -> None:
    head = plain_response(RESPONSE, 60 * 1024, 100)
    assert head is not None
    assert (head.status, head.length, RESPONSE[head.start :]) == (200, 3, b"abc")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"\r\nuser", b"\nuser"), (b"user-agent:", b"user-agent :"), (b"user-agent", b"never-heard-of"),
        (b"HTTP/1.1", b"HTTP/1.0"),
        (b"GET", b"BREW"), (b"GET", b"CONNECT"), (b"/a", b"http://x/a"), (b"a.example", b"a_b"), (b"curl", b"c\x00url"),
        (b"curl", b"c\xc3\xbcrl"), (b"curl", b"c\turl"), (b"X-Request-Id", b"Host"), (b"X-Request-Id", b"user-agent"),
        (b"X-Request-Id: ", b"Transfer-Encoding: chunked"), (b"X-Request-Id: ", b"Content-Length: +1"),
        (b"X-Request-Id: ", b" folded"), (b"GET /", b"GET  /"), (b"\r\n\r\n", b"\r\n"), (b"c HTTP", b"#c HTTP"),
        (b"Host: a.example:80\r\n", b""), (b"X-Request-Id: ", b"Upgrade: websocket"), (b"GET", b"\r\nGET"),
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_the_parser(old: bytes, new: bytes) -> None:
    assert old in REQUEST
    assert plain(REQUEST.replace(old, new, 1)) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"200", b"204"), (b"200", b"304"), (b"200", b"100"), (b"200", b"999"), (b"HTTP/1.1", b"HTTP/1.0"),
        (b"200 All", b"200\tAll"),
        (b"Content-Length: 3", b"Connection: close"), (b"Content-Length: 3", b"Content-Length: 3, 3"),
        (b"Server: x y", b"Content-Length: 3"), (b"Server: x y", b"Transfer-Encoding: chunked"),
    ],
)  # fmt: skip
def test_responses_that_are_not_plain_are_left_to_the_parser(old: bytes, new: bytes) -> None:
    assert old in RESPONSE
    assert plain_response(RESPONSE.replace(old, new, 1), 60 * 1024, 100) is None


PIECE = st.one_of(
    st.sampled_from(
        [b" ", b"  ", b":", b"\t", b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"", b"0", b"5", b"-1", b"a", b"HTTP/1.1", b"chunked"]
    ),
    st.binary(max_size=3),
)  # fmt: skip
FIELD = st.tuples(
    st.sampled_from([*NAMES, b"Transfer-Encoding", b"Upgrade", b"X_y"]),
    st.sampled_from(
        [
            b"a",
            b"",
            b" b c ",
            b"3",
            b"0",
            b"close",
            b"keep-alive",
            b"100-continue",
            b"a.b:1",
            b"[::1]",
            b"a,b",
        ]
    ),
)


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([b"GET", b"POST", b"HEAD", b"OPTIONS", b"get"]),
    st.sampled_from([b"/", b"/a?b", b"*", b"/%zz", b"/a b", b'/"']),
    st.lists(FIELD, max_size=5), st.lists(st.tuples(st.integers(0, 300), PIECE), max_size=2),
    st.sampled_from([b"", b"abc", b"abcGET / HTTP/1.1\r\nHost: a\r\n\r\n"]),
)  # fmt: skip
def test_requests_read_whole_tell_the_parsers_story(
    method: bytes,
    target: bytes,
    fields: list[tuple[bytes, bytes]],
    changes: list[tuple[int, bytes]],
    body: bytes,
) -> None:
    data = (
        method
        + b" "
        + target
        + b" HTTP/1.1\r\nHost: h\r\n"
        + b"".join(b"%b: %b\r\n" % field for field in fields)
        + b"\r\n"
    )
    for at, piece in changes:
        cut = at % (len(data) + 1)
        data = data[:cut] + piece + data[cut + 1 :]
    data += body + b"\r\n\r\n"  # an end for what has none: how soon the parser notices may differ
    # A head that comes in two pieces is never plain.
    assert Requests("fast", Limits()).feed([data]) == Requests("fast", Limits()).feed([data[:1], data[1:]])


@settings(max_examples=500, deadline=None)
@given(
    st.sampled_from([b"200", b"404", b"503", b"204", b"304", b"101", b"20"]), st.lists(FIELD, max_size=5),
    st.lists(st.tuples(st.integers(0, 300), PIECE), max_size=2), st.sampled_from([b"", b"a", b"abc", b"abcdef"]),
    st.sampled_from([b"GET", b"HEAD", b"POST"]), st.booleans(),
)  # fmt: skip
def test_responses_read_whole_tell_the_parsers_story(
    code: bytes,
    fields: list[tuple[bytes, bytes]],
    changes: list[tuple[int, bytes]],
    body: bytes,
    method: bytes,
    eof: bool,
) -> None:
    data = b"HTTP/1.1 " + code + b" R\r\n" + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"
    for at, piece in changes:
        cut = at % (len(data) + 1)
        data = data[:cut] + piece + data[cut + 1 :]
    data += body + b"\r\n\r\n"  # an end for what has none: how soon the parser notices may differ
    whole, cut_up = Responses("fast", method), Responses("fast", method)
    story = whole.feed([data], eof=eof)
    assert story == cut_up.feed([data[:1], data[1:]], eof=eof)
    if story and story[-1][0] == "end":
        assert whole.codec.leftovers() == cut_up.codec.leftovers()
