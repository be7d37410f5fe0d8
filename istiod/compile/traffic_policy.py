"""DestinationRules of a host, merged, and their connection pool, balancing and outlier settings on a cluster.

Not for: TLS (tls.py) and cluster types (clusters.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isqrt
from typing import TypeAlias

from envoy.config.cluster.v3 import circuit_breaker_pb2, cluster_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from istiod.compile.envoy import UNLIMITED, any_of, duration, uint32
from istiod.resources.destination_rule import (
    ClientTls,
    DestinationRule,
    OutlierDetection,
    RetryBudget,
    Subset,
    TrafficPolicy,
)
from istiod.resources.document import Document
from istiod.resources.traffic.connection_pool import ConnectionPool
from istiod.resources.traffic.load_balancer import LoadBalancer
from istiod.services import Protocol

Lb: TypeAlias = cluster_pb2.Cluster.LbPolicy
HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_MOST_PROBES, _LONGEST_KEEPALIVE = 127, 32767
"""Linux refuses more (MAX_TCP_KEEPCNT, MAX_TCP_KEEPIDLE), and with it every connection."""
_LARGEST_RING, _LARGEST_TABLE = 8 << 20, 5_000_011
_SIMPLE = {
    "ROUND_ROBIN": Lb.ROUND_ROBIN,
    "LEAST_REQUEST": Lb.LEAST_REQUEST,
    "LEAST_CONN": Lb.LEAST_REQUEST,
    "RANDOM": Lb.RANDOM,
}


@dataclass(frozen=True, slots=True)
class Policy:
    """What is in force for one port of one subset (Istio: port level over subset over host)."""

    load_balancer: LoadBalancer | None = None
    connection_pool: ConnectionPool | None = None
    outlier_detection: OutlierDetection | None = None
    tls: ClientTls | None = None
    retry_budget: RetryBudget | None = None


@dataclass(frozen=True, slots=True)
class HostRule:
    """All DestinationRules of one host as one: the first trafficPolicy, every subset once.

    `virtual`: the host's addresses exist nowhere, so PASSTHROUGH, "to the address that was called", has no effect.
    """

    policy: TrafficPolicy | None
    subsets: Mapping[str, Subset]
    rules: tuple[Document[DestinationRule], ...]
    virtual: bool = False

    def effective(self, port: int, subset: str) -> Policy:
        """The policy for calls to `port` of `subset` ("" for the whole host)."""
        found = _of(self.policy, port, Policy())
        if subset and subset in self.subsets:
            found = _of(self.subsets[subset].traffic_policy, port, found)
        if self.virtual and found.load_balancer is not None and found.load_balancer.simple == "PASSTHROUGH":
            return replace(found, load_balancer=None)
        return found


NO_RULE = HostRule(None, {}, ())


def merge(rules: tuple[Document[DestinationRule], ...], *, virtual: bool = False) -> HostRule:
    """Istio's merge of rules of the same host: the oldest wins what cannot be had twice."""
    if not rules:
        return NO_RULE
    policy = next((rule.spec.traffic_policy for rule in rules if rule.spec.traffic_policy is not None), None)
    subsets: dict[str, Subset] = {}
    for rule in rules:
        for subset in rule.spec.subsets:
            subsets.setdefault(subset.name, subset)
    return HostRule(policy, subsets, rules, virtual)


def _of(policy: TrafficPolicy | None, port: int, wide: Policy) -> Policy:
    """Istio: settings of a narrower level replace those of the wider one, one kind of setting at a time."""
    if policy is None:
        return wide
    exact = next((one for one in policy.port_level_settings if one.port.number == port), None)
    if exact is not None:
        # A port's settings are complete: what they leave out has its default, not the host's value.
        return Policy(
            exact.load_balancer,
            exact.connection_pool,
            exact.outlier_detection,
            exact.tls,
            policy.retry_budget or wide.retry_budget,
        )
    return Policy(
        policy.load_balancer or wide.load_balancer,
        policy.connection_pool or wide.connection_pool,
        policy.outlier_detection or wide.outlier_detection,
        policy.tls or wide.tls,
        policy.retry_budget or wide.retry_budget,
    )


def apply_connection_pool(
    cluster: cluster_pb2.Cluster, pool: ConnectionPool | None, budget: RetryBudget | None
) -> None:
    """Circuit breakers and socket options. Unset limits are unlimited, as in Istio."""
    limits = circuit_breaker_pb2.CircuitBreakers.Thresholds(
        max_connections=uint32(UNLIMITED),
        max_pending_requests=uint32(UNLIMITED),
        max_requests=uint32(UNLIMITED),
        max_retries=uint32(UNLIMITED),
    )
    tcp, http = (pool.tcp, pool.http) if pool else (None, None)
    if tcp is not None:
        if tcp.max_connections:
            limits.max_connections.value = tcp.max_connections
        if tcp.connect_timeout is not None:
            cluster.connect_timeout.CopyFrom(duration(tcp.connect_timeout))
        if tcp.tcp_keepalive is not None:
            keepalive = cluster.upstream_connection_options.tcp_keepalive
            if tcp.tcp_keepalive.probes:
                keepalive.keepalive_probes.value = min(tcp.tcp_keepalive.probes, _MOST_PROBES)
            if tcp.tcp_keepalive.time:
                keepalive.keepalive_time.value = _kernel_seconds(tcp.tcp_keepalive.time)
            if tcp.tcp_keepalive.interval:
                keepalive.keepalive_interval.value = _kernel_seconds(tcp.tcp_keepalive.interval)
    if http is not None:
        if http.http1_max_pending_requests:
            limits.max_pending_requests.value = http.http1_max_pending_requests
        if http.http2_max_requests:
            limits.max_requests.value = http.http2_max_requests
        if http.max_retries:
            limits.max_retries.value = http.max_retries
    if budget is not None:
        limits.retry_budget.budget_percent.value = 20.0 if budget.percent is None else budget.percent
        limits.retry_budget.min_retry_concurrency.value = (
            3 if budget.min_retry_concurrency is None else budget.min_retry_concurrency
        )
    cluster.circuit_breakers.thresholds.append(limits)


def _kernel_seconds(seconds: float) -> int:
    return max(1, round(min(seconds, _LONGEST_KEEPALIVE)))


def apply_http_options(
    cluster: cluster_pb2.Cluster, protocol: Protocol, pool: ConnectionPool | None
) -> Protocol:
    """The upstream's HTTP version and limits. Returns the protocol that is spoken in the end (h2 upgrades)."""
    http = pool.http if pool else None
    options = http_protocol_options_pb2.HttpProtocolOptions()
    if protocol is Protocol.HTTP and http is not None and http.h2_upgrade_policy == "UPGRADE":
        protocol = Protocol.HTTP2
    if protocol is Protocol.AUTO or (http is not None and http.use_client_protocol and protocol.is_http):
        options.use_downstream_protocol_config.http_protocol_options.SetInParent()
        options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
        http2 = options.use_downstream_protocol_config.http2_protocol_options
    elif protocol is Protocol.HTTP2:
        options.explicit_http_config.http2_protocol_options.SetInParent()
        http2 = options.explicit_http_config.http2_protocol_options
    elif protocol is Protocol.HTTP:
        options.explicit_http_config.http_protocol_options.SetInParent()
        http2 = None
    else:
        return protocol
    needed = protocol is not Protocol.HTTP or options.HasField("use_downstream_protocol_config")
    if http is not None:
        common = options.common_http_protocol_options
        if http.idle_timeout is not None:
            common.idle_timeout.CopyFrom(duration(http.idle_timeout))
            needed = True
        if http.max_requests_per_connection:
            common.max_requests_per_connection.value = http.max_requests_per_connection
            needed = True
        if http.max_concurrent_streams and http2 is not None:
            http2.max_concurrent_streams.value = http.max_concurrent_streams
    tcp = pool.tcp if pool else None
    if tcp is not None and tcp.max_connection_duration is not None:
        options.common_http_protocol_options.max_connection_duration.CopyFrom(
            duration(tcp.max_connection_duration)
        )
        needed = True
    if needed:
        cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(any_of(options))
    return protocol


def name_server_by_request(cluster: cluster_pb2.Cluster, tls: ClientTls, sans: tuple[str, ...]) -> None:
    """A wildcard host has no name of its own: each request's authority is asked for, and verified (Istio)."""
    options = http_protocol_options_pb2.HttpProtocolOptions()
    held = cluster.typed_extension_protocol_options[HTTP_OPTIONS]
    if not held.Unpack(options):
        options.explicit_http_config.http_protocol_options.SetInParent()
    names = options.upstream_http_protocol_options
    names.auto_sni = not tls.sni
    names.auto_san_validation = not (tls.sni or tls.subject_alt_names or sans or tls.insecure_skip_verify)
    held.CopyFrom(any_of(options))


def apply_load_balancer(cluster: cluster_pb2.Cluster, balancer: LoadBalancer | None) -> None:
    """The balancing policy; Istio's default is LEAST_REQUEST."""
    if cluster.type == cluster_pb2.Cluster.ORIGINAL_DST:
        cluster.lb_policy = Lb.CLUSTER_PROVIDED
        return
    cluster.lb_policy = Lb.LEAST_REQUEST
    if balancer is None:
        return
    if balancer.simple == "PASSTHROUGH":
        cluster.type = cluster_pb2.Cluster.ORIGINAL_DST
        cluster.lb_policy = Lb.CLUSTER_PROVIDED
        cluster.ClearField("eds_cluster_config")
        cluster.ClearField("load_assignment")
    elif balancer.simple in _SIMPLE:
        cluster.lb_policy = _SIMPLE[balancer.simple]
    elif balancer.consistent_hash is not None:
        hashing = balancer.consistent_hash
        if hashing.maglev is not None:
            cluster.lb_policy = Lb.MAGLEV
            # Envoy refuses the cluster for any other size; its own is good for hundreds of hosts.
            if is_table_size(hashing.maglev.table_size or 0):
                cluster.maglev_lb_config.table_size.value = hashing.maglev.table_size or 0
        else:
            cluster.lb_policy = Lb.RING_HASH
            size = hashing.minimum_ring_size
            if hashing.ring_hash is not None and hashing.ring_hash.minimum_ring_size is not None:
                size = hashing.ring_hash.minimum_ring_size
            cluster.ring_hash_lb_config.minimum_ring_size.value = min(
                1024 if size is None else size, _LARGEST_RING
            )


def is_table_size(size: int) -> bool:
    """Whether Maglev can use a table of this size: prime, and not larger than Envoy makes them."""
    if not 1 < size <= _LARGEST_TABLE:
        return False
    return all(size % divisor for divisor in range(2, isqrt(size) + 1))


def apply_outlier_detection(cluster: cluster_pb2.Cluster, outlier: OutlierDetection | None) -> None:
    """Passive health checks. Success-rate ejection is off and panic at minHealthPercent (0), as in Istio."""
    if outlier is None:
        return
    target = cluster.outlier_detection
    target.enforcing_success_rate.value = 0
    consecutive = outlier.consecutive5xx_errors
    if consecutive is None and outlier.consecutive_errors is not None:
        consecutive = outlier.consecutive_errors
    if consecutive is not None:
        target.enforcing_consecutive_5xx.value = 100 if consecutive else 0
        target.consecutive_5xx.value = consecutive or 5
    if outlier.consecutive_gateway_errors is not None:
        target.enforcing_consecutive_gateway_failure.value = 100 if outlier.consecutive_gateway_errors else 0
        target.consecutive_gateway_failure.value = outlier.consecutive_gateway_errors or 5
    if outlier.interval is not None:
        target.interval.CopyFrom(duration(outlier.interval))
    if outlier.base_ejection_time is not None:
        target.base_ejection_time.CopyFrom(duration(outlier.base_ejection_time))
    if outlier.max_ejection_percent:
        target.max_ejection_percent.value = outlier.max_ejection_percent
    if outlier.split_external_local_origin_errors:
        target.split_external_local_origin_errors = True
        target.enforcing_local_origin_success_rate.value = 0
        local = outlier.consecutive_local_origin_failures
        if local is not None:
            target.consecutive_local_origin_failure.value = local or 5
            target.enforcing_consecutive_local_origin_failure.value = 100 if local else 0
    cluster.common_lb_config.healthy_panic_threshold.value = outlier.min_health_percent or 0
