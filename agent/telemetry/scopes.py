"""Envoy's statistics of clusters, connection managers, listeners, TCP proxies and the server, by scope.

Rule: a scope is one block of slots; its attributes are slot numbers, so that the data plane writes
`slots[stats.upstream_cx_total] += 1`. Names are Envoy's; gauges are listed in `gauges`.
What is counted by request outcome (rq_2xx, rq_time, …) is not here: readers make it from the series (series.py).
Not for: labelled metrics.
"""

from __future__ import annotations

from typing import ClassVar

from agent.telemetry.stats import StatsRegion

_DOTTED = (
    "outlier_detection_",
    "circuit_breakers_default_",
    "circuit_breakers_high_",
    "health_check_",
    "ssl_",
)


class Scope:
    """One block of statistics. Subclasses declare their statistics as attributes, in order."""

    prefix: ClassVar[str]
    gauges: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, region: StatsRegion, name: str) -> None:
        """The block of `prefix.name`, new or known."""
        self._region, self._scope = region, f"{self.prefix}.{name}" if name else self.prefix
        names = self.names()
        first = region.block("s", f"{self.prefix}.{name}" if name else self.prefix, len(names))
        for offset, attribute in enumerate(names):
            setattr(self, attribute, first + offset)

    def counter(self, name: str) -> int:
        """The slot of a statistic that this scope has only where something happens: `retry.upstream_rq_503`."""
        return self._region.counter(f"{self._scope}.{name}")

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The attributes in the order of their slots."""
        return tuple(name for name, kind in cls.__annotations__.items() if not kind.startswith("ClassVar"))


def envoy_name(attribute: str) -> str:
    """An attribute's name as Envoy prints it: `outlier_detection_ejections_active` has a dot."""
    for prefix in _DOTTED:
        if attribute.startswith(prefix):
            return prefix[:-1].replace("breakers_", "breakers.") + "." + attribute[len(prefix) :]
    return attribute


class ClusterStats(Scope):
    """cluster.<name>.*"""

    prefix = "cluster"
    gauges = frozenset(
        {
            "upstream_cx_active",
            "upstream_rq_active",
            "upstream_rq_pending_active",
            "membership_total",
            "membership_healthy",
            "membership_degraded",
            "membership_excluded",
            "outlier_detection_ejections_active",
            "health_check_healthy",
            "circuit_breakers_default_cx_open",
            "circuit_breakers_default_rq_open",
            "circuit_breakers_default_rq_pending_open",
            "circuit_breakers_default_rq_retry_open",
            "circuit_breakers_high_cx_open",
            "circuit_breakers_high_rq_open",
            "circuit_breakers_high_rq_pending_open",
            "circuit_breakers_high_rq_retry_open",
        }
    )
    upstream_cx_total: int
    upstream_cx_active: int
    upstream_cx_http1_total: int
    upstream_cx_http2_total: int
    upstream_cx_connect_fail: int
    upstream_cx_connect_timeout: int
    upstream_cx_idle_timeout: int
    upstream_cx_max_duration_reached: int
    upstream_cx_max_requests: int
    upstream_cx_none_healthy: int
    upstream_cx_overflow: int
    upstream_cx_pool_overflow: int
    upstream_cx_protocol_error: int
    upstream_cx_destroy: int
    upstream_cx_destroy_local: int
    upstream_cx_destroy_remote: int
    upstream_cx_destroy_with_active_rq: int
    upstream_cx_destroy_local_with_active_rq: int
    upstream_cx_destroy_remote_with_active_rq: int
    upstream_cx_close_notify: int
    upstream_cx_rx_bytes_total: int
    upstream_cx_tx_bytes_total: int
    upstream_rq_total: int
    upstream_rq_active: int
    upstream_rq_pending_total: int
    upstream_rq_pending_active: int
    upstream_rq_pending_overflow: int
    upstream_rq_pending_failure_eject: int
    upstream_rq_cancelled: int
    upstream_rq_maintenance_mode: int
    upstream_rq_timeout: int
    upstream_rq_max_duration_reached: int
    upstream_rq_per_try_timeout: int
    upstream_rq_per_try_idle_timeout: int
    upstream_rq_rx_reset: int
    upstream_rq_tx_reset: int
    upstream_rq_retry: int
    upstream_rq_retry_backoff_exponential: int
    upstream_rq_retry_limit_exceeded: int
    upstream_rq_retry_overflow: int
    upstream_rq_retry_success: int
    membership_total: int
    membership_healthy: int
    membership_degraded: int
    membership_excluded: int
    membership_change: int
    lb_healthy_panic: int
    update_attempt: int
    update_success: int
    update_failure: int
    outlier_detection_ejections_active: int
    outlier_detection_ejections_enforced_total: int
    outlier_detection_ejections_overflow: int
    outlier_detection_ejections_detected_consecutive_5xx: int
    outlier_detection_ejections_enforced_consecutive_5xx: int
    outlier_detection_ejections_detected_consecutive_gateway_failure: int
    outlier_detection_ejections_enforced_consecutive_gateway_failure: int
    outlier_detection_ejections_detected_consecutive_local_origin_failure: int
    outlier_detection_ejections_enforced_consecutive_local_origin_failure: int
    outlier_detection_ejections_detected_success_rate: int
    outlier_detection_ejections_enforced_success_rate: int
    outlier_detection_ejections_detected_failure_percentage: int
    outlier_detection_ejections_enforced_failure_percentage: int
    health_check_attempt: int
    health_check_success: int
    health_check_failure: int
    health_check_network_failure: int
    health_check_healthy: int
    circuit_breakers_default_cx_open: int
    circuit_breakers_default_rq_open: int
    circuit_breakers_default_rq_pending_open: int
    circuit_breakers_default_rq_retry_open: int
    circuit_breakers_high_cx_open: int
    circuit_breakers_high_rq_open: int
    circuit_breakers_high_rq_pending_open: int
    circuit_breakers_high_rq_retry_open: int
    ssl_handshake: int
    ssl_connection_error: int
    ssl_fail_verify_no_cert: int
    ssl_fail_verify_error: int
    ssl_fail_verify_san: int


class HttpStats(Scope):
    """http.<stat_prefix>.*"""

    prefix = "http"
    gauges = frozenset(
        {
            "downstream_cx_active",
            "downstream_cx_ssl_active",
            "downstream_rq_active",
            "downstream_cx_upgrades_active",
        }
    )
    downstream_cx_total: int
    downstream_cx_active: int
    downstream_cx_http1_total: int
    downstream_cx_http2_total: int
    downstream_cx_ssl_total: int
    downstream_cx_ssl_active: int
    downstream_cx_destroy: int
    downstream_cx_destroy_local: int
    downstream_cx_destroy_remote: int
    downstream_cx_destroy_active_rq: int
    downstream_cx_destroy_local_active_rq: int
    downstream_cx_destroy_remote_active_rq: int
    downstream_cx_drain_close: int
    downstream_cx_idle_timeout: int
    downstream_cx_max_duration_reached: int
    downstream_cx_max_requests_reached: int
    downstream_cx_protocol_error: int
    downstream_cx_upgrades_total: int
    downstream_cx_upgrades_active: int
    downstream_cx_rx_bytes_total: int
    downstream_cx_tx_bytes_total: int
    downstream_rq_total: int
    downstream_rq_active: int
    downstream_rq_http1_total: int
    downstream_rq_http2_total: int
    downstream_rq_idle_timeout: int
    downstream_rq_max_duration_reached: int
    downstream_rq_header_timeout: int
    downstream_rq_timeout: int
    downstream_rq_rx_reset: int
    downstream_rq_tx_reset: int
    downstream_rq_too_large: int
    downstream_rq_non_relative_path: int
    downstream_rq_redirected_with_normalized_path: int
    downstream_rq_rejected_via_ip_detection: int
    downstream_rq_response_before_rq_complete: int
    downstream_rq_failed_path_normalization: int
    downstream_rq_ws_on_non_ws_route: int
    no_route: int
    no_cluster: int
    rq_direct_response: int
    rq_redirect: int
    rq_reset_after_downstream_response_started: int
    rq_total: int


class ListenerStats(Scope):
    """listener.<address>.*"""

    prefix = "listener"
    gauges = frozenset({"downstream_cx_active", "downstream_pre_cx_active"})
    downstream_cx_total: int
    downstream_cx_active: int
    downstream_cx_destroy: int
    downstream_cx_overflow: int
    downstream_cx_overload_reject: int
    downstream_cx_transport_socket_connect_timeout: int
    downstream_pre_cx_active: int
    downstream_pre_cx_timeout: int
    downstream_global_cx_overflow: int
    no_filter_chain_match: int
    ssl_handshake: int
    ssl_connection_error: int
    ssl_fail_verify_no_cert: int
    ssl_fail_verify_error: int
    ssl_fail_verify_san: int
    ssl_no_certificate: int


class TcpStats(Scope):
    """tcp.<stat_prefix>.*"""

    prefix = "tcp"
    gauges = frozenset({"downstream_cx_rx_bytes_buffered", "downstream_cx_tx_bytes_buffered"})
    downstream_cx_total: int
    downstream_cx_no_route: int
    downstream_cx_rx_bytes_total: int
    downstream_cx_tx_bytes_total: int
    downstream_cx_rx_bytes_buffered: int
    downstream_cx_tx_bytes_buffered: int
    downstream_flow_control_paused_reading_total: int
    downstream_flow_control_resumed_reading_total: int
    idle_timeout: int
    max_downstream_connection_duration: int
    upstream_flush_total: int


class ServerStats(Scope):
    """server.*"""

    prefix = "server"
    gauges = frozenset({"live", "concurrency", "total_connections", "memory_allocated"})
    live: int
    concurrency: int
    total_connections: int
    memory_allocated: int
    config_applied: int
    config_refused: int
    access_log_lines_dropped: int
    statistics_dropped: int


SCOPES: dict[str, type[Scope]] = {
    scope.prefix: scope for scope in (ClusterStats, HttpStats, ListenerStats, TcpStats, ServerStats)
}
"""By the first part of their names."""


def definitions() -> dict[str, object]:
    """What a region's index says about its scopes: attributes in slot order, and which are gauges."""
    return {
        "scopes": {
            prefix: {"names": list(scope.names()), "gauges": sorted(scope.gauges)}
            for prefix, scope in SCOPES.items()
        }
    }
