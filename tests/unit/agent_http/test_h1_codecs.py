"""Both HTTP/1.1 codecs: the same bytes give the same story, fed whole, byte by byte, or cut anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.http.codecs import NAMES, codec
from agent.http.h1_message import CHUNKED, UNTIL_CLOSE, H1Violation, InboundResponse, Limits, RequestHead
from agent.http.headers import Headers

CASES = Path(__file__).parents[3] / ".." / "shared" / "cases" / "http1"


class Requests:
    """A sink that writes down what it hears, and answers each request when it is complete."""

    def __init__(self, name: str, limits: Limits) -> None:
        self.codec = codec(name)[0](self, limits)
        self.story: list[Any] = []
        self._answered = False

    def request_head(self, head: RequestHead) -> None:
        self.story.append(
            (
                head.method,
                head.path,
                head.authority,
                sorted(head.headers.fields()),
                head.length,
                head.keep_alive,
            )
        )

    def request_data(self, data: bytes) -> None:
        if self.story and isinstance(self.story[-1], bytes):
            self.story[-1] += data
        else:
            self.story.append(data)

    def request_end(self, trailers: Headers | None) -> None:
        self.story.append(("end", sorted(trailers.fields()) if trailers else []))
        self._answered = True

    def feed(self, pieces: list[bytes]) -> list[Any]:
        try:
            for piece in pieces:
                self.codec.receive(piece)
                while self._answered:
                    self._answered = False
                    self.codec.next_request()
        except H1Violation as violation:
            self.story.append(("refused", violation.status))
        return self.story


class Responses:
    """A sink for responses."""

    def __init__(self, name: str, method: bytes = b"GET", upgrade: bytes = b"") -> None:
        self.codec = codec(name)[1](self, Limits(trailers=True))
        self.codec.expect(method, upgrade)
        self.story: list[Any] = []

    def informational(self, status: int, headers: Headers) -> None:
        self.story.append(("interim", status))

    def response_head(self, head: InboundResponse) -> None:
        self.story.append((head.status, sorted(head.headers.fields()), head.length, head.keep_alive))

    def response_data(self, data: bytes) -> None:
        if self.story and isinstance(self.story[-1], bytes):
            self.story[-1] += data
        else:
            self.story.append(data)

    def response_end(self, trailers: Headers | None) -> None:
        self.story.append(("end", sorted(trailers.fields()) if trailers else []))

    def feed(self, pieces: list[bytes], *, eof: bool = False) -> list[Any]:
        try:
            for piece in pieces:
                self.codec.receive(piece)
            if eof:
                self.codec.end_of_input()
        except H1Violation as violation:
            self.story.append(("refused", violation.status))
        return self.story


def _whole_and_in_pieces(data: bytes) -> list[list[bytes]]:
    return [[data], [data[i : i + 1] for i in range(len(data))], [data[:7], data[7:40], data[40:]]]


@pytest.mark.parametrize("name", NAMES)
def test_pipelined_requests_are_told_one_after_the_other(name: str) -> None:
    data = (
        b"POST /a?q HTTP/1.1\r\nHost: A\r\nContent-Length: 3\r\nX-Y: 1\r\n\r\nabc"
        b"GET http://b.example/c HTTP/1.1\r\nHost: ignored\r\nConnection: close\r\n\r\n"
    )
    for pieces in _whole_and_in_pieces(data):
        assert Requests(name, Limits()).feed(pieces) == [
            (b"POST", b"/a?q", b"A", [(b"content-length", b"3"), (b"x-y", b"1")], 3, True),
            b"abc",
            ("end", []),
            (b"GET", b"/c", b"b.example", [(b"connection", b"close")], 0, False),
            ("end", []),
        ]


@pytest.mark.parametrize("name", NAMES)
def test_chunks_are_joined_and_trailers_are_told_only_when_they_are_wanted(name: str) -> None:
    data = b"PUT / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n"
    for pieces in _whole_and_in_pieces(data):
        story = Requests(name, Limits(trailers=True)).feed(pieces)
        assert story[0][4] == CHUNKED
        assert story[1:] == [b"abcde", ("end", [(b"x-t", b"1")])]
        assert Requests(name, Limits()).feed(pieces)[-1] == ("end", [])


REFUSED = {
    "length and chunked": (
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
        400,
    ),
    "two lengths": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc", 400),
    "length as a list": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc", 400),
    "length with a sign": (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc", 400),
    "another coding": (
        b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        501,
    ),
    "identity": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\n", 501),
    "folded": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n", 400),
    "bare CR": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n", 400),
    "NUL": (b"GET / HTTP/1.1\r\nHost: a\r\nX: a\0b\r\n\r\n", 400),
    "space before the colon": (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "unknown method": (b"FOO / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "another version": (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 426),
    "no version": (b"GET /\r\n\r\n", 426),
    "nonsense": (b"hello there\r\n\r\n", 400),
    "bad chunk size": (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "target without a slash": (b"GET x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "asterisk with GET": (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "another scheme": (b"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
    "slash in the host": (b"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", sorted(REFUSED))
def test_what_can_be_read_in_two_ways_is_refused(name: str, case: str) -> None:
    data, status = REFUSED[case]
    for pieces in _whole_and_in_pieces(data):
        assert Requests(name, Limits()).feed(pieces)[-1] == ("refused", status), case


@pytest.mark.parametrize("name", NAMES)
def test_a_head_over_its_limits_is_answered_with_431(name: str) -> None:
    long = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 5000 + b"\r\n\r\n"
    assert Requests(name, Limits(max_head_bytes=2000)).feed([long[:3000], long[3000:]]) == [("refused", 431)]
    many = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"".join(b"X%d: 1\r\n" % i for i in range(20)) + b"\r\n"
    assert Requests(name, Limits(max_headers=10)).feed([many]) == [("refused", 431)]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_host_is_told_and_an_absolute_target_brings_its_own(name: str) -> None:
    sink = Requests(name, Limits())
    assert sink.feed([b"GET / HTTP/1.1\r\n\r\n"])[0][2] == b""
    assert Requests(name, Limits()).feed([b"GET http://x.example/y HTTP/1.1\r\n\r\n"])[0][1:3] == (
        b"/y",
        b"x.example",
    )


@pytest.mark.parametrize("name", NAMES)
def test_what_follows_an_upgrade_is_left_over(name: str) -> None:
    sink = Requests(name, Limits())
    heads: list[RequestHead] = []
    sink.request_head = heads.append  # type: ignore[method-assign]
    sink.codec.receive(
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: WebSocket\r\n\r\nearly"
    )
    assert heads[0].upgrade == b"websocket"
    assert sink.codec.leftovers() == b"early"


@pytest.mark.parametrize("name", NAMES)
def test_responses_end_as_their_framing_says(name: str) -> None:
    for pieces in _whole_and_in_pieces(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nab"):
        assert Responses(name).feed(pieces) == [
            (200, [(b"content-length", b"2")], 2, True),
            b"ab",
            ("end", []),
        ]
    for pieces in _whole_and_in_pieces(b"HTTP/1.1 200 OK\r\n\r\nab"):
        assert Responses(name).feed(pieces, eof=True) == [(200, [], UNTIL_CLOSE, False), b"ab", ("end", [])]
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nT: 1\r\n\r\n"
    assert Responses(name).feed([chunked])[1:] == [b"ab", ("end", [(b"t", b"1")])]
    head = Responses(name, b"HEAD").feed([b"HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n"])
    assert head == [(200, [(b"content-length", b"22")], 0, True), ("end", [])]
    assert Responses(name).feed([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No\r\n\r\n"]) == [
        ("interim", 100), (204, [], 0, True), ("end", []),
    ]  # fmt: skip


ODD_RESPONSES = {
    "HTTP/1.0 with chunks": (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", 200, False),
    "a status beyond 599": (b"HTTP/1.1 999 No\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n", 999, True),
    "a padded size": (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n02  \r\nhi\r\n0  \r\n\r\n", 200, True),
    "after an interim response": (
        b"HTTP/1.1 103 E\r\n\r\nHTTP/1.1 777 X\r\ncontent-length: 2\r\n\r\nhi", 777, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ODD_RESPONSES)
def test_responses_of_backends_that_are_no_model_are_read(name: str, case: str) -> None:
    data, status, keep_alive = ODD_RESPONSES[case]
    for pieces in _whole_and_in_pieces(data):
        story = [part for part in Responses(name).feed(pieces) if part != ("interim", 103)]
        assert (story[0][0], story[0][3]) == (status, keep_alive), story
        assert story[1:] == [b"hi", ("end", [])]


@pytest.mark.parametrize("name", NAMES)
def test_chunks_of_responses_are_joined_and_what_follows_is_left_over(name: str) -> None:
    data = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3;x=1\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\nHTTP/1.1"
    for pieces in _whole_and_in_pieces(data):
        sink = Responses(name)
        assert sink.feed(pieces)[1:] == [b"abcde", ("end", [(b"x-t", b"1")])]
        assert sink.codec.leftovers() == b"HTTP/1.1"


RESPONSES_REFUSED = [
    b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
    b"GARBAGE\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nContent-Length: a\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 204 No\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("data", RESPONSES_REFUSED)
def test_an_upstream_that_breaks_the_protocol_is_refused(name: str, data: bytes) -> None:
    assert Responses(name).feed([data])[-1] == ("refused", 502)


@pytest.mark.parametrize("name", NAMES)
def test_a_response_that_is_cut_off_is_no_response(name: str) -> None:
    assert Responses(name).feed([b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nab"], eof=True)[-1] == (
        "refused",
        502,
    )


@pytest.mark.parametrize("name", NAMES)
def test_bytes_beyond_a_response_are_left_over(name: str) -> None:
    sink = Responses(name)
    sink.feed([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nHTTP/1.1 200 smuggled"])
    assert sink.codec.leftovers() == b"HTTP/1.1 200 smuggled"


def _streams() -> Iterator[Any]:
    for item in json.loads((CASES / "llhttp.json").read_text()):
        if item["type"] == "request":
            yield pytest.param(bytes.fromhex(item["wire_hex"]), id=item["id"])
    for path in sorted((CASES / "envoy-corpus").iterdir()):
        yield pytest.param(path.read_bytes(), id=path.name)


def _verdict(story: list[Any]) -> str:
    first = next((part for part in story if isinstance(part, tuple)), None)
    if first is None:
        return "waiting"
    return f"refused {first[1]}" if first[0] == "refused" else "accepted"


@pytest.mark.parametrize("data", list(_streams()))
def test_both_codecs_judge_what_others_wrote_alike(data: bytes) -> None:
    verdicts = {name: _verdict(Requests(name, Limits()).feed([data])) for name in NAMES}
    told = set(verdicts.values())
    if (
        "waiting" in told
    ):  # one refuses at the byte that nothing can mend, the other when the head is complete
        told = {verdict for verdict in told if not verdict.startswith("refused")}
    assert len(told) == 1, verdicts


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_cuts_change_nothing(data: st.DataObject) -> None:
    message = (
        b"POST /x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nabcd\r\n0\r\n\r\n"
        b"GET /y HTTP/1.1\r\nhost: b\r\nx: 1\r\nx: 2\r\n\r\n"
    )
    cuts = sorted(data.draw(st.lists(st.integers(0, len(message)), max_size=6)))
    pieces = [message[a:b] for a, b in zip([0, *cuts], [*cuts, len(message)], strict=True) if a < b]
    for name in NAMES:
        assert Requests(name, Limits()).feed(pieces) == Requests("fast", Limits()).feed([message])
