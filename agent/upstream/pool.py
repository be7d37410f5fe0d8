"""The connections to one host: who gets which, who waits, when to open another one.

Rule: this module decides and the worker acts: `Connect` starts a connection, which reports back by `connected` or
`failed`. Idle connections are used last in, first out, so that surplus ones grow old and are closed. Waiting requests
are served in order of arrival (Envoy's HTTP/1 connection pool).

    connecting ─connected─► busy ─rest─► resting ─release─► idle ─request─► busy
    any of them ─closed─► gone; a connection of an older generation is retired: it is closed instead of resting or idle

Not for: sockets, timers.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from mypy_extensions import trait

from agent.upstream.breaker import Breaker
from agent.upstream.host import Host

if TYPE_CHECKING:
    from agent.upstream.cluster import ClusterRuntime


@trait
class PooledConnection:
    """An open upstream connection that carries one request at a time."""

    generation: int
    """The pool's when it began, or RETIRED."""
    resting: bool
    """Its response is over; it is handed on a turn later, when the peer's end would have been seen. The pool sets it."""

    @abstractmethod
    def close_idle(self) -> None:
        """Close; no request is on it."""


@trait
class Waiter:
    """A request that waits for a connection."""

    priority_breaker: Breaker

    @abstractmethod
    def upstream_ready(self, connection: Any) -> None:
        """Here is your connection: what `connected` was given."""

    @abstractmethod
    def upstream_overflowed(self) -> None:
        """There is a connection, but by now too many requests are under way (max_requests)."""

    @abstractmethod
    def upstream_unavailable(self, reason: str, failure: str) -> None:
        """There will be none: a reset reason (agent/upstream/reset.py) and the transport's own words."""


Connect = Callable[["Pool"], None]
_NAMES: Final = 64
"""Server names of one host that have a pool at one time."""
RETIRED: Final = -1
"""The generation of a connection that takes no more requests, whatever its pool's."""


class Pool:
    """Invariant: `total` counts connections that are connecting, busy, resting or idle; each is in the breaker's count."""

    __slots__ = (
        "_by_name", "breaker", "cluster", "connect", "connecting", "generation", "host", "idle", "resting",
        "server_name", "total", "waiting",
    )  # fmt: skip

    def __init__(self, host: Host, cluster: ClusterRuntime, connect: Connect, server_name: str = "") -> None:
        self.host = host
        self.server_name = server_name
        """What its connections ask for by SNI and expect in the certificate; empty: as the cluster says."""
        self._by_name: dict[str, Pool] = {}
        self.cluster = cluster
        self.breaker = cluster.breakers[0]
        self.connect = connect
        self.idle: list[PooledConnection] = []
        self.waiting: deque[Waiter] = deque()
        self.connecting = 0
        self.resting = 0
        self.total = 0
        self.generation = 0
        """Grows when what secures connections to the host has changed."""

    def request(self, waiter: Waiter) -> PooledConnection | bool:
        """A connection to use now, True when the waiter will be called, False when the breaker refuses (overflow)."""
        if self.idle:
            return self.idle.pop()
        breaker = waiter.priority_breaker
        if not breaker.may_wait():
            return False
        breaker.add_pending(1)
        self.cluster.slots[self.cluster.stats.upstream_rq_pending_total] += 1
        self.waiting.append(waiter)
        self._provide()
        return True

    def by_name(self, server_name: str) -> Pool:
        """The pool of the host's connections for one server name (Envoy auto_sni). Requests choose the names, so only so
        many are remembered: a pool that makes way is retired, and ends with what is on it."""
        found = self._by_name.get(server_name)
        if found is None:
            if len(self._by_name) >= _NAMES:
                oldest = next(iter(self._by_name))
                self._by_name.pop(oldest).retire()
            found = self._by_name[server_name] = Pool(self.host, self.cluster, self.connect, server_name)
        return found

    def connections(self) -> int:
        """All of the host's, whatever their server name."""
        return self.total + sum(pool.total for pool in self._by_name.values())

    def withdraw(self, waiter: Waiter) -> None:
        """The waiter has gone away. A connection that is on its way for it is kept for others."""
        try:
            self.waiting.remove(waiter)
        except ValueError:
            return
        waiter.priority_breaker.add_pending(-1)

    def connected(self, connection: PooledConnection) -> None:
        """A connection that `connect` started is open."""
        self.connecting -= 1
        self.release(connection)

    def keeps(self, connection: PooledConnection) -> bool:
        """May it take another request? Else it is to be closed."""
        return connection.generation == self.generation

    def rest(self, connection: PooledConnection) -> None:
        """A response is over; `release` follows in a later turn of the worker, unless the connection ends before."""
        connection.resting = True
        self.resting += 1

    def release(self, connection: PooledConnection) -> None:
        """A connection is free (again)."""
        self._rested(connection)
        if self.keeps(connection):
            while self.waiting:
                waiter = self.waiting.popleft()
                waiter.priority_breaker.add_pending(-1)
                if waiter.priority_breaker.may_request():
                    waiter.upstream_ready(connection)
                    return
                waiter.upstream_overflowed()
            if not self.host.gone:
                self.idle.append(connection)
                return
        connection.close_idle()

    def failed(self, reason: str, failure: str) -> None:
        """A connection that `connect` started did not come up: all who wait are told, as Envoy does."""
        self.connecting -= 1
        self.host.connect_failures += 1
        self._lost()
        waiting, self.waiting = self.waiting, deque()
        self.cluster.slots[self.cluster.stats.upstream_rq_pending_failure_eject] += len(waiting)
        for waiter in waiting:
            waiter.priority_breaker.add_pending(-1)
            waiter.upstream_unavailable(reason, failure)

    def closed(self, connection: PooledConnection) -> None:
        """An open connection has ended: busy, resting or idle."""
        self._rested(connection)
        if connection in self.idle:
            self.idle.remove(connection)
        self._lost()
        self._provide()

    def retire(self) -> None:
        """What secures connections has changed: those of before take no more requests and end with the one on them."""
        self.generation += 1
        for pool in self._by_name.values():
            pool.generation += 1
        self.close_idle()

    def close_idle(self) -> None:
        """Close what nobody uses; the rest is closed when it is free, if the host has gone."""
        for pool in self._by_name.values():
            pool.close_idle()
        idle, self.idle = self.idle, []
        for connection in idle:
            connection.close_idle()

    def _provide(self) -> None:
        """Open a connection, where somebody waits for whom none is on its way and the breaker allows it."""
        waiting = self.waiting
        if len(waiting) > self.connecting + self.resting and (
            self.total == 0 or waiting[-1].priority_breaker.may_connect()
        ):
            self.connecting += 1
            self.total += 1
            self.host.connects += 1
            self.breaker.add_connections(1)
            self.connect(self)

    def _rested(self, connection: PooledConnection) -> None:
        if connection.resting:
            connection.resting = False
            self.resting -= 1

    def _lost(self) -> None:
        self.total -= 1
        self.breaker.add_connections(-1)
