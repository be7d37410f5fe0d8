"""What the first bytes of a connection say: TLS ClientHello (server name, ALPN) or the version of HTTP.

Rule: pure; looks at bytes that stay in the socket (MSG_PEEK) and never trusts a length in them. `None` means that more
bytes are needed. Sources: RFC 8446 section 4.1.2, RFC 6066 section 3, RFC 7301; Envoy's tls_inspector and http_inspector.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

MAX_HELLO = 16 * 1024 + 5
"""A ClientHello that does not fit one record is not inspected further."""
_REQUEST_LINE = re.compile(rb"[A-Za-z!#$%&'*+\-.^_`|~0-9]+ +[^ \r\n]+ +HTTP/(\d\.\d)\r?\n")
_METHODS = (
    b"GET ", b"HEAD ", b"POST ", b"PUT ", b"DELETE ", b"CONNECT ", b"OPTIONS ", b"TRACE ", b"PATCH ", b"PROPFIND ",
    b"REPORT ", b"SEARCH ", b"MKCOL ", b"COPY ", b"MOVE ", b"LOCK ", b"UNLOCK ", b"PURGE ", b"LINK ", b"UNLINK ",
)  # fmt: skip
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Hello:
    """A connection's first words."""

    tls: bool
    server_name: str = ""
    protocols: tuple[str, ...] = ()


NOT_TLS = Hello(False)


def client_hello(data: bytes) -> Hello | None:
    """Whether this is TLS, with what its ClientHello says."""
    if not data:
        return None
    if data[0] != 0x16 or (len(data) > 1 and data[1] != 3):
        return NOT_TLS
    if len(data) < 9:
        return None
    if data[5] != 1:
        return NOT_TLS
    record = 5 + int.from_bytes(data[3:5])
    if len(data) < min(record, MAX_HELLO):
        return None
    return _extensions(data[9:record])


def _extensions(body: bytes) -> Hello:
    """Walk over version, random, session id, cipher suites and compression to the extensions."""
    name = ""
    protocols: tuple[str, ...] = ()
    at = 34
    at += 1 + _number(body, at, 1)
    at += 2 + _number(body, at, 2)
    at += 1 + _number(body, at, 1)
    at += 2
    while at + 4 <= len(body):
        kind, size = _number(body, at, 2), _number(body, at + 2, 2)
        content = body[at + 4 : at + 4 + size]
        at += 4 + size
        if kind == 0 and len(content) >= 5 and content[2] == 0:
            name = content[5 : 5 + _number(content, 3, 2)].decode("ascii", "replace").lower()
        elif kind == 16:
            protocols = _names(content[2:])
    return Hello(True, name, protocols)


def _names(content: bytes) -> tuple[str, ...]:
    found = []
    at = 0
    while at < len(content):
        size = content[at]
        found.append(content[at + 1 : at + 1 + size].decode("ascii", "replace"))
        at += 1 + size
    return tuple(found)


def _number(data: bytes, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size])


def http_version(data: bytes) -> str | None:
    """`http/1.1`, `http/1.0`, `h2c`, or empty for what is not HTTP."""
    if _PREFACE.startswith(data[: len(_PREFACE)]) and data:
        return "h2c" if len(data) >= len(_PREFACE) else None
    if not any(method.startswith(data[: len(method)]) for method in _METHODS):
        return ""
    match = _REQUEST_LINE.match(data)
    if match is None:
        return None if b"\n" not in data and len(data) < 8192 else ""
    return {b"1.1": "http/1.1", b"1.0": "http/1.0"}.get(match[1], "")
