"""HTTP/1.1 codecs on h11, the reference: slower, and written by other people than h11r.

Rule: the same interface and the same verdicts as h1_fast, because h1_message judges for both; where h11 is more lenient
than h11r, what it lets through is refused here. Chosen by HOSTMESH_H1_CODEC=reference; tests run every case on both.
"""

from __future__ import annotations

import re
from typing import Any, Final

import h11

from agent.http.h1_closed import NO_REQUESTS, NO_RESPONSES
from agent.http.h1_message import (
    NO_HOST,
    ClientCodec,
    H1Violation,
    Limits,
    RequestSink,
    ResponseSink,
    ServerCodec,
    as_http11,
    classify_refused,
    classify_request_error,
    drop_length,
    headers_of_wire,
    judge_request,
    judge_response,
    too_many,
)
from agent.http.headers import Headers

_HOST: Final = [(b"host", b"-")]
_MARK: Final = b"host: " + NO_HOST + b"\r\n"
_FOLDED: Final = re.compile(rb"\n[ \t]")
_BARE_CR: Final = re.compile(rb"\r(?=[^\n])")
_LENGTH_LIST: Final = re.compile(rb"(?i)\ncontent-length:[^\n]*,")
_LENGTH: Final = re.compile(rb"(?i)\ncontent-length:")
_HEAD_END: Final = re.compile(rb"\n\r?\n")


class ReferenceServerCodec(ServerCodec):
    """Reads requests. Invariant: `_parser` reads the request in progress and has seen no byte of an earlier one."""

    more = False

    def __init__(self, sink: RequestSink, limits: Limits) -> None:
        self._sink = sink
        self._limits = limits
        self._between = True
        self._first = b""
        self._rest = b""
        self._done = False
        self._old = False
        """The head is of another version, and was changed to one of HTTP/1.1 for the parser."""
        self._parser = self._new()

    def _new(self) -> h11.Connection:
        return h11.Connection(h11.SERVER, max_incomplete_event_size=self._limits.max_head_bytes)

    def receive(self, data: bytes) -> None:
        """See ServerCodec."""
        if self._done:
            self._rest += data
            return
        if self._between:
            # h11 is given heads whole: what it repairs in them is refused first.
            self._first = (self._first + data).lstrip(b"\r\n") if not self._first else self._first + data
            if self._limits.accept_old and _HEAD_END.search(self._first):
                changed = as_http11(self._first)
                if changed is not None:
                    self._first, self._old = changed, True
            self._refuse_repairs(self._first)
            if not _HEAD_END.search(self._first):
                return
            data = self._first
        self._read(data)

    def go_on(self) -> None:
        """See ServerCodec: everything is read at once."""

    def close(self) -> None:
        """See ServerCodec."""
        self._sink = NO_REQUESTS

    def end_of_input(self) -> bool:
        """See ServerCodec."""
        return self._between and not self._first

    def next_request(self) -> None:
        """See ServerCodec."""
        rest = self._parser.trailing_data[0] + self._rest
        self._parser = self._new()
        self._between = True
        self._done = self._old = False
        self._first = self._rest = b""
        if rest:
            self.receive(rest)

    def leftovers(self) -> bytes:
        """See ServerCodec."""
        return bytes(self._parser.trailing_data[0]) + self._rest

    def _refuse_repairs(self, data: bytes) -> None:
        end = _HEAD_END.search(data)
        head = data[: end.start() + 1] if end is not None else data
        line, complete, _ = head.partition(b"\n")
        line = line.rstrip(b"\r")
        other = classify_request_error(head) if complete else None
        if other is not None and not line.endswith(b"HTTP/1.0"):
            raise other
        if len(head) > self._limits.max_head_bytes:
            raise too_many("headers_too_large")
        if _FOLDED.search(head) or _BARE_CR.search(head):
            raise H1Violation(400, "http1.codec_error", "folded header or bare CR")
        if len(_LENGTH.findall(head)) > 1 or _LENGTH_LIST.search(head):
            raise H1Violation(400, "http1.codec_error", "more than one content-length")

    def _read(self, data: bytes) -> None:
        try:
            self._parser.receive_data(data)
            self._advance()
        except h11.RemoteProtocolError as error:
            text = str(error)
            if self._between and "Missing mandatory Host" in text:
                line, _, rest = self._first.partition(b"\n")
                self._read_again(line + b"\n" + _MARK + rest)
            elif self._between and self._limits.chunked_length and b"chunked" in self._first.lower():
                self._read_again(drop_length(self._first))
            else:
                raise self._violation(error, data) from None

    def _read_again(self, data: bytes) -> None:
        self._parser = self._new()
        self._first = b""
        try:
            self._parser.receive_data(data)
            self._advance()
        except h11.RemoteProtocolError as error:
            raise self._violation(error, data) from None

    def _advance(self) -> None:
        parser = self._parser
        while True:
            event: Any = parser.next_event()
            if isinstance(event, h11.Request):
                fields = [(bytes(name), bytes(value)) for name, value in event.headers.raw_items()]
                if len(fields) > self._limits.max_headers:
                    raise too_many("too_many_headers")
                head = judge_request(
                    bytes(event.method), bytes(event.target), headers_of_wire(fields, self._limits),
                    self._old or event.http_version != b"1.1", self._limits,
                )  # fmt: skip
                self._between = False
                self._first = b""
                self._sink.request_head(head)
            elif isinstance(event, h11.Data):
                self._sink.request_data(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self._done = True
                trailers = [(bytes(name), bytes(value)) for name, value in event.headers.raw_items()]
                self._sink.request_end(
                    Headers.of_wire(trailers) if trailers and self._limits.trailers else None
                )
                return
            else:
                return
            if parser is not self._parser:
                return

    def _violation(self, error: h11.RemoteProtocolError, data: bytes) -> H1Violation:
        text = str(error)
        if error.error_status_hint == 431:
            return too_many("headers_too_large")
        if self._between:
            other = classify_request_error(self._first)
            if other is not None:
                return other
            if "ransfer" in text and _LENGTH.search(self._first):
                return H1Violation(400, "http1.content_length_and_chunked_not_allowed", text)
        if error.error_status_hint == 501 or "Transfer-Encoding" in text:
            return H1Violation(501, "http1.invalid_transfer_encoding", text)
        return classify_refused(self._first or data, text)


class ReferenceClientCodec(ClientCodec):
    """Reads responses. Invariant: between messages no parser is held, so bytes that come then are garbage."""

    more = False

    def __init__(self, sink: ResponseSink, limits: Limits) -> None:
        self._sink = sink
        self._limits = limits
        self._parser: h11.Connection | None = None
        self._method = b""
        self._rest = b""

    def expect(self, method: bytes, upgrade: bytes) -> None:
        """See ClientCodec."""
        self._method = method
        parser = self._parser = h11.Connection(
            h11.CLIENT, max_incomplete_event_size=self._limits.max_head_bytes
        )
        headers = list(_HOST)
        if upgrade and upgrade != b"connect":
            headers += [(b"upgrade", upgrade), (b"connection", b"upgrade")]
        parser.send(h11.Request(method=method, target=b"/", headers=headers))
        parser.send(h11.EndOfMessage())

    def receive(self, data: bytes) -> None:
        """See ClientCodec."""
        if self._parser is None:
            self._rest += data
            return
        try:
            self._parser.receive_data(data)
            self._advance(self._parser)
        except h11.RemoteProtocolError as error:
            raise H1Violation(502, "http1.codec_error", str(error)) from None

    def go_on(self) -> None:
        """See ClientCodec: everything is read at once."""

    def close(self) -> None:
        """See ClientCodec."""
        self._sink = NO_RESPONSES

    def end_of_input(self) -> None:
        """See ClientCodec."""
        if self._parser is not None:
            self.receive(b"")

    def leftovers(self) -> bytes:
        """See ClientCodec."""
        parser, rest = self._parser, self._rest
        if parser is not None:
            rest = bytes(parser.trailing_data[0]) + rest
        self._rest = b""
        return rest

    def _advance(self, parser: h11.Connection) -> None:
        while True:
            event: Any = parser.next_event()
            if isinstance(event, h11.Response):
                fields = [(bytes(name), bytes(value)) for name, value in event.headers.raw_items()]
                if len(fields) > self._limits.max_headers:
                    raise H1Violation(502, "http1.too_many_headers", "too many headers")
                self._sink.response_head(
                    judge_response(
                        event.status_code,
                        headers_of_wire(fields, self._limits),
                        event.http_version != b"1.1",
                        self._method,
                    )
                )
            elif isinstance(event, h11.Data):
                self._sink.response_data(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                self._rest = bytes(parser.trailing_data[0])
                self._parser = None
                trailers = [(bytes(name), bytes(value)) for name, value in event.headers.raw_items()]
                self._sink.response_end(
                    Headers.of_wire(trailers) if trailers and self._limits.trailers else None
                )
                return
            elif isinstance(event, h11.InformationalResponse):
                fields = [(bytes(name), bytes(value)) for name, value in event.headers.raw_items()]
                self._sink.informational(event.status_code, Headers.of_wire(fields))
            else:
                return
            if parser is not self._parser:
                return
