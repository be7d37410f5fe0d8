"""Sockets of the host process itself: marked, so that the capture rules leave them alone.

Rule: every socket that the host process opens to others comes from here. The mark needs CAP_NET_ADMIN (or
CAP_NET_RAW); without it the rule for the agent's own user does the same job, so a refusal is not an error.
Not for: the workers' sockets (`agent/worker`).
"""

from __future__ import annotations

import socket

import trio

from agent.host.capture.rules import HOST_MARK
from wire.liveness import end_when_peer_is_gone


def mark(sock: socket.socket | trio.socket.SocketType) -> bool:
    """Set SO_MARK; False when this process may not."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, HOST_MARK)
    except PermissionError:
        return False
    return True


async def connect_tcp(host: str, port: int) -> trio.SocketStream:
    """A marked TCP connection to a name or address, addresses tried in turn; OSError when none answers."""
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    errors: list[OSError] = []
    for family, kind, protocol, _, address in found:
        sock = trio.socket.socket(family, kind, protocol)
        try:
            mark(sock)
            end_when_peer_is_gone(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await sock.connect(address)
        except OSError as error:
            sock.close()
            errors.append(error)
        except BaseException:
            sock.close()
            raise
        else:
            return trio.SocketStream(sock)
    raise errors[-1] if errors else OSError(f"{host} has no address")
