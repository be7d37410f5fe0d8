"""A connection that policy refuses: closed so that the client sees an orderly end.

Rule: closing a socket with unread input sends RST, which a client cannot tell from a crash; so the end is sent first, and
the connection is closed when the client has ended too, or after a second. Of what still arrives one piece is thrown away,
the rest stays in the socket: reading it would be work without end.
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
        """See TransportOwner: thrown away, and no more is read."""
        self._transport.pause()

    def hung_up(self, broken: bool) -> None:
        """See TransportOwner."""
        self._close()

    def ended(self) -> None:
        """See TransportOwner."""
        self._close()

    def lost(self, reason: str) -> None:
        """See TransportOwner."""
        self._timer.close()

    def drained(self) -> None:
        """See TransportOwner: nothing is sent."""

    def _close(self) -> None:
        self._timer.close()
        self._transport.close()
