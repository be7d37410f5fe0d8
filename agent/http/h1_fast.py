"""The HTTP/1.1 server codec on h11r, the one for production (the client's is h1_fast_client).

Rule: h1_plain reads the heads that are as nearly all are, h11r finds every other message from its first byte, h1_message
judges them, the sink hears of them; one h11r connection reads one message, because what we send is written by h1_encode
and h11r need not follow it. The pieces of a body that came together go on together, as in Envoy, and one call reads
PIECES of them at most.
Not for: sending, connections, timeouts.
"""

from __future__ import annotations

import re
from typing import Any, Final

import h11r

from agent.http.h1_chunks import PIECES
from agent.http.h1_closed import NO_REQUESTS
from agent.http.h1_message import (
    NO_HOST,
    H1Violation,
    Limits,
    RequestSink,
    ServerCodec,
    as_http11,
    classify_refused,
    classify_request_error,
    drop_length,
    headers_of_wire,
    judge_authority,
    judge_request,
    too_many,
)
from agent.http.h1_plain import PlainHead, plain_request
from agent.http.headers import Headers

_SERVER: Final = h11r.Role.SERVER
_Request = h11r.Request
_Data = h11r.Data
_End = h11r.EndOfMessage
_MARK: Final = b"host: " + NO_HOST + b"\r\n"
_HOSTS: Final = re.compile(rb"^host:([^\r\n]*)", re.MULTILINE)
H11R_HEADERS: Final = 65535


class FastServerCodec(ServerCodec):
    """Reads requests. Invariant: `_parser` reads the request in progress and has seen no byte of an earlier one; while
    `_plain`, it has seen nothing, `_left` bytes of the body are to come, and `_rest` is what follows them."""

    __slots__ = (
        "_between",
        "_first",
        "_left",
        "_limits",
        "_old",
        "_parser",
        "_plain",
        "_rest",
        "_sink",
        "more",
    )

    def __init__(self, sink: RequestSink, limits: Limits) -> None:
        self._sink = sink
        self._limits = limits
        self.more = False
        self._between = True
        self._first = b""
        self._plain = False
        self._left = 0
        self._rest = b""
        self._old = False
        """The head is of another version, and was changed to one of HTTP/1.1 for the parser."""
        self._parser = self._new()

    def _new(self) -> h11r.Connection:
        return h11r.Connection(
            _SERVER, max_head_bytes=self._limits.max_head_bytes, max_header_count=H11R_HEADERS
        )

    def receive(self, data: bytes) -> None:
        """See ServerCodec."""
        if self._plain:
            self._plain_data(data)
            return
        if self._between:
            limits = self._limits
            if not self._first and not limits.cases:
                plain = plain_request(data, limits.max_head_bytes, limits.max_headers)
                if plain is not None:
                    self._plain_head(plain, data)
                    return
            self._first = self._first + data if self._first else data
        parser = self._parser
        try:
            parser.receive_data(data)
            self._advance(parser)
        except h11r.RemoteProtocolError as error:
            self._trouble(error, data)

    def _plain_head(self, plain: PlainHead, data: bytes) -> None:
        """A request whose head was read without the parser, and what came with it."""
        self._between = False
        self._plain = True
        self._left = plain.length
        head = judge_request(plain.method, plain.target, plain.headers, False, self._limits)
        self._sink.request_head(head)
        if not self._left:
            self._rest = data[plain.start :]
            self._sink.request_end(None)
        elif len(data) > plain.start:
            self._plain_data(data[plain.start :])

    def _plain_data(self, data: bytes) -> None:
        """Bytes after a plain head: of its body, then of the next request."""
        left = self._left
        if not left:
            self._rest += data
            return
        if len(data) > left:
            self._rest = data[left:]
            data = data[:left]
        self._left = left - len(data)
        self._sink.request_data(data)
        if not self._left:
            self._sink.request_end(None)

    def go_on(self) -> None:
        """See ServerCodec."""
        self.more = False
        try:
            self._advance(self._parser)
        except h11r.RemoteProtocolError as error:
            self._trouble(error, b"")

    def close(self) -> None:
        """See ServerCodec."""
        self._sink = NO_REQUESTS
        self.more = False

    def end_of_input(self) -> bool:
        """See ServerCodec."""
        return self._between and not self._parser.buffered_nbytes

    def next_request(self) -> None:
        """See ServerCodec."""
        if self._plain:
            rest, self._rest = self._rest, b""
            self._plain = False
            self._between = True
            if rest:
                self.receive(rest)
            return
        parser = self._parser
        rest = parser.trailing_data[0] if parser.buffered_nbytes else b""
        self._parser = self._new()
        self.more = False
        self._between = True
        self._first = b""
        self._old = False
        if rest:
            self.receive(rest)

    def _trouble(self, error: h11r.RemoteProtocolError, data: bytes) -> None:
        """The parser refuses: what it is too strict about is read in another way, the rest is a violation."""
        text = str(error)
        if self._between and self._limits.accept_old and not self._old:
            changed = as_http11(self._first)
            if changed is not None:
                self._old = True
                self._read_old(changed)
                return
        if self._between and "Host field" in text:
            self._read_without_host(error)
        elif self._between and self._limits.chunked_length and "cannot be combined" in text:
            self._read_again(drop_length(self._first))
        else:
            raise self._violation(error, data) from None

    def _read_old(self, data: bytes) -> None:
        """Read a head of another version, changed to one of HTTP/1.1."""
        parser = self._parser = self._new()
        self._first = data
        try:
            parser.receive_data(data)
            self._advance(parser)
        except h11r.RemoteProtocolError as error:
            self._trouble(error, data)

    def _read_without_host(self, error: h11r.RemoteProtocolError) -> None:
        """A request that h11r refuses for its Host field. Where there is none, Envoy logs the request and answers it, or
        takes the host of an absolute-form target: read it with a mark in the field's place."""
        line, _, rest = self._first.lstrip(b"\r\n").partition(b"\n")
        head = rest.partition(b"\n\r\n")[0].lower()
        hosts = _HOSTS.findall(head)
        if len(hosts) == 1:
            judge_authority(hosts[0].strip())
        if hosts:
            raise H1Violation(400, "http1.codec_error", str(error))
        self._read_again(line + b"\n" + _MARK + rest)

    def _read_again(self, data: bytes) -> None:
        """Read a head that was changed so that the parser takes it."""
        parser = self._parser = self._new()
        self._first = b""
        try:
            parser.receive_data(data)
            self._advance(parser)
        except h11r.RemoteProtocolError as error:
            raise self._violation(error, data) from None

    def leftovers(self) -> bytes:
        """See ServerCodec."""
        return self._rest if self._plain else self._parser.trailing_data[0]

    def _advance(self, parser: h11r.Connection) -> None:
        sink = self._sink
        while True:
            event: Any = parser.next_event()
            kind = type(event)
            if kind is _Data:
                event, data, more = _gather(parser, event)
                sink.request_data(data)
                if more:
                    self.more = True
                    return
                kind = type(event)
            if kind is _Request:
                fields = event.headers
                limits = self._limits
                if len(fields) > limits.max_headers:
                    raise too_many("too_many_headers")
                self._between = False
                self._first = b""
                old = self._old or event.http_version != b"1.1"
                head = judge_request(event.method, event.target, headers_of_wire(fields, limits), old, limits)
                sink.request_head(head)
                if head.ended and not head.upgrade and not parser.buffered_nbytes:
                    # What follows is known: a request without a body ends with its head.
                    sink.request_end(None)
                    return
            elif kind is _End:
                trailers = event.trailers
                sink.request_end(Headers.of_wire(trailers) if trailers and self._limits.trailers else None)
                return
            elif isinstance(event, h11r.RemoteProtocolError):
                error, event = event, None
                try:
                    raise error
                finally:
                    del error  # its traceback has this frame, which would have it: a cycle
            else:
                return

    def _violation(self, error: h11r.RemoteProtocolError, data: bytes) -> H1Violation:
        if error.suggested_status_code == 431:
            return too_many("headers_too_large")
        if self._between:
            other = classify_request_error(self._first.lstrip(b"\r\n"))
            if other is not None:
                return other
        text = str(error)
        if "cannot be combined" in text:
            return H1Violation(400, "http1.content_length_and_chunked_not_allowed", text)
        if (
            error.suggested_status_code == 501
            or "transfer coding" in text
            or "Transfer-Encoding field" in text
            or "HTTP/1.0 framing" in text
        ):
            return H1Violation(501, "http1.invalid_transfer_encoding", text)
        return classify_refused(self._first or data, text)


def _gather(parser: h11r.Connection, event: Any) -> tuple[Any, bytes, bool]:
    """The event after a piece of a body and those that follow it, the body's bytes, and whether there are so many pieces
    that the rest must wait. A parser's refusal comes as the event, after the bytes before it."""
    data: bytes = event.data
    pieces: list[bytes] | None = None
    budget = PIECES
    while True:
        try:
            event = parser.next_event()
        except h11r.RemoteProtocolError as error:
            event = error.with_traceback(
                None
            )  # which would have this frame, and the frame the event: a cycle
        if type(event) is not _Data:
            return event, data if pieces is None else b"".join(pieces), False
        if pieces is None:
            pieces = [data]
        pieces.append(event.data)
        budget -= 1
        if budget <= 0:
            return event, b"".join(pieces), True
