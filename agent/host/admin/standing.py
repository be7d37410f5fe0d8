"""Statistics of Envoy's that stand still here: what a table makes known at once, and what cannot happen in this build.

Rule: only names that Envoy shows for the same bootstrap, so that who looks for one finds it. A name of what can happen here is
counted where it happens or is not there: a zero must be true. What a bootstrap does not ask for (health checks, outlier
detection, TLS) is not told of. Not for: counting.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from agent.table.listener import HttpManager
from agent.table.snapshot import Table
from agent.telemetry.reading import Statistics

_CLUSTER = (
    "assignment_stale", "assignment_timeout_received", "assignment_use_cached",
    "http1.dropped_headers_with_underscores", "http1.metadata_not_supported_error",
    "http1.requests_rejected_with_underscores_in_headers", "http1.response_flood", "lb_local_cluster_not_ok",
    "lb_recalculate_zone_structures", "lb_zone_cluster_too_small", "lb_zone_no_capacity_left",
    "lb_zone_routing_all_directly", "lb_zone_routing_cross_zone", "lb_zone_routing_sampled",
    "upstream_cx_connect_with_0_rtt", "upstream_cx_http3_total", "upstream_http3_broken",
    "upstream_internal_redirect_failed_total", "upstream_internal_redirect_succeeded_total", "upstream_rq_0rtt",
    "upstream_rq_retry_backoff_ratelimited",
)  # fmt: skip
_CLUSTER_GAUGES = (
    "circuit_breakers.default.cx_pool_open", "circuit_breakers.high.cx_pool_open", "version", "warming_state",
)  # fmt: skip
_MANAGER = (
    "downstream_cx_http3_total", "downstream_cx_overload_disable_keepalive", "downstream_rq_http3_total",
    "downstream_rq_overload_close", "downstream_rq_too_many_premature_resets", "rq_overload_local_reply",
    "rs_too_large", "tracing.client_enabled", "tracing.health_check", "tracing.not_traceable",
    "tracing.random_sampling", "tracing.service_forced", "downstream_rq_1xx", "downstream_rq_2xx",
    "downstream_rq_3xx", "downstream_rq_4xx", "downstream_rq_5xx", "downstream_rq_completed",
)  # fmt: skip
_MANAGER_GAUGES = (
    "downstream_cx_http2_active", "downstream_cx_http3_active",
)  # fmt: skip
_LISTENER = (
    "extension_config_missing", "network_extension_config_missing",
)  # fmt: skip
_COUNTERS = (
    "cluster_manager.cluster_modified", "cluster_manager.cluster_removed", "cluster_manager.cluster_updated",
    "cluster_manager.cluster_updated_via_merge", "cluster_manager.update_merge_cancelled",
    "cluster_manager.update_out_of_merge_window", "http1.metadata_not_supported_error", "http1.response_flood",
    "listener_manager.listener_create_failure", "listener_manager.listener_in_place_updated",
    "listener_manager.listener_modified", "listener_manager.listener_removed", "main_thread.watchdog_mega_miss",
    "main_thread.watchdog_miss", "runtime.deprecated_feature_use", "runtime.load_error",
    "runtime.override_dir_exists", "server.debug_assertion_failures", "server.dropped_stat_flushes",
    "server.dynamic_unknown_fields", "server.envoy_bug_failures", "server.envoy_notifications",
    "server.main_thread.watchdog_mega_miss", "server.main_thread.watchdog_miss", "server.static_unknown_fields",
    "server.wip_protos", "server.worker_0.watchdog_mega_miss", "server.worker_0.watchdog_miss",
    "workers.watchdog_mega_miss", "workers.watchdog_miss",
)  # fmt: skip
_GAUGES = (
    "cluster_manager.warming_clusters", "listener_manager.total_listeners_warming", "listener_manager.workers_pinned",
    "runtime.admin_overrides_active", "runtime.deprecated_feature_seen_since_process_start",
    "server.compilation_settings.fips_mode", "server.hot_restart_epoch", "server.parent_connections",
    "server.seconds_until_first_ocsp_response_expiring",
)  # fmt: skip
_FOREVER = 4294967295


def complete(
    found: Statistics, table: Table, *, listener_names: Iterable[str], uptime: int, resident: int, workers: int
) -> None:  # fmt: skip
    """Add what stands still to what was counted, and take away what the table does not ask for. `workers`: how many serve."""
    zeros: list[str] = list(_COUNTERS)
    gauges: dict[str, int] = dict.fromkeys(_GAUGES, 0)
    for name, cluster in table.clusters.items():
        zeros += [f"cluster.{name}.{rest}" for rest in _CLUSTER]
        gauges |= {f"cluster.{name}.{rest}": 0 for rest in _CLUSTER_GAUGES}
        zeros.append(f"cluster.{name}.default.total_match_count")
        unasked = [
            kind
            for kind, asked in (
                ("health_check", cluster.health_checks), ("outlier_detection", cluster.outlier), ("ssl", cluster.tls),
            )
            if not asked
        ]  # fmt: skip
        _forget(found, tuple(f"cluster.{name}.{kind}." for kind in unasked))
    managers = {
        chain.terminal.stat_prefix
        for listener in table.listeners.values()
        for chain in (*listener.chains, listener.default_chain)
        if chain is not None and isinstance(chain.terminal, HttpManager)
    }
    for prefix in managers:
        zeros += [f"http.{prefix}.{rest}" for rest in _MANAGER]
        gauges |= {f"http.{prefix}.{rest}": 0 for rest in _MANAGER_GAUGES}
        gauges[f"http.{prefix}.downstream_cx_http1_active"] = found.gauges.get(
            (f"http.{prefix}.downstream_cx_active", ()), 0
        )
    for name, listener in zip(listener_names, table.listeners.values(), strict=True):
        if not any(
            chain is not None and chain.tls is not None
            for chain in (*listener.chains, listener.default_chain)
        ):
            _forget(found, (f"listener.{name}.ssl.",))
        zeros += [f"listener.{name}.{rest}" for rest in _LISTENER]
        if workers == 1:
            total = found.counters.get((f"listener.{name}.downstream_cx_total", ()), 0)
            found.counters[f"listener.{name}.worker_0.downstream_cx_total", ()] = total
            active = found.gauges.get((f"listener.{name}.downstream_cx_active", ()), 0)
            gauges[f"listener.{name}.worker_0.downstream_cx_active"] = active
    listeners, clusters = len(table.listeners), len(table.clusters)
    for name, count in (
        ("cluster_manager.cluster_added", clusters), ("listener_manager.listener_added", listeners),
        ("listener_manager.listener_create_success", listeners),
    ):  # fmt: skip
        found.count(name, count)
    gauges |= {
        "cluster_manager.active_clusters": clusters, "listener_manager.total_listeners_active": listeners,
        "listener_manager.workers_started": workers, "server.concurrency": workers, "server.uptime": uptime,
        "server.live": int(workers > 0), "server.memory_allocated": resident, "server.memory_heap_size": resident,
        "server.memory_physical_size": resident,
        "server.hot_restart_generation": 1, "server.version": 0,
    }  # fmt: skip
    if not any(_with_tls(table)):
        gauges["server.days_until_first_cert_expiring"] = _FOREVER
    for name in zeros:
        found.counters.setdefault((name, ()), 0)
    for name, value in gauges.items():
        if not found.gauges.get((name, ())):
            found.gauges[name, ()] = value


def _with_tls(table: Table) -> Iterator[bool]:
    for listener in table.listeners.values():
        for chain in (*listener.chains, listener.default_chain):
            yield chain is not None and chain.tls is not None
    for cluster in table.clusters.values():
        yield cluster.tls is not None or bool(cluster.transport_matches)


def _forget(found: Statistics, prefixes: tuple[str, ...]) -> None:
    if not prefixes:
        return
    for held in (found.counters, found.gauges):
        for key in [key for key in held if key[0].startswith(prefixes)]:
            del held[key]
