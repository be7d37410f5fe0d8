"""A connection that policy refuses: closed so that the client sees an orderly end.

Rule: closing a socket with unread input sends RST, which a client cannot tell from a crash; so the end is sent first, what
still arrives is thrown away, and the connection is closed when the client has ended too, or after a second.
Not for: deciding who is refused (agent/filters/network).
"""

from __future__ import annotations

from agent.worker.transport import PlainTransport, TransportOwner

_PATIENCE = 1.0


class Refusal(TransportOwner):
    """Owner of a refused connection until it is closed."""

    __slots__ = ("_timer", "_transport")

    def __init__(self, transport: PlainTransport) -> None:
        self._transport = transport
        self._timer = transport.reactor.timer(self._close)
        self._timer.set(transport.reactor.now + _PATIENCE)
        transport.owner = self
        transport.finish()

    def received(self, data: bytes) -> None:
        """See TransportOwner: thrown away."""

    def ended(self) -> None:
        """See TransportOwner."""
        self._close()

    def lost(self, reason: str) -> None:
        """See TransportOwner."""
        self._timer.cancel()

    def drained(self) -> None:
        """See TransportOwner: nothing is sent."""

    def _close(self) -> None:
        self._timer.cancel()
        self._transport.close()
