"""Ports for programs that must be told one before they start.

Rule: a port stays held while this process lives and until it has given many others, by a socket that is bound and
never listens. The kernel gives it to nobody who asks for any port, neither to another run of the tests beside this one
nor to a connection's near end; who names it, with SO_REUSEADDR or SO_REUSEPORT as servers do, gets it. While nobody
listens, connections are refused.
Not for: servers of our own in a test; they bind port 0.
"""

from __future__ import annotations

import socket
from collections import deque

_MANY = 300
_held: deque[socket.socket] = deque()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is nobody else's."""
    holder = socket.socket()
    holder.bind(("127.0.0.1", 0))
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    _held.append(holder)
    if len(_held) > _MANY:
        _held.popleft().close()
    port: int = holder.getsockname()[1]
    return port
