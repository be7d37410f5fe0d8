"""Heads of the shape that nearly all messages have, read at one go; everything else is left to the parser.

Rule: this reads less than h11r, never something else. A head is *plain* when it has come whole, every line ends in CRLF, every
byte is printable ASCII, every field name is one that the parser has let through before, no name comes twice, the version
is HTTP/1.1, and the body has a known length or there is none. In all other cases the answer is None and the parser
(h1_fast) begins at the first byte. Tests hold each plain reading against the parser's.
Not for: verdicts on what was read (h1_message), bodies.
"""

from __future__ import annotations

import re
from typing import Final

from agent.http.h1_message import METHODS
from agent.http.headers import KNOWN_NAMES, Headers

_PRINTABLE: Final = bytes(range(0x20, 0x7F))
_IN_TARGETS: Final = bytes(set(range(0x21, 0x7F)) - set(b'"#<>\\^`{|}'))
_HOST: Final = re.compile(rb"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,250}[A-Za-z0-9])?(?::[0-9]{1,5})?\Z")
_hosts: Final[set[bytes]] = set()
_REMEMBERED: Final = 1024
_BREAKS: Final = tuple(b"\r\n" * lines for lines in range(128))
"""What is left of so many lines when everything printable is taken out of them, less one."""
_MARGIN: Final = 256
"""Bytes that a head must stay under its limit, so that how they are counted makes no difference."""
_LONGEST: Final = 15
"""Digits of a content-length."""


class PlainHead:
    """A start line's parts and the fields. `start` is the offset of the body, `length` its bytes (-1: not said)."""

    __slots__ = ("headers", "length", "method", "start", "status", "target")

    def __init__(self, headers: Headers, start: int, length: int) -> None:
        self.headers = headers
        self.start = start
        self.length = length
        self.method = b""
        self.target = b""
        self.status = 0


def plain_request(data: bytes, max_bytes: int, max_fields: int) -> PlainHead | None:
    """The head of the request that `data` begins with, None where it is not plain."""
    head = _fields(data, max_bytes, max_fields)
    if head is None:
        return None
    parts = data[: data.index(b"\r\n")].split(b" ")
    if len(parts) != 3 or parts[2] != b"HTTP/1.1":
        return None
    method, target = parts[0], parts[1]
    if method not in METHODS or method == b"CONNECT":
        return None
    if target[:1] != b"/" or target.translate(None, _IN_TARGETS):
        return None
    first = head.headers.first
    host = first.get(b"host")
    if host is None or b"upgrade" in first:
        return None
    if host not in _hosts:
        if _HOST.match(host) is None:
            return None
        if len(_hosts) < _REMEMBERED:
            _hosts.add(host)
    head.length = max(head.length, 0)
    head.method = method
    head.target = target
    return head


def plain_response(data: bytes, max_bytes: int, max_fields: int) -> PlainHead | None:
    """The head of the response that `data` begins with, None where it is not plain: its length must be said, too."""
    if data[:9] != b"HTTP/1.1 ":
        return None
    head = _fields(data, max_bytes, max_fields)
    if head is None or head.length < 0:
        return None
    code = data[9:12]
    if not code.isdigit() or data[12:13] != b" ":
        return None
    status = int(code)
    if status < 200 or status > 599 or status == 204 or status == 304:
        return None
    head.status = status
    return head


def _fields(data: bytes, max_bytes: int, max_fields: int) -> PlainHead | None:
    """Everything but the start line."""
    end = data.find(b"\r\n\r\n")
    if end < 0 or end + _MARGIN > max_bytes:
        return None
    text = data[:end]
    lines = text.split(b"\r\n")
    count = len(lines)
    if count > max_fields or count >= len(_BREAKS) or text.translate(None, _PRINTABLE) != _BREAKS[count - 1]:
        return None
    headers = Headers()
    first = headers.first
    known = KNOWN_NAMES
    for number in range(1, count):
        name, colon, value = lines[number].partition(b":")
        lower = known.get(name)
        if lower is None or not colon or lower in first:
            return None
        first[lower] = value.strip(b" ")
    if b"transfer-encoding" in first:
        return None
    length = -1
    told = first.get(b"content-length")
    if told is not None:
        if not told.isdigit() or len(told) > _LONGEST:
            return None
        length = int(told)
    return PlainHead(headers, end + 4, length)
