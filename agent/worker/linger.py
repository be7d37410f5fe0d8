"""The end of a connection: what is queued is sent, as long as that gets on; what still arrives is thrown away.

Rule: a `Linger` is the last owner of a transport and says once that the connection is closed: when the peer has ended too,
when everything is sent (`close_when_sent`), or after so many seconds in which nothing got on. Progress is what the peer's
kernel has taken, so a slow reader loses nothing and a stuck one is not kept. Of what arrives a little is read, lest the
close with unread input become a RST; the rest stays in the socket, because throwing it away would be work without end.
Not for: deciding that a connection ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.worker.transport import PlainTransport, TransportOwner

_DISCARD: Final = 65536
"""Bytes of input that are thrown away before reading stops."""


def _nothing() -> None:
    """Nobody counts this connection."""


class Linger(TransportOwner):
    """See the module. Invariant: `_over` is called once, when the transport is closed. Begin with one of `close_when_sent`,
    `finish`, `wait`."""

    __slots__ = ("_discarded", "_over", "_patience", "_timer", "_transport", "_unsent")

    def __init__(
        self, transport: PlainTransport, patience: float, over: Callable[[], None] = _nothing
    ) -> None:
        """`patience`: seconds without progress."""
        self._transport = transport
        self._patience = patience
        self._over = over
        self._discarded = 0
        self._timer = transport.reactor.timer(self._check)
        transport.owner = self
        transport.flush()
        self._unsent = transport.unsent()
        if not transport.closed:
            self._timer.set(transport.reactor.now + patience)

    def close_when_sent(self) -> None:
        """Close as soon as everything is sent."""
        self._transport.close_when_sent()

    def finish(self) -> None:
        """Send the end, and close when the peer ends too."""
        self._transport.finish()

    def wait(self) -> None:
        """Leave the end to the peer, who was told to close; close when it does not, or input that nobody reads fills up."""

    def close(self) -> None:
        """Close now."""
        self._transport.close()
        self._end()

    def _check(self) -> None:
        unsent = self._transport.unsent()
        if 0 < unsent < self._unsent:
            self._unsent = unsent
            self._timer.set(self._transport.reactor.now + self._patience)
        elif unsent == 0 < self._unsent:
            # The last of it has just arrived: the peer gets the time to read it before an end that may be a RST.
            self._unsent = 0
            self._timer.set(self._transport.reactor.now + self._patience)
        else:
            self.close()

    def _end(self) -> None:
        self._timer.close()
        over, self._over = self._over, _nothing
        over()

    # From the transport

    def received(self, data: bytes) -> None:
        """See TransportOwner."""
        self._discarded += len(data)
        if self._discarded >= _DISCARD:
            self._transport.pause()

    def drained(self) -> None:
        """See TransportOwner: nothing more is written."""

    def sent(self) -> None:
        """See TransportOwner."""
        self._end()

    def ended(self) -> None:
        """See TransportOwner: a peer that has sent its end may still read what is queued."""
        if self._transport.backlog:
            self._transport.close_when_sent()
        else:
            self.close()

    def hung_up(self, broken: bool) -> None:
        """See TransportOwner."""
        self.ended()

    def lost(self, reason: str) -> None:
        """See TransportOwner."""
        self._end()
