"""The end of a filter chain: who has come in through it, and how they leave.

Rule: a station lives as long as its filter chain is unchanged. What all kinds have in common is here: the chain's gate, the
connections inside, what the listener counts of them, and their end; what a connection is good for is http_station.py (HTTP),
tcp.py and answers.py. A connection is inside until it is closed, also while its last bytes are being sent: limits count it and
the end of a drain closes it. Not for: choosing a chain (chain_match).
"""

from __future__ import annotations

from abc import abstractmethod
from math import inf
from typing import NamedTuple

from mypy_extensions import trait

from agent.filters.network import NetworkGate
from agent.http.request import ConnectionInfo
from agent.table.listener import FilterChain
from agent.telemetry.scopes import ListenerStats
from agent.worker.linger import Linger
from agent.worker.tls_contexts import ServerTls
from agent.worker.transport import PlainTransport, TransportOwner

_PATIENCE = 1.0
"""Seconds that a refused client has to take the end before the connection is closed."""


class Door(NamedTuple):
    """What every station is made from."""

    chain: FilterChain
    tls: ServerTls | None
    gate: NetworkGate | None
    stats: ListenerStats
    slots: list[int]


@trait
class Admitted(TransportOwner):
    """A connection inside a station; it calls `leave` once it is closed."""

    @abstractmethod
    def drain(self) -> None:
        """The station drains: end as soon as nothing is lost by it."""

    @abstractmethod
    def cut(self) -> None:
        """The time is over: close now."""


class Station:
    """Invariant: `inside` are the owners that entered and have not left; the gate and the listener's gauge know each once."""

    bulk = False
    """Opaque bytes: TLS in the shape for many records."""

    def __init__(self, door: Door) -> None:
        self.chain = door.chain
        self.tls = door.tls
        self.draining = False
        self.inside: set[Admitted] = set()
        self.refused: set[Refused] = set()
        """Whom the gate did not let in, until they are closed."""
        self.arriving = 0
        """Connections in the handshake, which will enter or end."""
        self.leaves_at = inf
        """When its connections are cut, once the chain has left the table."""
        self._gate = door.gate
        self._slots = door.slots
        self._active: int = door.stats.downstream_cx_active
        self._destroyed: int = door.stats.downstream_cx_destroy

    @abstractmethod
    def open(self, transport: PlainTransport, connection: ConnectionInfo) -> None:
        """Take the connection over; the transport has been started if it is TLS."""

    def admits(self, transport: PlainTransport, connection: ConnectionInfo) -> bool:
        """May it come in? It is refused otherwise."""
        if self._gate is None:
            return True
        refusal = self._gate.enter(connection, transport.reactor.now)
        if refusal is not None:
            Refused(self, transport, refusal.delay)
            return False
        return True

    def enter(self, owner: Admitted) -> None:
        """An admitted connection has its owner."""
        self.inside.add(owner)
        self._slots[self._active] += 1

    def leave(self, owner: Admitted) -> None:
        """It is closed; may be told more than once."""
        if owner in self.inside:
            self.inside.remove(owner)
            self._slots[self._active] -= 1
            self._slots[self._destroyed] += 1
            if self._gate is not None:
                self._gate.leave()

    def occupied(self) -> bool:
        """Does a connection of this chain exist: in its handshake, admitted, or refused and not closed yet?"""
        return bool(self.inside or self.refused or self.arriving)

    def drain(self) -> None:
        """The chain has left the table, or the worker ends. Opaque connections go on until the time is over, HTTP ends with
        the next response."""
        self.draining = True
        for owner in tuple(self.inside):
            owner.drain()

    def close_all(self) -> None:
        """The time is over."""
        for owner in tuple(self.inside):
            owner.cut()
        for refused in tuple(self.refused):
            refused.cut()


class Refused:
    """A connection that policy refuses: an orderly end, after the policy's delay, in which nothing is read."""

    __slots__ = ("_linger", "_station", "_timer", "_transport")

    def __init__(self, station: Station, transport: PlainTransport, delay: float) -> None:
        self._station = station
        self._transport = transport
        station.refused.add(self)
        self._timer = transport.reactor.timer(self._finish)
        self._linger = Linger(transport, delay + _PATIENCE, self._over)
        if delay:
            transport.pause()
            self._timer.set(transport.reactor.now + delay)
        else:
            self._finish()

    def cut(self) -> None:
        """The time is over."""
        self._linger.close()

    def _finish(self) -> None:
        self._transport.resume()
        self._linger.finish()

    def _over(self) -> None:
        self._timer.close()
        self._station.refused.discard(self)
