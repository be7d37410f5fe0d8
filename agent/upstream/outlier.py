"""Passive health: hosts that keep failing leave the rotation for a while (Envoy outlier detection).

Rule: results come in as they happen, time and chance as arguments; a verdict is returned, never acted on here.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

from agent.table.cluster import OutlierDetection
from agent.upstream.host import Host


class OutlierDetector:
    """The detector of one cluster. Invariant: `ejected` is the number of its hosts with `ejected_until` set."""

    __slots__ = ("_swept_at", "config", "ejected", "ejections")

    def __init__(self, config: OutlierDetection) -> None:
        self.config = config
        self._swept_at = -inf
        self.ejected = 0
        self.ejections: dict[str, int] = {}
        """What was detected and enforced, by Envoy's names of the statistics; the cluster writes them down."""

    def response(self, host: Host, status: int, now: float, chance: int, total: int) -> bool:
        """A response came. True if the host has just been ejected. `chance` is random, 0-99; `total` counts hosts."""
        config = self.config
        host.requests += 1
        host.consecutive_local = 0
        if not 500 <= status < 600:
            host.successes += 1
            host.consecutive_5xx = host.consecutive_gateway = 0
            return False
        if status in (502, 503, 504):
            host.consecutive_gateway += 1
            if (
                config.consecutive_gateway_failure
                and host.consecutive_gateway >= config.consecutive_gateway_failure
            ):
                host.consecutive_gateway = 0
                self._note("detected_consecutive_gateway_failure")
                if chance < config.enforcing_consecutive_gateway_failure:
                    return self._eject(host, now, total, "consecutive_gateway_failure")
        else:
            host.consecutive_gateway = 0
        host.consecutive_5xx += 1
        if config.consecutive_5xx and host.consecutive_5xx >= config.consecutive_5xx:
            host.consecutive_5xx = 0
            self._note("detected_consecutive_5xx")
            if chance < config.enforcing_consecutive_5xx:
                return self._eject(host, now, total, "consecutive_5xx")
        return False

    def local_failure(self, host: Host, now: float, chance: int, total: int) -> bool:
        """No response: connect failure, reset, timeout. Counts as a 503 unless local errors are split off."""
        config = self.config
        if not config.split_external_local_origin_errors:
            return self.response(host, 503, now, chance, total)
        host.consecutive_local += 1
        if (
            config.consecutive_local_origin_failure
            and host.consecutive_local >= config.consecutive_local_origin_failure
        ):
            host.consecutive_local = 0
            self._note("detected_consecutive_local_origin_failure")
            if chance < config.enforcing_consecutive_local_origin_failure:
                return self._eject(host, now, total, "consecutive_local_origin_failure")
        return False

    def due(self, now: float) -> bool:
        """Whether the next `sweep` is due; it counts as done then."""
        if self._swept_at + self.config.interval > now:
            return False
        self._swept_at = now
        return True

    def sweep(self, hosts: Sequence[Host], now: float, chance: int) -> bool:
        """Every `interval`: take back whose time is over, eject by success rate. True if anything changed."""
        changed = False
        for host in hosts:
            if host.ejected_until and host.ejected_until <= now:
                host.ejected_until = 0.0
                self.ejected -= 1
                changed = True
            elif not host.ejected_until and host.ejections:
                host.ejections -= 1
        if self._sweep_rates(hosts, now, chance):
            changed = True
        for host in hosts:
            host.requests = host.successes = 0
        return changed

    def forget(self, host: Host) -> None:
        """The host is no longer a member."""
        if host.ejected_until:
            host.ejected_until = 0.0
            self.ejected -= 1

    def _sweep_rates(self, hosts: Sequence[Host], now: float, chance: int) -> bool:
        config = self.config
        changed = False
        counted = [host for host in hosts if host.requests >= config.success_rate_request_volume]
        if len(counted) >= config.success_rate_minimum_hosts and counted:
            rates = [host.successes * 100.0 / host.requests for host in counted]
            mean = sum(rates) / len(rates)
            deviation = sqrt(sum((rate - mean) ** 2 for rate in rates) / len(rates))
            threshold = mean - deviation * config.success_rate_stdev_factor / 1000.0
            for host, rate in zip(counted, rates, strict=True):
                if rate < threshold:
                    self._note("detected_success_rate")
                if rate < threshold and chance < config.enforcing_success_rate:
                    changed |= self._eject(host, now, len(hosts), "success_rate")
        volume = [host for host in hosts if host.requests >= config.failure_percentage_request_volume]
        if config.enforcing_failure_percentage and len(volume) >= config.failure_percentage_minimum_hosts:
            for host in volume:
                failed = 100.0 - host.successes * 100.0 / host.requests
                if failed >= config.failure_percentage_threshold:
                    self._note("detected_failure_percentage")
                if (
                    failed >= config.failure_percentage_threshold
                    and chance < config.enforcing_failure_percentage
                ):
                    changed |= self._eject(host, now, len(hosts), "failure_percentage")
        return changed

    def _eject(self, host: Host, now: float, total: int, reason: str) -> bool:
        """Within max_ejection_percent: never more hosts than that share, also not the first one (Envoy ejectHost, with
        always_eject_one_host off)."""
        config = self.config
        if host.ejected_until:
            return False
        if 100.0 * (self.ejected + 1) / max(total, 1) > config.max_ejection_percent:
            self._note("overflow")
            return False
        host.ejections += 1
        longest = max(config.max_ejection_time, config.base_ejection_time)
        host.ejected_until = now + min(config.base_ejection_time * host.ejections, longest)
        self.ejected += 1
        self._note(f"enforced_{reason}")
        self._note("enforced_total")
        return True

    def _note(self, what: str) -> None:
        self.ejections[what] = self.ejections.get(what, 0) + 1
