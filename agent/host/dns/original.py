"""Where a redirected question was going, as connection tracking remembers it.

Rule: a question that is not about the mesh goes on to the very server that it was sent to, so that local resolvers, split
zones and VPN resolvers work as without the agent, and no question comes round again. UDP has no SO_ORIGINAL_DST: the
kernel is asked for the flow whose replies run from our listener to the client.
Not for: what to do where the kernel does not say (`forward` asks the host's resolvers then).
Source: linux/netfilter/nfnetlink_conntrack.h (CTA_TUPLE_ORIG, CTA_TUPLE_REPLY), netlink(7).
"""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Iterator

import trio

log = logging.getLogger("hostmesh.dns")

_NETLINK_NETFILTER = 12
_CONNTRACK_NEW, _CONNTRACK_GET = 0x100, 0x101
_REQUEST = 1
_TUPLE_ORIGINAL, _TUPLE_REPLY = 1, 2
_TUPLE_ADDRESSES, _TUPLE_PROTOCOL = 1, 2
_ADDRESSES: dict[int, tuple[int, int]] = {socket.AF_INET: (1, 2), socket.AF_INET6: (3, 4)}
"""CTA_IP_V4_SRC and _DST, CTA_IP_V6_SRC and _DST."""
_PROTOCOL, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3
_NESTED = 0x8000
_TYPE = 0x3FFF
_HEADERS = 16 + 4
_SO_ORIGINAL_DST = 80
_PATIENCE_SECONDS = 0.2
"""The kernel answers at once; this only bounds what must not happen."""

Endpoint = tuple[str, int]


class Flows:
    """The kernel's table of flows. Where it cannot be asked, every answer is None."""

    def __init__(self) -> None:
        self._socket: socket.socket | None = None
        self._reported = False

    def destination(self, client: Endpoint, listener: Endpoint) -> Endpoint | None:
        """Where the datagrams from `client` that arrive at `listener` were sent to; None when the kernel does not say, or
        when they were sent to the listener itself."""
        family = socket.AF_INET6 if ":" in listener[0] else socket.AF_INET
        try:
            answer = self._ask(request(family, client, listener))
        except OSError as error:
            self.close()
            if not self._reported:
                self._reported = True
                log.warning(
                    "connection tracking cannot be asked, questions go to resolv.conf's servers: %s", error
                )
            return None
        found = original_destination(family, answer)
        return found if found != listener else None

    def close(self) -> None:
        """Give the socket back; the next question opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _ask(self, message: bytes) -> bytes:
        if self._socket is None:
            self._socket = socket.socket(
                socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER
            )
            self._socket.settimeout(_PATIENCE_SECONDS)
            self._socket.bind((0, 0))
        self._socket.sendto(message, (0, 0))
        return self._socket.recv(8192)


def stream_destination(sock: socket.socket | trio.socket.SocketType, listener: Endpoint) -> Endpoint | None:
    """Where a redirected TCP connection was going; None when it was not redirected."""
    v6 = ":" in listener[0]
    try:
        raw = sock.getsockopt(
            socket.IPPROTO_IPV6 if v6 else socket.SOL_IP, _SO_ORIGINAL_DST, 28 if v6 else 16
        )
    except OSError:
        return None
    port = struct.unpack_from("!H", raw, 2)[0]
    host = socket.inet_ntop(socket.AF_INET6, raw[8:24]) if v6 else socket.inet_ntop(socket.AF_INET, raw[4:8])
    return (host, port) if (host, port) != listener else None


def request(family: int, client: Endpoint, listener: Endpoint) -> bytes:
    """Ask for the UDP flow whose replies run from `listener` to `client` (IPCTNL_MSG_CT_GET)."""
    source, destination = _ADDRESSES[family]
    addresses = _attribute(source, socket.inet_pton(family, listener[0]))
    addresses += _attribute(destination, socket.inet_pton(family, client[0].partition("%")[0]))
    protocol = _attribute(_PROTOCOL, bytes([socket.IPPROTO_UDP]))
    protocol += _attribute(_SOURCE_PORT, listener[1].to_bytes(2))
    protocol += _attribute(_DESTINATION_PORT, client[1].to_bytes(2))
    reply = _attribute(
        _TUPLE_REPLY | _NESTED,
        _attribute(_TUPLE_ADDRESSES | _NESTED, addresses) + _attribute(_TUPLE_PROTOCOL | _NESTED, protocol),
    )
    body = struct.pack("=BBH", family, 0, 0) + reply
    return struct.pack("=IHHII", 16 + len(body), _CONNTRACK_GET, _REQUEST, 0, 0) + body


def original_destination(family: int, answer: bytes) -> Endpoint | None:
    """The original destination in the kernel's answer; None for an error (no such flow) and for what is no answer."""
    if len(answer) < _HEADERS or struct.unpack_from("=H", answer, 4)[0] != _CONNTRACK_NEW:
        return None
    end = min(len(answer), struct.unpack_from("=I", answer)[0])
    original = dict(_attributes(answer[_HEADERS:end])).get(_TUPLE_ORIGINAL, b"")
    parts = dict(_attributes(original))
    address = dict(_attributes(parts.get(_TUPLE_ADDRESSES, b""))).get(_ADDRESSES[family][1], b"")
    port = dict(_attributes(parts.get(_TUPLE_PROTOCOL, b""))).get(_DESTINATION_PORT, b"")
    if len(address) != (16 if family == socket.AF_INET6 else 4) or len(port) != 2:
        return None
    return socket.inet_ntop(family, address), int.from_bytes(port)


def _attribute(kind: int, payload: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(payload), kind) + payload + bytes(-len(payload) % 4)


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            return
        yield kind & _TYPE, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
