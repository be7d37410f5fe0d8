"""Circuit breakers: how much of a cluster may be in use at once (Envoy CircuitBreakers).

Rule: pure counting; one breaker per cluster and priority. Who asks must give back what it was granted.
"""

from __future__ import annotations

from agent.table.cluster import Thresholds


class Breaker:
    """Counts of one priority. Invariant: every count is at or above zero and every grant is given back once."""

    __slots__ = ("connections", "limits", "pending", "requests", "retries")

    def __init__(self, limits: Thresholds) -> None:
        self.limits = limits
        self.connections = 0
        self.pending = 0
        self.requests = 0
        self.retries = 0

    def may_connect(self) -> bool:
        return self.connections < self.limits.max_connections

    def may_wait(self) -> bool:
        return self.pending < self.limits.max_pending_requests

    def may_request(self) -> bool:
        return self.requests < self.limits.max_requests

    def may_retry(self) -> bool:
        """Envoy's retry budget, where there is one, replaces the fixed number."""
        percent = self.limits.retry_budget_percent
        if percent is None:
            return self.retries < self.limits.max_retries
        allowed = (self.requests + self.pending) * percent / 100.0
        return self.retries < max(self.limits.retry_budget_min, allowed)
