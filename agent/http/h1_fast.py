"""HTTP/1.1 codecs on h11r, the ones for production.

Rule: h1_plain reads the heads that are as nearly all are, h11r finds every other message from its first byte, h1_message
judges them, the sink hears of them; one h11r connection reads one message, because what we send is written by h1_encode
and h11r need not follow it.
Not for: sending, connections, timeouts.
"""

from __future__ import annotations

import re
from typing import Any, Final

import h11r

from agent.http.h1_chunks import ChunkedBody
from agent.http.h1_message import (
    CHUNKED,
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
    judge_authority,
    judge_request,
    judge_response,
    too_many,
)
from agent.http.h1_plain import PlainHead, plain_request, plain_response
from agent.http.headers import Headers

_SERVER: Final = h11r.Role.SERVER
_CLIENT: Final = h11r.Role.CLIENT
_Request = h11r.Request
_Data = h11r.Data
_End = h11r.EndOfMessage
_Response = h11r.Response
_Informational = h11r.InformationalResponse
_DONE: Final = h11r.State.DONE
_SENDING_BODY: Final = h11r.State.SEND_BODY
_HOST: Final = ((b"host", b"-"),)
_MARK: Final = b"host: " + NO_HOST + b"\r\n"
_HOSTS: Final = re.compile(rb"^host:([^\r\n]*)", re.MULTILINE)
_H11R_HEADERS: Final = 65535
_STATUS_LINE: Final = re.compile(rb"[\r\n]*HTTP/([0-9]\.[0-9]) ([2-9][0-9][0-9])(?=[ \r\n])")
_LAST_CHUNK: Final = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"


class FastServerCodec(ServerCodec):
    """Reads requests. Invariant: `_parser` reads the request in progress and has seen no byte of an earlier one; while
    `_plain`, it has seen nothing, `_left` bytes of the body are to come, and `_rest` is what follows them."""

    __slots__ = ("_between", "_first", "_left", "_limits", "_old", "_parser", "_plain", "_rest", "_sink")

    def __init__(self, sink: RequestSink, limits: Limits) -> None:
        self._sink = sink
        self._limits = limits
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
            _SERVER, max_head_bytes=self._limits.max_head_bytes, max_header_count=_H11R_HEADERS
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
            elif kind is _Data:
                sink.request_data(event.data)
            elif kind is _End:
                trailers = event.trailers
                sink.request_end(Headers.of_wire(trailers) if trailers and self._limits.trailers else None)
                return
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


class FastClientCodec(ClientCodec):
    """Reads responses. Invariant: between messages neither `_awaiting` nor a parser nor a body to come is there, so bytes
    that come then are garbage; `_awaiting` means that nothing of the response has been read."""

    __slots__ = (
        "_awaiting", "_chunks", "_first", "_left", "_limits", "_method", "_parser", "_rest", "_sink", "_told", "_upgrade",
        "_used",
    )  # fmt: skip

    def __init__(self, sink: ResponseSink, limits: Limits) -> None:
        self._first = b""
        """Of a head that the parser has not read to its end."""
        self._told: tuple[int, bytes] | None = None
        """Status and version of a head that was changed for the parser."""
        self._chunks: ChunkedBody | None = None
        """Reads the body in progress."""
        self._sink = sink
        self._limits = limits
        self._awaiting = False
        self._parser: h11r.Connection | None = None
        self._method = b""
        self._upgrade = b""
        self._left = 0
        """Bytes to come of a body whose head was plain."""
        self._rest = b""
        self._used: h11r.Connection | None = None
        """A parser that has read a whole response and can read the next one."""

    def expect(self, method: bytes, upgrade: bytes) -> None:
        """See ClientCodec."""
        self._method = method
        self._upgrade = upgrade
        self._awaiting = True

    def receive(self, data: bytes) -> None:
        """See ClientCodec."""
        if self._awaiting:
            self._awaiting = False
            limits = self._limits
            if not self._upgrade and self._method != b"HEAD" and not limits.cases:
                plain = plain_response(data, limits.max_head_bytes, limits.max_headers)
                if plain is not None:
                    self._plain_head(plain, data)
                    return
            self._prepare()
        if self._left:
            self._plain_data(data)
            return
        if self._chunks is not None:
            self._chunked_data(self._chunks, data)
            return
        parser = self._parser
        if parser is None:
            self._rest += data
            return
        reading_head = parser.peer_state is not _SENDING_BODY
        if reading_head:
            self._first = self._first + data if self._first else data
        try:
            parser.receive_data(data)
            self._advance(parser)
        except h11r.RemoteProtocolError as error:
            if not reading_head or not self._read_again():
                raise H1Violation(502, "http1.codec_error", str(error)) from None

    def _read_again(self) -> bool:
        """A head that h11r refuses and Envoy takes: a status from 600 on, or a version other than 1.1 with chunks. It is
        read with 200 and HTTP/1.1 in their place."""
        match = _STATUS_LINE.match(self._first)
        if match is None or self._told is not None:
            return False
        status = match[2] if int(match[2]) < 600 else b"200"
        head = b"HTTP/1.1 " + status + self._first[match.end() :]
        self._used = None
        self._prepare()
        self._told = (int(match[2]), match[1])
        parser = self._parser
        assert parser is not None
        try:
            parser.receive_data(head)
            self._advance(parser)
        except h11r.RemoteProtocolError:
            return False
        return True

    def _plain_head(self, plain: PlainHead, data: bytes) -> None:
        """A response whose head was read without the parser, and what came with it."""
        self._left = plain.length
        self._sink.response_head(judge_response(plain.status, plain.headers, False, self._method))
        if not self._left:
            self._rest = data[plain.start :]
            self._sink.response_end(None)
        elif len(data) > plain.start:
            self._plain_data(data[plain.start :])

    def _plain_data(self, data: bytes) -> None:
        left = self._left
        if len(data) > left:
            self._rest = data[left:]
            data = data[:left]
        self._left = left - len(data)
        self._sink.response_data(data)
        if not self._left:
            self._sink.response_end(None)

    def _chunked_data(self, chunks: ChunkedBody, data: bytes) -> None:
        content = chunks.receive(data)
        if content:
            self._sink.response_data(content)
        if chunks.error and self._chunks is chunks:
            raise H1Violation(502, "http1.codec_error", chunks.error)
        if chunks.done and self._chunks is chunks:
            self._chunks = None
            self._rest = chunks.rest
            self._sink.response_end(self._trailers(chunks.trailers) if chunks.trailers else None)

    def _trailers(self, lines: bytes) -> Headers | None:
        """Field lines after the last chunk, judged by the parser."""
        parser = h11r.Connection(
            _CLIENT, max_head_bytes=self._limits.max_head_bytes, max_header_count=_H11R_HEADERS
        )
        parser.send_request(b"GET", b"/", _HOST)
        parser.end_of_message()
        try:
            parser.receive_data(_LAST_CHUNK + lines + b"\r\n")
            parser.next_event()
            event: Any = parser.next_event()
        except h11r.RemoteProtocolError as error:
            raise H1Violation(502, "http1.codec_error", str(error)) from None
        fields = event.trailers if type(event) is _End else None
        return Headers.of_wire(fields) if fields and self._limits.trailers else None

    def _prepare(self) -> None:
        """A parser that knows what was asked."""
        parser = self._used
        if parser is None:
            parser = h11r.Connection(
                _CLIENT, max_head_bytes=self._limits.max_head_bytes, max_header_count=_H11R_HEADERS
            )
        else:
            self._used = None
        self._parser = parser
        self._first = b""
        self._told = None
        method, upgrade = self._method, self._upgrade
        if upgrade and upgrade != b"connect":
            parser.send_request(method, b"/", (*_HOST, (b"upgrade", upgrade), (b"connection", b"upgrade")))
        else:
            parser.send_request(method, b"/", _HOST)
        parser.end_of_message()

    def end_of_input(self) -> None:
        """See ClientCodec."""
        if self._left or self._chunks is not None:
            raise H1Violation(502, "http1.codec_error", "the response ended before its body did")
        if self._awaiting or self._parser is not None:
            self.receive(b"")

    def leftovers(self) -> bytes:
        """See ClientCodec."""
        parser, rest = self._parser, self._rest
        if parser is not None:
            rest = parser.trailing_data[0] + rest
        if rest:
            self._rest = b""
        return rest

    def _advance(self, parser: h11r.Connection) -> None:
        sink = self._sink
        while True:
            event: Any = parser.next_event()
            kind = type(event)
            if kind is _Response:
                fields = event.headers
                if len(fields) > self._limits.max_headers:
                    raise H1Violation(502, "http1.too_many_headers", "too many headers")
                told = self._told
                status, version = (event.status_code, event.http_version) if told is None else told
                head = judge_response(
                    status, headers_of_wire(fields, self._limits), version != b"1.1", self._method
                )
                if head.length == CHUNKED:
                    rest = parser.trailing_data[0]
                    self._parser = None
                    self._chunks = chunks = ChunkedBody(self._limits.max_head_bytes)
                    sink.response_head(head)
                    if rest and self._chunks is chunks:
                        self._chunked_data(chunks, rest)
                    return
                sink.response_head(head)
            elif kind is _Data:
                sink.response_data(event.data)
            elif kind is _End:
                self._parser = None
                if parser.buffered_nbytes:
                    self._rest = parser.trailing_data[0]
                elif parser.peer_state is _DONE and parser.local_state is _DONE:
                    parser.start_next_cycle()
                    self._used = parser
                trailers = event.trailers
                sink.response_end(Headers.of_wire(trailers) if trailers and self._limits.trailers else None)
                return
            elif kind is _Informational:
                self._first = parser.trailing_data[0]
                sink.informational(event.status_code, Headers.of_wire(event.headers))
            else:
                return
            if parser is not self._parser:
                return
