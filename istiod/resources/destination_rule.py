"""networking.istio.io DestinationRule: how a host is called: pools, balancing, TLS, subsets.

Not for: turning it into Envoy clusters (istiod/compile/traffic_policy.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from istiod.resources.schema import (
    Bool,
    Double,
    Duration,
    Int32,
    IntPercent,
    NonEmpty,
    Percent100,
    PortNumber,
    PositiveDuration,
    Spec,
    Str,
    UInt32,
    UInt64,
    camel_case,
    empty,
    exactly_one,
    host_problem,
    later,
)
from istiod.resources.selector import WorkloadSelector


class TcpKeepalive(Spec):
    """SO_KEEPALIVE's three numbers."""

    probes: UInt32 | None = None
    time: PositiveDuration | None = None
    interval: PositiveDuration | None = None


class TcpSettings(Spec):
    """Limits of connections to an upstream host."""

    max_connections: Int32 | None = None
    connect_timeout: PositiveDuration | None = None
    tcp_keepalive: TcpKeepalive | None = None
    max_connection_duration: PositiveDuration | None = None
    idle_timeout: Duration | None = None


class Http2KeepAlive(Spec):
    """PING interval and timeout of HTTP/2 connections."""

    interval: PositiveDuration | None = None
    timeout: PositiveDuration | None = None


class HttpSettings(Spec):
    """Limits of HTTP requests to an upstream host."""

    http1_max_pending_requests: Int32 | None = None
    http2_max_requests: Int32 | None = None
    max_requests_per_connection: Int32 | None = None
    max_retries: Int32 | None = None
    idle_timeout: PositiveDuration | None = None
    h2_upgrade_policy: Literal["DEFAULT", "DO_NOT_UPGRADE", "UPGRADE"] = "DEFAULT"
    use_client_protocol: Bool | None = None
    max_concurrent_streams: Int32 | None = None
    http2_keep_alive: Http2KeepAlive | None = later()


class ConnectionPool(Spec):
    """Connection pool settings."""

    tcp: TcpSettings | None = None
    http: HttpSettings | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.tcp is None and self.http is None:
            yield "", "at least one of tcp, http must be set"
        parts: tuple[tuple[str, Spec | None], ...] = (("tcp", self.tcp), ("http", self.http))
        for name, part in parts:
            for field, value in part or ():
                if isinstance(value, int) and value < 0:
                    yield f"{name}.{camel_case(field)}", "must not be negative"


class CookieAttribute(Spec):
    """An attribute of the affinity cookie that Envoy makes."""

    name: Str
    value: Str = ""


class HttpCookie(Spec):
    """Hash by a cookie; with a ttl the proxy makes it where it is missing."""

    name: NonEmpty
    path: Str = ""
    ttl: Duration | None = None
    attributes: tuple[CookieAttribute, ...] = ()


class RingHash(Spec):
    """Ring (ketama) hashing."""

    minimum_ring_size: UInt64 | None = None


class Maglev(Spec):
    """Maglev hashing."""

    table_size: UInt64 | None = None


class ConsistentHash(Spec):
    """Session affinity by one property of the request."""

    http_header_name: Str | None = None
    http_cookie: HttpCookie | None = None
    use_source_ip: Bool | None = None
    http_query_parameter_name: Str | None = None
    ring_hash: RingHash | None = None
    maglev: Maglev | None = None
    minimum_ring_size: UInt64 | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        keys = ("http_header_name", "http_cookie", "use_source_ip", "http_query_parameter_name")
        if len(exactly_one(self, keys)) != 1:
            yield (
                "",
                "exactly one of httpHeaderName, httpCookie, useSourceIp, httpQueryParameterName must be set",
            )
        if self.ring_hash is not None and self.maglev is not None:
            yield "maglev", "may not be set together with ringHash"


class Distribute(Spec):
    """Share of traffic by locality."""

    from_: Str = ""
    to: dict[str, UInt32] = empty()


class Failover(Spec):
    """Where a region's traffic goes when it is unhealthy."""

    from_: Str = ""
    to: Str = ""


class LocalityLoadBalancer(Spec):
    """Locality load balancing; at most one of the three ways."""

    distribute: tuple[Distribute, ...] = ()
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[NonEmpty, ...] = ()
    enabled: Bool | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.distribute and (self.failover or self.failover_priority):
            yield "distribute", "may not be set together with failover or failoverPriority"


class ZoneAwareLoadBalancer(Spec):
    """Zone-aware routing."""

    enabled: Bool | None = None
    failover: tuple[Failover, ...] = ()
    failover_priority: tuple[NonEmpty, ...] = ()
    min_cluster_size: Annotated[UInt64 | None, Field(ge=1)] = None


class Warmup(Spec):
    """Slow start."""

    duration: PositiveDuration
    minimum_percent: Percent100 | None = None
    aggression: Annotated[Double, Field(ge=1)] | None = None


class LoadBalancer(Spec):
    """Which instance a call goes to."""

    simple: (
        Literal["UNSPECIFIED", "LEAST_CONN", "RANDOM", "PASSTHROUGH", "ROUND_ROBIN", "LEAST_REQUEST"] | None
    ) = None
    consistent_hash: ConsistentHash | None = None
    locality_lb_setting: LocalityLoadBalancer | None = later()
    zone_aware_lb_setting: ZoneAwareLoadBalancer | None = later()
    warmup_duration_secs: PositiveDuration | None = later()
    warmup: Warmup | None = later()

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.simple is not None and self.consistent_hash is not None:
            yield "consistentHash", "may not be set together with simple"


class OutlierDetection(Spec):
    """When an instance is ejected for a while."""

    consecutive_errors: Int32 | None = None
    split_external_local_origin_errors: Bool = False
    consecutive_local_origin_failures: UInt32 | None = None
    consecutive_gateway_errors: UInt32 | None = None
    consecutive5xx_errors: UInt32 | None = None
    interval: PositiveDuration | None = None
    base_ejection_time: PositiveDuration | None = None
    max_ejection_percent: IntPercent | None = None
    min_health_percent: IntPercent | None = None
    outlier_detection_http_error_codes: tuple[Annotated[Int32, Field(ge=100, le=599)], ...] = later(())


class ClientTls(Spec):
    """How TLS is originated towards the host."""

    mode: Literal["DISABLE", "SIMPLE", "MUTUAL", "ISTIO_MUTUAL"] = "DISABLE"
    client_certificate: Str = ""
    private_key: Str = ""
    ca_certificates: Str = ""
    ca_crl: Str = ""
    credential_name: Str = later("")
    subject_alt_names: tuple[NonEmpty, ...] = ()
    sni: Str = ""
    insecure_skip_verify: Bool | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.mode == "MUTUAL" and not self.credential_name:
            if not self.client_certificate:
                yield "clientCertificate", "must be set for MUTUAL"
            if not self.private_key:
                yield "privateKey", "must be set for MUTUAL"
        if self.mode == "ISTIO_MUTUAL":
            for name in ("clientCertificate", "privateKey", "caCertificates", "credentialName"):
                snake = "".join("_" + c.lower() if c.isupper() else c for c in name)
                if getattr(self, snake):
                    yield name, "may not be set for ISTIO_MUTUAL"
        if self.insecure_skip_verify and (self.ca_certificates or self.subject_alt_names):
            yield "insecureSkipVerify", "may not be set together with caCertificates or subjectAltNames"


class Tunnel(Spec):
    """CONNECT tunnel through another proxy."""

    protocol: Str = ""
    target_host: NonEmpty
    target_port: PortNumber


class ProxyProtocol(Spec):
    """PROXY protocol towards the upstream."""

    version: Literal["V1", "V2"] = "V1"


class RetryBudget(Spec):
    """Concurrent retries as a share of active requests."""

    percent: Percent100 | None = None
    min_retry_concurrency: UInt32 | None = None
    budget_interval: Duration | None = later()


class PortNumberSelector(Spec):
    """A port by number."""

    number: PortNumber


class PortTrafficPolicy(Spec):
    """The policy of one port; replaces, does not merge with, the destination's."""

    port: PortNumberSelector
    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None


class TrafficPolicy(Spec):
    """The policy of a host or of a subset."""

    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None
    port_level_settings: tuple[PortTrafficPolicy, ...] = ()
    tunnel: Tunnel | None = later()
    proxy_protocol: ProxyProtocol | None = later()
    retry_budget: RetryBudget | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        numbers = [setting.port.number for setting in self.port_level_settings]
        if len(set(numbers)) != len(numbers):
            yield "portLevelSettings", "the same port is listed twice"


class Subset(Spec):
    """A named part of the instances, by labels."""

    name: NonEmpty
    labels: dict[str, Str] = empty()
    traffic_policy: TrafficPolicy | None = None


class DestinationRule(Spec):
    """The rule of one host."""

    host: NonEmpty
    traffic_policy: TrafficPolicy | None = None
    subsets: tuple[Subset, ...] = ()
    export_to: tuple[NonEmpty, ...] = ()
    workload_selector: WorkloadSelector | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if problem := host_problem(self.host, wildcard=True):
            yield "host", problem
        names = [subset.name for subset in self.subsets]
        if len(set(names)) != len(names):
            yield "subsets", "the same subset is named twice"
