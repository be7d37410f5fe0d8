"""The HTTP/1.1 client codec on h11r, the one for production.

Rule: as h1_fast: h1_plain reads nearly all heads, h11r the others, h1_chunks the bodies that h11r is too strict about;
h1_message judges. One call reads PIECES chunks at most, an informational head counts as _INFORMATIONAL of them.
Not for: sending, connections, timeouts.
"""

from __future__ import annotations

import re
from typing import Any, Final

import h11r

from agent.http.h1_chunks import PIECES, ChunkedBody
from agent.http.h1_closed import NO_RESPONSES
from agent.http.h1_fast import H11R_HEADERS
from agent.http.h1_message import (
    CHUNKED,
    ClientCodec,
    H1Violation,
    Limits,
    ResponseSink,
    headers_of_wire,
    judge_response,
)
from agent.http.h1_plain import PlainHead, plain_response
from agent.http.headers import Headers

_CLIENT: Final = h11r.Role.CLIENT
_Data = h11r.Data
_End = h11r.EndOfMessage
_Response = h11r.Response
_Informational = h11r.InformationalResponse
_DONE: Final = h11r.State.DONE
_SENDING_BODY: Final = h11r.State.SEND_BODY
_HOST: Final = ((b"host", b"-"),)
_INFORMATIONAL: Final = 4
_STATUS_LINE: Final = re.compile(rb"[\r\n]*HTTP/([0-9]\.[0-9]) ([2-9][0-9][0-9])(?=[ \r\n])")
_LAST_CHUNK: Final = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\n"


class FastClientCodec(ClientCodec):
    """Reads responses. Invariant: between messages neither `_awaiting` nor a parser nor a body to come is there, so bytes
    that come then are garbage; `_awaiting` means that nothing of the response has been read."""

    __slots__ = (
        "_awaiting", "_chunks", "_first", "_left", "_limits", "_method", "_parser", "_rest", "_sink", "_told", "_upgrade",
        "_used", "more",
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
        self.more = False
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
        if chunks.more and self._chunks is chunks:
            self.more = True
        if chunks.done and self._chunks is chunks:
            self._chunks = None
            self._rest = chunks.rest
            self._sink.response_end(self._trailers(chunks.trailers) if chunks.trailers else None)

    def _trailers(self, lines: bytes) -> Headers | None:
        """Field lines after the last chunk, judged by the parser."""
        parser = h11r.Connection(
            _CLIENT, max_head_bytes=self._limits.max_head_bytes, max_header_count=H11R_HEADERS
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
                _CLIENT, max_head_bytes=self._limits.max_head_bytes, max_header_count=H11R_HEADERS
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

    def go_on(self) -> None:
        """See ClientCodec."""
        self.more = False
        if self._chunks is not None:
            self._chunked_data(self._chunks, b"")
            return
        parser = self._parser
        if parser is None:
            return
        try:
            self._advance(parser)
        except h11r.RemoteProtocolError as error:
            if not self._read_again():
                raise H1Violation(502, "http1.codec_error", str(error)) from None

    def close(self) -> None:
        """See ClientCodec."""
        self._sink = NO_RESPONSES
        self.more = False

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
        budget = PIECES
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
                budget -= _INFORMATIONAL
                if budget <= 0 and event.status_code != 101:
                    self.more = True
                    return
            else:
                return
            if parser is not self._parser:
                return
