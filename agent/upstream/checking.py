"""Active health checks: what their results say of a host (Envoy HealthCheckerImplBase).

Rule: pure; a result comes in, a verdict and the time of the next check go out. A host is taken for unhealthy until its
first check, whose result counts at once; after that the thresholds decide.
Not for: asking the host (worker/health).
"""

from __future__ import annotations

from agent.table.cluster import HealthCheck


class CheckState:
    """The checks of one host by one checker."""

    __slots__ = ("_config", "_failures", "_first", "_successes", "healthy")

    def __init__(self, config: HealthCheck) -> None:
        self._config = config
        self._first = True
        self._failures = 0
        self._successes = 0
        self.healthy = False

    @property
    def waiting(self) -> bool:
        """Nothing is known yet."""
        return self._first

    def succeeded(self) -> bool:
        """The host answered well. True if the verdict changed."""
        self._failures = 0
        self._successes += 1
        if self.healthy or not (self._first or self._successes >= self._config.healthy_threshold):
            self._first = False
            return False
        self._first = False
        self.healthy = True
        return True

    def failed(self, *, at_once: bool = False) -> bool:
        """It did not. `at_once`: it answered, and said so itself. True if the verdict changed."""
        self._successes = 0
        self._failures += 1
        first, self._first = self._first, False
        if not self.healthy or not (at_once or first or self._failures >= self._config.unhealthy_threshold):
            return False
        self.healthy = False
        return True

    def pause(self, *, traffic: bool, changed: bool, random: int) -> float:
        """Seconds until the next check. `traffic`: the cluster has had a connection; `random`: 64 random bits."""
        config = self._config
        if not traffic:
            told = config.no_traffic_healthy_interval if self.healthy else 0.0
            base = told or config.no_traffic_interval
        elif self.healthy:
            base = (changed and config.healthy_edge_interval) or config.interval
        else:
            base = (
                (changed and config.unhealthy_edge_interval) or config.unhealthy_interval or config.interval
            )
        share = (random & 0xFFFF) / 0x10000
        return base + share * (config.interval_jitter + base * config.interval_jitter_percent / 100.0)
