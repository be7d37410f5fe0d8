"""Listening sockets.

Rule: every worker has its own, by SO_REUSEPORT, so that the kernel spreads connections and a worker can leave alone.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from pathlib import Path

from agent.table.listener import Address

_BACKLOG = 4096


def bind(address: Address, *, transparent: bool = False) -> socket.socket:
    """A listening, non-blocking socket. Raises OSError with the address in its text."""
    try:
        return _unix(address.path) if address.path else _inet(address, transparent)
    except OSError as error:
        where = address.path or f"{address.host}:{address.port}"
        raise OSError(error.errno, f"cannot listen on {where}: {error.strerror}") from error


def _inet(address: Address, transparent: bool) -> socket.socket:
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
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        if path.startswith("@"):
            sock.bind("\0" + path[1:])
        else:
            with suppress(FileNotFoundError):
                Path(path).unlink()
            sock.bind(path)
        sock.listen(_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock
