"""Writing HTTP/1.1 messages as Envoy writes them (its HTTP/1 StreamEncoderImpl).

Rule: pure functions from values to bytes; the framing that a head announces is returned with it, so that the body can
only be written in that way.
Not for: which headers a message has (exchange, intake).
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from agent.http.headers import Headers, proper_case

FIXED: Final = 0
"""The body has a content-length, or there is none: its bytes are written as they are."""
CHUNKS: Final = 1
"""The body is written in chunks (RFC 9112 section 7.1)."""
CLOSE: Final = 2
"""The body ends with the connection."""

LAST_CHUNK: Final = b"0\r\n\r\n"
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

_BODILESS: Final = frozenset((b"GET", b"HEAD", b"DELETE", b"TRACE", b"CONNECT"))
_REASONS: Final = {status.value: status.phrase for status in HTTPStatus} | {
    302: "Found", 413: "Payload Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable",
    418: "Unknown", 422: "Unprocessable Entity", 509: "Bandwidth Limit Exceeded",
    599: "Last Unassigned Server Error Code",
}  # fmt: skip
_LINES: Final[dict[int, bytes]] = {
    status: b"HTTP/1.1 %d %s\r\n" % (status, _REASONS.get(status, "Unknown").encode())
    for status in range(100, 1000)
}
_COLON: Final = b": ".join


def response_head(
    status: int, headers: Headers, method: bytes, ended: bool, old: bool, proper: bool = False
) -> tuple[bytes, int]:
    """The bytes of a response head to a request with `method`, and the framing of its body.

    Adds `content-length: 0` or `transfer-encoding: chunked` where no length is known. `old` answers HTTP/1.0.
    """
    framing = FIXED
    if status < 200 or status == 204:
        headers.pop(b"content-length", None)
    elif b"content-length" not in headers and status != 304:
        if ended and method != b"HEAD":
            headers[b"content-length"] = b"0"
        elif old:
            framing = CLOSE
        else:
            headers[b"transfer-encoding"] = b"chunked"
            framing = FIXED if method == b"HEAD" or ended else CHUNKS
    line = _LINES[status]
    if old:
        line = line.replace(b"1.1", b"1.0", 1)
    return line + _fields(headers, proper), framing


def tunnel_head(status: int, headers: Headers) -> bytes:
    """The head of the response that turns CONNECT into a tunnel: no framing fields (RFC 9110 section 9.3.6)."""
    return _LINES[status] + _fields(headers, False)


def request_head(
    method: bytes, path: bytes, authority: bytes, headers: Headers, ended: bool, proper: bool = False
) -> tuple[bytes, int]:
    """The bytes of a request head, and the framing of its body. `headers` stays as it is, for another attempt."""
    framing = FIXED
    added = b""
    if b"content-length" not in headers:
        if not ended:
            added = b"%b: chunked\r\n" % _written(b"transfer-encoding", headers, proper)
            framing = CHUNKS
        elif method not in _BODILESS:
            added = b"%b: 0\r\n" % _written(b"content-length", headers, proper)
    line = b"%b %b HTTP/1.1\r\n%b: %b\r\n" % (method, path, _written(b"host", headers, proper), authority)
    if added:
        fields = _fields(headers, proper)
        return (line + fields[:-2] + added + b"\r\n" if headers else line + added + b"\r\n"), framing
    return line + _fields(headers, proper), framing


def chunk(data: bytes) -> bytes:
    """One chunk; `data` is not empty."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk(trailers: Headers | None) -> bytes:
    """The end of a chunked body."""
    if not trailers:
        return LAST_CHUNK
    return b"0\r\n" + _fields(trailers, False)


def _fields(headers: Headers, proper: bool) -> bytes:
    cases = headers.cases
    if cases is not None:
        return (
            b"".join([b"%b: %b\r\n" % (cases.of(name), value) for name, value in headers.fields()]) + b"\r\n"
        )
    if proper:
        return (
            b"".join([b"%b: %b\r\n" % (proper_case(name), value) for name, value in headers.fields()])
            + b"\r\n"
        )
    if not headers:
        return b"\r\n"
    return b"\r\n".join(map(_COLON, headers.fields())) + b"\r\n\r\n"


def _written(name: bytes, headers: Headers, proper: bool) -> bytes:
    """The spelling of a name among these headers."""
    if headers.cases is not None:
        return headers.cases.of(name)
    return proper_case(name) if proper else name
