"""TCP connections whose other end vanished without a word (power, a changed address) end within a minute.

Rule: every long-lived connection of ours has this, on both sides; options of a listening socket pass on to what it accepts.
Source: tcp(7): TCP_KEEPIDLE, TCP_KEEPINTVL, TCP_KEEPCNT, TCP_USER_TIMEOUT (for data that nobody acknowledges).
"""

from __future__ import annotations

import socket

import trio

_IDLE_SECONDS, _INTERVAL_SECONDS, _PROBES = 10, 5, 3
_UNACKNOWLEDGED_SECONDS = 60
"""Also the longest time that a peer may read nothing while something waits for it."""


def end_when_peer_is_gone(sock: socket.socket | trio.socket.SocketType) -> None:
    """Have the kernel look whether the other end is there."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _INTERVAL_SECONDS)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_SECONDS * 1000)
