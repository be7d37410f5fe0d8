"""Listening sockets.

Rule: every worker has its own, by SO_REUSEPORT, so that the kernel spreads connections and a worker can leave alone.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from contextlib import suppress
from pathlib import Path

from agent.table.listener import Address

_SIOCGIFADDR = 0x8915


def bind(address: Address, *, transparent: bool = False, backlog: int = 4096) -> socket.socket:
    """A listening, non-blocking socket. Raises OSError with the address in its text."""
    try:
        return _unix(address.path, backlog) if address.path else _inet(address, transparent, backlog)
    except OSError as error:
        where = address.path or f"{address.host}:{address.port}"
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from error


def host_address() -> str:
    """The first IPv4 address of the host that is not loopback, as Envoy's local address; empty where there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        for _, name in socket.if_nameindex():
            with suppress(OSError):
                answer = fcntl.ioctl(sock, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                address = socket.inet_ntoa(answer[20:24])
                if not address.startswith("127."):
                    return address
    return ""


def _inet(address: Address, transparent: bool, backlog: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if transparent:
            sock.setsockopt(socket.SOL_IP, socket.IP_TRANSPARENT, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if address.ipv4_compat else 1)
        sock.bind((address.host, address.port))
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock


def _unix(path: str, backlog: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if path.startswith("@"):
            sock.bind("\0" + path[1:])
        else:
            with suppress(FileNotFoundError):
                Path(path).unlink()
            sock.bind(path)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    return sock
