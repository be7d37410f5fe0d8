"""Who may connect: budgets for peers that have shown no identity, apart from those that have.

Rule: a connection counts as anonymous from the moment it is accepted until its handshake has shown an identity, and is
closed when the anonymous budget of its source or of all is used up; so a flood of strangers takes nothing from hosts that
are known, and nothing from strangers elsewhere. Handshakes of one source wait for one another, in their order.
A source is an IPv4 address or an IPv6 /64, the smallest thing that one host is surely given; on a Unix socket a user.
"""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from wire.rate import RateLimit


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """How many connections, in all and from one source."""

    identified: int = 10_000
    identified_per_source: int = 4_096
    anonymous: int = 8_192
    """Without an identity: waiting for their handshake, in it, or after it without a certificate."""
    anonymous_per_source: int = 2_048
    strangers_per_source: int = 64
    """Of these, after a handshake without a certificate."""
    handshakes_at_once: int = 32
    """Of one source; further ones wait for their turn."""
    handshake_timeout: float = 10.0
    """Seconds, the wait for the turn not counted."""
    turn_timeout: float = 30.0
    stranger_lifetime: float = 60.0
    """Seconds for which a peer without a certificate may stay: time to join, not to sit."""


@dataclass
class _Source:
    """What one source has open. Removed when it has nothing."""

    anonymous: int = 0
    strangers: int = 0
    identified: int = 0
    turns: trio.Semaphore = field(default_factory=lambda: trio.Semaphore(32))

    @property
    def empty(self) -> bool:
        return not (self.anonymous or self.strangers or self.identified)


class RefusedError(Exception):
    """The connection is one too many; says of what."""


class Admission:
    """The counts of one server. Every `enter` is left, and every count given back, when the connection ends."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self._limits = limits
        self._sources: dict[str, _Source] = {}
        self.anonymous = 0
        self.identified = 0
        self.refused = 0
        self._complaints = RateLimit(burst=10, rate=0.2)

    @property
    def sources(self) -> int:
        """How many sources have connections."""
        return len(self._sources)

    def may_complain(self) -> bool:
        """Whether a refusal is worth a line in the log: a flood of refusals must not become one of lines."""
        self.refused += 1
        return self._complaints.spend(trio.current_time())

    @asynccontextmanager
    async def enter(self, host: str) -> AsyncIterator[Ticket]:
        """Count a connection from `host` while the block runs. Raises RefusedError."""
        key, limits = source_of(host), self._limits
        source = self._sources.get(key)
        if self.anonymous >= limits.anonymous:
            raise RefusedError(f"{self.anonymous} connections without an identity are open")
        if source is not None and source.anonymous >= limits.anonymous_per_source:
            raise RefusedError(f"{source.anonymous} connections without an identity are open from {key}")
        if source is None:
            source = self._sources[key] = _Source(turns=trio.Semaphore(limits.handshakes_at_once))
        source.anonymous += 1
        self.anonymous += 1
        ticket = Ticket(self, source, key, limits)
        try:
            yield ticket
        finally:
            ticket.leave()
            if source.empty and self._sources.get(key) is source:
                del self._sources[key]


class Ticket:
    """One connection's place in the counts. Invariant: it is counted in exactly one of them."""

    def __init__(self, admission: Admission, source: _Source, key: str, limits: ConnectionLimits) -> None:
        self._admission = admission
        self._source = source
        self._key = key
        self._limits = limits
        self._kind = "anonymous"

    @asynccontextmanager
    async def handshake(self) -> AsyncIterator[None]:
        """Wait for the turn of this source, and hold it while the block runs. Raises RefusedError."""
        with trio.move_on_after(self._limits.turn_timeout) as patience:
            await self._source.turns.acquire()
        if patience.cancelled_caught:
            raise RefusedError(f"too many handshakes from {self._key} are waiting")
        try:
            yield
        finally:
            self._source.turns.release()

    def identify(self) -> None:
        """The peer has shown an identity. Raises RefusedError."""
        source, limits = self._source, self._limits
        if self._admission.identified >= limits.identified:
            raise RefusedError(f"{self._admission.identified} connections are open")
        if source.identified >= limits.identified_per_source:
            raise RefusedError(f"{source.identified} connections are open from {self._key}")
        self.leave()
        self._kind = "identified"
        source.identified += 1
        self._admission.identified += 1

    def stay_stranger(self) -> None:
        """The peer has no identity to show. Raises RefusedError."""
        if self._source.strangers >= self._limits.strangers_per_source:
            raise RefusedError(
                f"{self._source.strangers} peers without a certificate are connected from {self._key}"
            )
        self._source.strangers += 1
        self._kind = "stranger"

    def leave(self) -> None:
        """Give the place back; the second time nothing."""
        kind, self._kind = self._kind, "left"
        if kind == "identified":
            self._source.identified -= 1
            self._admission.identified -= 1
        elif kind in ("anonymous", "stranger"):
            self._source.anonymous -= 1
            self._admission.anonymous -= 1
            self._source.strangers -= kind == "stranger"


def source_of(host: str) -> str:
    """What the limits count by: an IPv4 address, an IPv6 /64, or the text itself (`unix uid 1000`, `local`)."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
