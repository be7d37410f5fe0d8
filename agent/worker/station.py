"""The end of a filter chain: who has come in through it, and how they leave.

Rule: a station lives as long as its filter chain is unchanged. What all kinds have in common is here: the chain's gate, the
connections inside, and what the listener counts of them; what a connection is good for is http_station.py (HTTP), tcp.py and
answers.py. Not for: choosing a chain (chain_match).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from agent.filters.network import NetworkGate
from agent.http.request import ConnectionInfo
from agent.table.listener import FilterChain
from agent.telemetry.scopes import ListenerStats
from agent.worker.refusal import Refusal
from agent.worker.tls_contexts import ServerTls
from agent.worker.transport import PlainTransport, TransportOwner


class Door(NamedTuple):
    """What every station is made from."""

    chain: FilterChain
    tls: ServerTls | None
    gate: NetworkGate | None
    stats: ListenerStats
    slots: list[int]


class Station:
    """Invariant: `inside` are the owners that entered and have not left; the gate and the listener's gauge know each once."""

    bulk = False
    """Opaque bytes: TLS in the shape for many records."""

    def __init__(self, door: Door) -> None:
        self.chain = door.chain
        self.tls = door.tls
        self.draining = False
        self.inside: set[TransportOwner] = set()
        self._gate = door.gate
        self._slots = door.slots
        self._active: int = door.stats.downstream_cx_active
        self._destroyed: int = door.stats.downstream_cx_destroy

    @abstractmethod
    def open(self, transport: PlainTransport, connection: ConnectionInfo) -> None:
        """Take the connection over; the transport has been started if it is TLS."""

    @abstractmethod
    def close_idle(self) -> None:
        """End connections without anything to do."""

    @abstractmethod
    def close_all(self) -> None:
        """The time is over."""

    def admits(self, transport: PlainTransport, connection: ConnectionInfo) -> bool:
        """May it come in? It is refused otherwise."""
        if self._gate is not None and self._gate.enter(connection, transport.reactor.now) is not None:
            Refusal(transport)
            return False
        return True

    def enter(self, owner: TransportOwner) -> None:
        """An admitted connection has its owner."""
        self.inside.add(owner)
        self._slots[self._active] += 1

    def leave(self, owner: TransportOwner) -> None:
        """It has ended; may be told more than once."""
        if owner in self.inside:
            self.inside.remove(owner)
            self._slots[self._active] -= 1
            self._slots[self._destroyed] += 1
            if self._gate is not None:
                self._gate.leave()

    def drain(self) -> None:
        """The chain has left the table. Opaque connections go on until the time is over, HTTP ends with the next response."""
        self.draining = True
