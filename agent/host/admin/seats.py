"""Who may hold a connection to the agent's own pages, when there are more who want one than there are places (pure).

Rule: the newest connection is served. What leaves for it is the oldest connection that waits for a request, of the peer that
holds the most; so one slow or hostile peer only ever displaces itself. Clients on this host have places of their own.
Not for: sockets (`pages`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

MAX_CONNECTIONS = 64
"""Of other hosts, and as many again of this one."""
MAX_PER_PEER = 8
_PREFIX = 64


@dataclass(eq=False, slots=True)
class Seat:
    """One connection. `leave` ends it; `waiting` is true while no request of it is being answered."""

    peer: str
    leave: Callable[[], None]
    waiting: bool = True


@dataclass(slots=True)
class Seats:
    """All connections of one port. Invariant: at most `MAX_CONNECTIONS` local and as many remote seats are taken."""

    _taken: dict[str, list[Seat]] = field(default_factory=dict)
    """By peer, the oldest first; no peer without a seat."""

    def take(self, address: str, leave: Callable[[], None]) -> Seat | None:
        """A seat for a new connection from this address; None when every place is busy answering."""
        seat = Seat(peer_of(address), leave)
        local = is_local(seat.peer)
        held = self._taken.get(seat.peer, [])
        if not local and len(held) >= MAX_PER_PEER:
            victim = _oldest_waiting(held)
        elif (
            sum(len(seats) for peer, seats in self._taken.items() if is_local(peer) is local)
            < MAX_CONNECTIONS
        ):
            self._taken.setdefault(seat.peer, []).append(seat)
            return seat
        else:
            peers = [seats for peer, seats in self._taken.items() if is_local(peer) is local]
            victim = _oldest_waiting(max(peers, key=len))
        if victim is None:
            return None
        victim.leave()
        self.give_back(victim)
        self._taken.setdefault(seat.peer, []).append(seat)
        return seat

    def give_back(self, seat: Seat) -> None:
        """The connection has ended. Giving back twice does nothing."""
        held = self._taken.get(seat.peer, [])
        if seat in held:
            held.remove(seat)
            if not held:
                del self._taken[seat.peer]

    def __len__(self) -> int:
        return sum(map(len, self._taken.values()))


def peer_of(address: str) -> str:
    """The unit that limits count: an IPv4 address, an IPv6 /64, "local" for loopback and Unix sockets."""
    if not address:
        return "local"
    parsed = ip_address(address.partition("%")[0])
    if parsed.is_loopback:
        return "local"
    if isinstance(parsed, IPv6Address):
        return f"{IPv6Address(int(parsed) >> _PREFIX << _PREFIX)}/{_PREFIX}"
    return str(parsed)


def is_local(peer: str) -> bool:
    """Whether the peer is on this host."""
    return peer == "local"


def _oldest_waiting(seats: list[Seat]) -> Seat | None:
    return next((seat for seat in seats if seat.waiting), None)
