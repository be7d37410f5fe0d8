"""Filter chains that end without an upstream: a fixed answer, or what the client says (Envoy direct_response, echo).

Rule: as the other stations; bytes of the client are passed through the transport's own buffer, which stops its reading.
"""

from __future__ import annotations

from agent.filters.network import NetworkGate
from agent.http.request import ConnectionInfo
from agent.table.listener import FilterChain, FixedAnswer
from agent.worker.accept import Station
from agent.worker.refusal import Refusal
from agent.worker.tls_contexts import ServerTls
from agent.worker.transport import PlainTransport, TransportOwner


class AnswerStation(Station):
    """The end of such a chain."""

    bulk = False

    def __init__(
        self, chain: FilterChain, answer: FixedAnswer, tls: ServerTls | None, gate: NetworkGate | None
    ) -> None:
        self.chain = chain
        self.answer = answer
        self.tls = tls
        self.gate = gate
        self.draining = False
        self.connections: set[AnswerConnection] = set()

    def open(self, transport: PlainTransport, connection: ConnectionInfo) -> None:
        """See accept.Station."""
        if self.gate is not None and self.gate.enter(connection, transport.reactor.now) is not None:
            Refusal(transport)
            return
        taken = AnswerConnection(self, transport)
        self.connections.add(taken)
        transport.owner = taken
        if self.answer.data is not None:
            transport.write(self.answer.data)
            taken.end()

    def closed(self, connection: AnswerConnection) -> None:
        """A connection has ended."""
        if connection in self.connections:
            self.connections.remove(connection)
            if self.gate is not None:
                self.gate.leave()

    def drain(self) -> None:
        """Opaque connections cannot be told to end."""
        self.draining = True

    def close_idle(self) -> None:
        """Nothing is known to be idle."""

    def close_all(self) -> None:
        """The time is over."""
        for connection in tuple(self.connections):
            connection.transport.close()
            self.closed(connection)


class AnswerConnection(TransportOwner):
    """One client."""

    __slots__ = ("_station", "transport")

    def __init__(self, station: AnswerStation, transport: PlainTransport) -> None:
        self._station = station
        self.transport = transport

    def end(self) -> None:
        """Everything is said: an orderly end."""
        self._station.closed(self)
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
        self._station.closed(self)
