"""The PROXY protocol's header at the beginning of a connection (haproxy's proxy-protocol.txt, versions 1 and 2).

Rule: pure; looks at bytes that stay in the socket and never reads past the header. What it cannot understand is refused,
never passed on as data.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V1 = b"PROXY "
_LONGEST_V1 = 107


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What was found: how long the header is, and whose connection this is; None: as it is."""

    size: int
    remote: tuple[str, int] | None = None
    local: tuple[str, int] | None = None


class BadHeader(ValueError):
    """Not a header of the PROXY protocol."""


NO_HEADER = ProxyHeader(0)


def read_header(data: bytes, *, optional: bool = False) -> ProxyHeader | None:
    """The header, None while it is incomplete. Raises BadHeader; with `optional`, other bytes are NO_HEADER."""
    if data.startswith((_SIGNATURE[: len(data)], _SIGNATURE)):
        return None if len(data) < 16 else _binary(data)
    if data.startswith((_V1[: len(data)], _V1)):
        end = data.find(b"\r\n", 0, _LONGEST_V1)
        if end >= 0:
            return _text(data[:end], end + 2)
        if len(data) < _LONGEST_V1:
            return None
    elif optional:
        return NO_HEADER
    raise BadHeader("no PROXY protocol header")


def _text(line: bytes, size: int) -> ProxyHeader:
    words = line.decode("ascii", "replace").split(" ")
    if words[1:2] == ["UNKNOWN"]:
        return ProxyHeader(size)
    if len(words) != 6 or words[1] not in ("TCP4", "TCP6"):
        raise BadHeader("neither TCP4, TCP6 nor UNKNOWN")
    version = 4 if words[1] == "TCP4" else 6
    return ProxyHeader(size, _end(words[2], words[4], version), _end(words[3], words[5], version))


def _end(host: str, port: str, version: int) -> tuple[str, int]:
    try:
        address = ipaddress.ip_address(host)
    except ValueError as error:
        raise BadHeader(str(error)) from error
    if address.version != version or not port.isdigit() or int(port) > 65535:
        raise BadHeader("an address or port of another kind")
    return str(address), int(port)


def _binary(data: bytes) -> ProxyHeader | None:
    command, family, length = data[12], data[13], int.from_bytes(data[14:16])
    if command >> 4 != 2 or command & 0xF > 1:
        raise BadHeader("version or command")
    if len(data) < 16 + length:
        return None
    size = 16 + length
    if command & 0xF == 0:
        return ProxyHeader(size)  # LOCAL: the sender's own
    width = {0x11: 4, 0x21: 16}.get(family, 0)
    if not width or length < 2 * width + 4:
        raise BadHeader("address family")
    ends, ports = data[16 : 16 + 2 * width], data[16 + 2 * width :]
    return ProxyHeader(
        size,
        (str(ipaddress.ip_address(ends[:width])), int.from_bytes(ports[:2])),
        (str(ipaddress.ip_address(ends[width:])), int.from_bytes(ports[2:4])),
    )
