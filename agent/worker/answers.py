"""Filter chains that end without an upstream: a fixed answer, or what the client says (Envoy direct_response, echo).

Rule: as the other stations; bytes of the client are passed through the transport's own buffer, which stops its reading.
"""

from __future__ import annotations

from typing import Final

from agent.http.request import ConnectionInfo
from agent.table.listener import FixedAnswer
from agent.worker.linger import Linger
from agent.worker.station import Admitted, Door, Station
from agent.worker.transport import PlainTransport

_PATIENCE: Final = 1.0
"""Seconds without progress after which a client that does not end is closed."""


class AnswerStation(Station):
    """The end of such a chain."""

    def __init__(self, door: Door, answer: FixedAnswer) -> None:
        super().__init__(door)
        self.answer = answer

    def open(self, transport: PlainTransport, connection: ConnectionInfo) -> None:
        """See Station."""
        if not self.admits(transport, connection):
            return
        taken = AnswerConnection(self, transport)
        self.enter(taken)
        transport.owner = taken
        if self.answer.data is not None:
            transport.write(self.answer.data)
            taken.end()


class AnswerConnection(Admitted):
    """One client."""

    __slots__ = ("_linger", "_station", "transport")

    def __init__(self, station: AnswerStation, transport: PlainTransport) -> None:
        self._station = station
        self.transport = transport
        self._linger: Linger | None = None

    def end(self) -> None:
        """Everything is said: an orderly end."""
        self._linger = Linger(self.transport, _PATIENCE, self._left)
        self._linger.finish()

    def drain(self) -> None:
        """See Admitted: it may be in the middle of something."""

    def cut(self) -> None:
        """See Admitted."""
        if self._linger is not None:
            self._linger.close()
        else:
            self.transport.close()
            self._left()

    def _left(self) -> None:
        self._linger = None
        self._station.leave(self)

    def received(self, data: bytes) -> None:
        """See TransportOwner."""
        self.transport.write(data)
        if self.transport.full:
            self.transport.pause()

    def drained(self) -> None:
        """See TransportOwner."""
        self.transport.resume()

    def ended(self) -> None:
        """See TransportOwner: the client has said everything, and hears the rest of it."""
        self._linger = Linger(self.transport, _PATIENCE, self._left)
        self._linger.close_when_sent()

    def lost(self, reason: str) -> None:
        """See TransportOwner."""
        self._left()
