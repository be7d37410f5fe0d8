"""Clusters and endpoints as values (Envoy config.cluster.v3, config.endpoint.v3). Times in seconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from agent.table.listener import Address, FilterConfig
from agent.table.tls import UpstreamTls


@dataclass(frozen=True, slots=True)
class Locality:
    """Envoy core.Locality."""

    region: str = ""
    zone: str = ""
    sub_zone: str = ""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One LbEndpoint. Equal endpoints are the same upstream host across updates."""

    address: Address
    hostname: str = ""
    weight: int = 1
    healthy: bool = True
    draining: bool = False
    degraded: bool = False
    locality: Locality = Locality()
    locality_weight: int = 0
    priority: int = 0
    metadata: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, hash=False)
    check_address: Address | None = None
    """Where health checks ask; None: at the address."""
    check_hostname: str = ""
    checked: bool = True
    """Not excluded from active health checks."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """All endpoints of a cluster (ClusterLoadAssignment), in order of priority and locality."""

    cluster: str
    endpoints: tuple[Endpoint, ...] = ()
    overprovisioning: int = 140


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Envoy CircuitBreakers.Thresholds."""

    max_connections: int = 1024
    max_pending_requests: int = 1024
    max_requests: int = 1024
    max_retries: int = 3
    retry_budget_percent: float | None = None
    retry_budget_min: int = 3


@dataclass(frozen=True, slots=True)
class OutlierDetection:
    """Envoy OutlierDetection; None of these set means Envoy's defaults."""

    consecutive_5xx: int = 5
    enforcing_consecutive_5xx: int = 100
    consecutive_gateway_failure: int = 5
    enforcing_consecutive_gateway_failure: int = 0
    consecutive_local_origin_failure: int = 5
    enforcing_consecutive_local_origin_failure: int = 100
    split_external_local_origin_errors: bool = False
    interval: float = 10.0
    base_ejection_time: float = 30.0
    max_ejection_time: float = 300.0
    max_ejection_percent: int = 10
    enforcing_success_rate: int = 100
    success_rate_minimum_hosts: int = 5
    success_rate_request_volume: int = 100
    success_rate_stdev_factor: int = 1900
    failure_percentage_threshold: int = 85
    enforcing_failure_percentage: int = 0
    failure_percentage_minimum_hosts: int = 5
    failure_percentage_request_volume: int = 50
    unejected_by_checks: bool = True
    """A host that passes its active checks again comes back (successful_active_health_check_uneject_host)."""


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """Envoy HealthCheck, HTTP/1.1 or TCP. Times in seconds; 0 where an interval is as the usual one."""

    kind: str
    """`http` or `tcp`."""
    timeout: float
    interval: float
    unhealthy_threshold: int
    healthy_threshold: int
    initial_jitter: float = 0.0
    interval_jitter: float = 0.0
    interval_jitter_percent: int = 0
    no_traffic_interval: float = 60.0
    no_traffic_healthy_interval: float = 0.0
    unhealthy_interval: float = 0.0
    unhealthy_edge_interval: float = 0.0
    healthy_edge_interval: float = 0.0
    reuse: bool = True
    host: str = ""
    method: bytes = b"GET"
    path: bytes = b"/"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    removed: frozenset[bytes] = frozenset()
    expected: tuple[tuple[int, int], ...] = ((200, 201),)
    retriable: tuple[tuple[int, int], ...] = ()
    send: bytes = b""
    receive: tuple[bytes, ...] = ()

    def request(self, host: str) -> bytes:
        """The bytes of the HTTP request that asks."""
        fields = {b"host": host.encode(), b"user-agent": b"Envoy/HC"}
        lines = [b"%s: %s" % field for field in fields.items() if field[0] not in self.removed]
        lines += [b"%s: %s" % field for field in self.headers]
        return b"%s %s HTTP/1.1\r\n%s\r\n\r\n" % (self.method, self.path, b"\r\n".join(lines))


@dataclass(frozen=True, slots=True)
class SubsetSelector:
    """One subset_selectors entry: its sorted keys, and its own fallback (as in Subsets, or `keys`), empty for none."""

    keys: tuple[str, ...]
    fallback: str = ""
    fallback_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Subsets:
    """Envoy LbSubsetConfig."""

    selectors: tuple[SubsetSelector, ...] = ()
    fallback: str = "none"
    """`none`, `any` or `default`."""
    default: Mapping[str, Any] = field(default_factory=dict)
    list_as_any: bool = False
    panic_any: bool = False


@dataclass(frozen=True, slots=True)
class TransportMatch:
    """One transport_socket_matches entry: endpoints whose metadata has these values use this TLS (None: raw)."""

    name: str
    match: Mapping[str, Any]
    tls: UpstreamTls | None


@dataclass(frozen=True, slots=True)
class Cluster:
    """One upstream cluster; defaults are Envoy's."""

    name: str
    discovery: str
    """`static`, `eds`, `strict_dns`, `logical_dns` or `original_dst`."""
    assignment: Assignment | None = None
    """Static and DNS clusters; for EDS see Table.assignments[eds_name]."""
    eds_name: str = ""
    alt_stat_name: str = ""
    connect_timeout: float = 5.0
    lb_policy: str = "round_robin"
    """`round_robin`, `least_request`, `random`, `ring_hash`, `maglev`, `cluster_provided`."""
    least_request_choices: int = 2
    lb_config: Mapping[str, Any] = field(default_factory=dict)
    """`minimum_ring_size`, `maximum_ring_size`, `table_size`, `locality_weighted`, where they apply."""
    panic_threshold: float = 50.0
    default_thresholds: Thresholds = Thresholds()
    high_thresholds: Thresholds = Thresholds()
    outlier: OutlierDetection | None = None
    health_checks: tuple[HealthCheck, ...] = ()
    tls: UpstreamTls | None = None
    transport_matches: tuple[TransportMatch, ...] = ()
    protocol: str = "http1"
    """`http1`, `http2`, or `downstream` (use what the client speaks)."""
    idle_timeout: float = 3600.0
    max_connection_duration: float = 0.0
    max_requests_per_connection: int = 0
    max_response_headers_kb: int = 80
    max_headers_count: int = 100
    max_stream_duration: float = 0.0
    buffer_limit: int = 1 << 20
    auto_sni: bool = False
    """The server's name is the host of each request's authority."""
    auto_san_validation: bool = False
    """The server's certificate must be for that name, too."""
    dns_refresh: float = 5.0
    dns_failure_refresh: tuple[float, float] | None = None
    """Base and maximum of the pauses after failures; None: dns_refresh."""
    dns_jitter: float = 0.0
    dns_respect_ttl: bool = False
    dns_tcp: bool = False
    dns_family: str = "auto"
    wait_for_warm: bool = True
    """Listeners open after the cluster's first resolution and health checks (wait_for_warm_on_init)."""
    bind_source: str = ""
    """Source address of connections to it: to v4 addresses, unless it is a v6 one and the only one."""
    bind_source_v6: str = ""
    """Source address of connections to v6 addresses (BindConfig.extra_source_addresses)."""
    use_http_header: bool = False
    """original_dst: take the address from x-envoy-original-dst-host."""
    upstream_port: int = 0
    """original_dst: upstream_port_override."""
    subsets: Subsets | None = None
    tcp_keepalive: tuple[int, int, int] | None = None
    """Probes, idle seconds, seconds between probes; 0: the kernel's own."""
    filters: tuple[FilterConfig, ...] = ()
    proper_case_headers: bool = False
    preserve_case: str = ""
    """How names of responses are written to clients: `keep` as the upstream did, `proper` for those of the proxy's own."""
    send_full_url: bool = False
    enable_trailers: bool = False
    http2: Mapping[str, int | float | bool] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)
