"""Filter chains that end without an upstream: a fixed answer, or what the client says (Envoy direct_response, echo).

Rule: as the other stations; bytes of the client are passed through the transport's own buffer, which stops its reading.
"""

from __future__ import annotations

from agent.http.request import ConnectionInfo
from agent.table.listener import FixedAnswer
from agent.worker.refusal import Refusal
from agent.worker.station import Door, Station
from agent.worker.transport import PlainTransport, TransportOwner


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

    def close_idle(self) -> None:
        """Nothing is known to be idle."""

    def close_all(self) -> None:
        """See Station."""
        for taken in tuple(self.inside):
            assert isinstance(taken, AnswerConnection)
            taken.transport.close()
            self.leave(taken)


class AnswerConnection(TransportOwner):
    """One client."""

    __slots__ = ("_station", "transport")

    def __init__(self, station: AnswerStation, transport: PlainTransport) -> None:
        self._station = station
        self.transport = transport

    def end(self) -> None:
        """Everything is said: an orderly end."""
        self._station.leave(self)
        Refusal(self.transport)

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
        self.end()

    def lost(self, reason: str) -> None:
        """See TransportOwner."""
        self._station.leave(self)
