"""A cluster at run time: its hosts, who is in rotation, its breakers and its detector.

Rule: survives table swaps: `reconfigure` and `update_hosts` keep hosts that are still members, with their connections
and what was learned of them. Choosing a host changes nothing but the balancer's own position.
Not for: resolving names (worker/dns), opening connections (worker/upstream_connection).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agent.http.retry_plan import RetryPlan
from agent.limits.tally import Tally
from agent.table.cluster import Cluster, Endpoint
from agent.telemetry.scopes import ClusterStats
from agent.upstream.balancer import Picker, make_picker
from agent.upstream.breaker import breakers
from agent.upstream.host import Host
from agent.upstream.outlier import OutlierDetector
from agent.upstream.pool import Connect, Pool
from agent.upstream.priorities import NOBODY, Rotation, rotation
from agent.upstream.subsets import members


class ClusterRuntime:
    """Invariant: `rotation` reflects the health of `hosts` as of the last `rebuild`."""

    __slots__ = (
        "_connect", "_overprovisioning", "_seed", "_subsets", "_tls_of", "breakers", "by_endpoint", "config",
        "detector", "hosts", "name", "rotation", "rq_active", "rq_total", "rx_bytes", "slots", "stats", "tx_bytes", "warm",
        "watch",
    )  # fmt: skip

    def __init__(
        self, config: Cluster, connect: Connect, stats: ClusterStats, slots: list[int], seed: int,
        counts: Sequence[Tally] | None = None,
    ) -> None:  # fmt: skip
        self.config = config
        self.name = config.name
        self._connect = connect
        self._seed = seed
        self._overprovisioning = 140
        self._subsets: dict[tuple[tuple[str, str], ...], Rotation] = {}
        self._tls_of: Callable[[Endpoint], Any] | None = None
        self.hosts: tuple[Host, ...] = ()
        self.by_endpoint: dict[Endpoint, Host] = {}
        self.breakers = breakers(config, counts)
        self.detector = OutlierDetector(config.outlier) if config.outlier is not None else None
        self.rotation = NOBODY
        self.stats = stats
        self.rq_total: int = stats.upstream_rq_total
        self.rq_active: int = stats.upstream_rq_active
        self.rx_bytes: int = stats.upstream_cx_rx_bytes_total
        self.tx_bytes: int = stats.upstream_cx_tx_bytes_total
        """Slots that every request counts in, as compiled integers."""
        self.slots = slots
        self.watch: Callable[[], None] | None = None
        """Told of new members and configurations: active health checks."""
        self.warm = False
        """Endpoints (even none) have been received or resolved."""

    def reconfigure(self, config: Cluster, tls_of: Callable[[Endpoint], Any] | None) -> None:
        """Take a new configuration of the same name; connections whose TLS has changed are retired."""
        changed = config is not self.config
        self.config = config
        self._tls_of = tls_of
        if changed:
            self.breakers[0].limits = config.default_thresholds
            self.breakers[1].limits = config.high_thresholds
            if config.outlier is None:
                self.detector = None
            elif self.detector is None:
                self.detector = OutlierDetector(config.outlier)
            else:
                self.detector.config = config.outlier
        for host in self.hosts:
            self._secure(host)
        if changed:
            self.rebuild()
            if self.watch is not None:
                self.watch()

    def update_hosts(self, endpoints: Iterable[Endpoint], overprovisioning: int = 140) -> bool:
        """Take the members as they are now. True if anything changed."""
        self.warm = True
        wanted = list(endpoints)
        if overprovisioning == self._overprovisioning and [host.endpoint for host in self.hosts] == wanted:
            return False
        self._overprovisioning = overprovisioning
        known = {(host.endpoint.address, host.endpoint.priority): host for host in self.hosts}
        hosts: list[Host] = []
        for endpoint in wanted:
            host = known.pop((endpoint.address, endpoint.priority), None)
            if host is None:
                host = self.make_host(endpoint)
            elif host.endpoint != endpoint:
                host.endpoint = endpoint
                host.weight = endpoint.weight
                self._secure(host)
            hosts.append(host)
        for host in known.values():
            host.gone = True
            if self.detector is not None:
                self.detector.forget(host)
            host.pool.close_idle()
        self.hosts = tuple(hosts)
        self.slots[self.stats.membership_change] += 1
        self.rebuild()
        if self.watch is not None:
            self.watch()
        return True

    def relocate(self, endpoint: Endpoint, overprovisioning: int = 140) -> None:
        """LOGICAL_DNS: the one host is found at this address from now on; connections to its former ones go on."""
        if len(self.hosts) != 1:
            self.update_hosts([endpoint], overprovisioning)
            return
        host = self.hosts[0]
        if host.endpoint != endpoint:
            host.move(endpoint)
            self.rebuild()

    def make_host(self, endpoint: Endpoint) -> Host:
        """A host with its pool, not yet a member."""
        host = Host(endpoint)
        host.pool = Pool(host, self, self._connect)
        self._secure(host)
        return host

    def _secure(self, host: Host) -> None:
        """Settings, secrets or the endpoint may have changed: connections that were made with others are retired."""
        tls = self._tls_of(host.endpoint) if self._tls_of is not None else None
        context = None if tls is None else tls.context
        if tls is not host.tls or context is not host.tls_context:
            host.tls, host.tls_context = tls, context
            host.pool.retire()

    def original_destination(self, endpoint: Endpoint) -> Host:
        """The host of an ORIGINAL_DST cluster for an address, made at its first use."""
        host = self.by_endpoint.get(endpoint)
        if host is None:
            host = self.by_endpoint[endpoint] = self.make_host(endpoint)
            self.hosts = tuple(self.by_endpoint.values())
        return host

    def forget_idle_destinations(self) -> None:
        """ORIGINAL_DST hosts without any connection go (Envoy cleanup_interval)."""
        kept = {
            endpoint: host
            for endpoint, host in self.by_endpoint.items()
            if host.pool.connections() or host.active
        }
        if len(kept) != len(self.by_endpoint):
            self.by_endpoint = kept
            self.hosts = tuple(kept.values())

    def rebuild(self) -> None:
        """Health or membership changed: new rotation."""
        self._subsets = {}
        self.rotation = rotation(self.config, self.hosts, self._overprovisioning, self._make_picker)
        slots, stats = self.slots, self.stats
        slots[stats.membership_total] = len(self.hosts)
        slots[stats.membership_healthy] = sum(host.healthy for host in self.hosts)
        if self.detector is not None:
            slots[stats.outlier_detection_ejections_active] = self.detector.ejected

    def count_outliers(self) -> None:
        """Write down what the detector has noted since the last time."""
        if self.detector is not None and self.detector.ejections:
            for what, times in self.detector.ejections.items():
                self.slots[getattr(self.stats, f"outlier_detection_ejections_{what}")] += times
            self.detector.ejections.clear()

    def pick(self, random: int, key: int | None, match: Mapping[str, Any]) -> Host | None:
        """A host for a request; None when there is nobody. `match` is metadata that a subset must have."""
        rotation = self.rotation
        if self.config.subsets is not None:
            rotation = self._subset(match)
        picker = rotation.only
        if picker is None:
            picker = rotation.picker(random)
            if picker is None:
                self.slots[self.stats.upstream_cx_none_healthy] += 1
                return None
        if rotation.panic:
            self.slots[self.stats.lb_healthy_panic] += 1
        return picker.pick(random, key)

    def pick_again(
        self, random: int, key: int | None, match: Mapping[str, Any], tried: Sequence[Host | None], plan: RetryPlan
    ) -> Host | None:  # fmt: skip
        """A host for a retry: one that the plan does not avoid, if one comes up within its number of tries."""
        left: Rotation | None = None
        if plan.previous_priorities and len(tried) >= plan.previous_priorities:
            seen = tried[: len(tried) - len(tried) % plan.previous_priorities]
            left = self._without(
                frozenset(host.endpoint.priority for host in seen if host is not None), match
            )
        drawn = random
        for attempt in range(plan.host_selection_attempts + 1):
            if left is None or not left.shares:
                host = self.pick(random, key, match)
            else:
                picker = left.picker(random)
                host = None if picker is None else picker.pick(random, key)
            if host is None or not (
                (plan.previous_hosts and host in tried)
                or (plan.avoid is not None and plan.avoid(host.endpoint.metadata))
            ):
                break
            random, key = (drawn * 0x9E3779B97F4A7C15 + attempt) & 0xFFFFFFFFFFFFFFFF, None
        return host

    def _without(self, priorities: frozenset[int], match: Mapping[str, Any]) -> Rotation | None:
        """The rotation of the priorities that were not tried; None where none of them has a healthy host."""
        if match:
            return None
        name = (("", repr(sorted(priorities))),)
        found = self._subsets.get(name)
        if found is None:
            others = [host for host in self.hosts if host.endpoint.priority not in priorities]
            if not any(host.healthy for host in others):
                others = []
            found = self._subsets[name] = rotation(
                self.config, others, self._overprovisioning, self._make_picker
            )
        return found

    def count_retried(self, status: int) -> None:
        """A response that was not passed on, because another attempt followed."""
        for name in (f"{status // 100}xx", str(status), "completed"):
            self.slots[self.stats.counter(f"retry.upstream_rq_{name}")] += 1

    def _make_picker(self, hosts: list[Host]) -> Picker:
        return make_picker(self.config, hosts, self._seed)

    def _subset(self, match: Mapping[str, Any]) -> Rotation:
        wanted: Mapping[str, Any] = match.get("envoy.lb", match)
        key = tuple(sorted((name, repr(value)) for name, value in wanted.items()))
        found = self._subsets.get(key)
        if found is None:
            assert self.config.subsets is not None
            chosen = members(self.config.subsets, self.hosts, wanted)
            found = self._subsets[key] = rotation(
                self.config, chosen, self._overprovisioning, self._make_picker
            )
        return found
