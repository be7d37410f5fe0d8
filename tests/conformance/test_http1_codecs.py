"""What a codec makes of a byte stream does not depend on how the bytes arrive.

Every llhttp request case and every file of Envoy's corpus, whole, byte by byte, and cut in two at each place: the same
heads, bodies, trailers and verdict. An accepted request, written out again for an upstream, is exactly one message to
h11, a parser of another author.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h11
import pytest

from agent.http.codecs import SERVER_CODEC
from agent.http.h1_message import H1Violation, Limits, RequestHead
from agent.http.headers import Headers

CASES = Path(__file__).parents[2] / ".." / "shared" / "cases" / "http1"
STREAMS = [
    pytest.param(bytes.fromhex(item["wire_hex"]), id=item["id"])
    for item in json.loads((CASES / "llhttp.json").read_text())
    if item["type"] == "request"
] + [pytest.param(path.read_bytes(), id=path.name) for path in sorted((CASES / "envoy-corpus").iterdir())]


class Reader:
    """Takes every request as it comes and answers it at once, so that the next is read."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, Any]] = []
        self.codec = SERVER_CODEC(self, Limits(trailers=True))
        self._ended = False

    def request_head(self, head: RequestHead) -> None:
        fields = sorted(head.headers.every())
        self.seen.append(("head", (head.method, head.path, head.authority, fields, head.upgrade)))

    def request_data(self, data: bytes) -> None:
        if self.seen[-1][0] == "data":
            self.seen[-1] = ("data", self.seen[-1][1] + data)
        else:
            self.seen.append(("data", data))

    def request_end(self, trailers: Headers | None) -> None:
        self.seen.append(("end", sorted(trailers.every()) if trailers else []))
        self._ended = True

    def read(self, parts: Iterable[bytes]) -> list[tuple[str, Any]]:
        """Everything seen, with `refused` at the end where the stream was."""
        try:
            for part in parts:
                self.codec.receive(part)
                while self._ended:
                    self._ended = False
                    if self.seen[-2][0] == "head" and self.seen[-2][1][4]:
                        return self.seen  # an upgrade: what follows is not HTTP
                    self.codec.next_request()
        except H1Violation:
            self.seen.append(("refused", None))
        return self.seen


@pytest.mark.parametrize("stream", STREAMS)
def test_cutting_the_stream_changes_nothing(stream: bytes) -> None:
    stream += (
        b"\r\n\r\n"  # an end for what has none: how soon a broken line is noticed may differ, not that it is
    )
    whole = Reader().read([stream])
    assert Reader().read(stream[at : at + 1] for at in range(len(stream))) == whole
    for at in range(1, len(stream), 1 if len(stream) < 400 else 37):
        assert Reader().read([stream[:at], stream[at:]]) == whole, f"cut at {at}"


@pytest.mark.parametrize("stream", STREAMS)
def test_what_is_accepted_is_one_message_to_another_parser(stream: bytes) -> None:
    seen = Reader().read([stream])
    for position, (kind, value) in enumerate(seen):
        if kind != "head" or value[4] or value[0] == b"CONNECT":
            continue
        following = [what for what, _ in seen[position + 1 : position + 3]]
        if "end" not in following:
            continue
        body = seen[position + 1][1] if following[0] == "data" else b""
        fields = [
            (name, text) for name, text in value[3] if name not in (b"transfer-encoding", b"content-length")
        ]
        wire = b"%b %b HTTP/1.1\r\nhost: %b\r\n" % (value[0], value[1], value[2] or b"-")
        wire += (
            b"".join(b"%b: %b\r\n" % field for field in fields)
            + b"content-length: %d\r\n\r\n" % len(body)
            + body
        )
        other = h11.Connection(h11.SERVER)
        other.receive_data(wire)
        events = []
        while (event := other.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            events.append(event)
        assert isinstance(events[0], h11.Request)
        assert b"".join(bytes(e.data) for e in events if isinstance(e, h11.Data)) == body
        assert isinstance(events[-1], h11.EndOfMessage)
        assert other.trailing_data[0] == b""
