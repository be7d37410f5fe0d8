"""Circuit breakers: how much of a cluster may be in use at once (Envoy CircuitBreakers).

Rule: pure counting; one breaker per cluster and priority. Who asks must give back what it was granted. Where a host has
several workers, their breakers of the same name count together (SharedBreaker); a worker that is alone has the plain one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from agent.limits.tally import Tally
from agent.table.cluster import Cluster, Thresholds

COUNTS: Final = 4
"""What a breaker counts: connections, pending, requests, retries."""


class Breaker:
    """Counts of one priority. Invariant: every count is at or above zero and every grant is given back once."""

    __slots__ = ("_connections", "_pending", "_requests", "_retries", "limits")

    def __init__(self, limits: Thresholds) -> None:
        self.limits = limits
        self._connections = 0
        self._pending = 0
        self._requests = 0
        self._retries = 0

    @property
    def connections(self) -> int:
        """Upstream connections, open or on their way."""
        return self._connections

    @property
    def pending(self) -> int:
        """Requests that wait for a connection."""
        return self._pending

    @property
    def requests(self) -> int:
        """Requests on a connection."""
        return self._requests

    @property
    def retries(self) -> int:
        """Requests that are being retried."""
        return self._retries

    def add_connections(self, change: int) -> None:
        self._connections += change

    def add_pending(self, change: int) -> None:
        self._pending += change

    def add_requests(self, change: int) -> None:
        self._requests += change

    def add_retries(self, change: int) -> None:
        self._retries += change

    def may_connect(self) -> bool:
        return self._connections < self.limits.max_connections

    def may_wait(self) -> bool:
        return self._pending < self.limits.max_pending_requests

    def may_request(self) -> bool:
        return self._requests < self.limits.max_requests

    def may_retry(self) -> bool:
        return self._retries < _retries(self.limits, self._requests + self._pending)


class SharedBreaker(Breaker):
    """A breaker that counts what all workers of the host use."""

    __slots__ = ("_all_connections", "_all_pending", "_all_requests", "_all_retries")

    def __init__(self, limits: Thresholds, counts: Sequence[Tally]) -> None:
        super().__init__(limits)
        self._all_connections: Tally = counts[0]
        self._all_pending: Tally = counts[1]
        self._all_requests: Tally = counts[2]
        self._all_retries: Tally = counts[3]

    @property
    def connections(self) -> int:
        return self._all_connections.total()

    @property
    def pending(self) -> int:
        return self._all_pending.total()

    @property
    def requests(self) -> int:
        return self._all_requests.total()

    @property
    def retries(self) -> int:
        return self._all_retries.total()

    def may_connect(self) -> bool:
        return self.connections < self.limits.max_connections

    def may_wait(self) -> bool:
        return self.pending < self.limits.max_pending_requests

    def may_request(self) -> bool:
        return self.requests < self.limits.max_requests

    def may_retry(self) -> bool:
        return self.retries < _retries(self.limits, self.requests + self.pending)

    def add_connections(self, change: int) -> None:
        self._all_connections.add(change)

    def add_pending(self, change: int) -> None:
        self._all_pending.add(change)

    def add_requests(self, change: int) -> None:
        self._all_requests.add(change)

    def add_retries(self, change: int) -> None:
        self._all_retries.add(change)


def _retries(limits: Thresholds, active: int) -> int:
    """Envoy's retry budget, where there is one, replaces the fixed number; of a share, whole retries count."""
    if limits.retry_budget_percent is None:
        return limits.max_retries
    return max(limits.retry_budget_min, int(active * limits.retry_budget_percent / 100.0))


def breakers(config: Cluster, counts: Sequence[Tally] | None = None) -> tuple[Breaker, Breaker]:
    """Those of a cluster's default and high priority; `counts` are both's, one after the other, where they are shared."""
    if counts is None:
        return Breaker(config.default_thresholds), Breaker(config.high_thresholds)
    return (
        SharedBreaker(config.default_thresholds, counts[:COUNTS]),
        SharedBreaker(config.high_thresholds, counts[COUNTS:]),
    )
