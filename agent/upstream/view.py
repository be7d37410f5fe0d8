"""What /clusters shows of a cluster at run time, in Envoy's JSON (envoy.admin.v3.ClusterStatus).

Rule: plain JSON values, made when somebody asks; the host process adds the workers' up (agent.host.admin.clusters).
Not for: anything on the way of a request.
"""

from __future__ import annotations

from typing import Any

from agent.table.cluster import Thresholds
from agent.upstream.cluster import ClusterRuntime
from agent.upstream.host import Host


def cluster_view(cluster: ClusterRuntime, *, added_via_api: bool) -> dict[str, Any]:
    """One cluster with its hosts."""
    config = cluster.config
    return {
        "name": config.name,
        "observability_name": config.alt_stat_name or config.name,
        "added_via_api": added_via_api,
        "circuit_breakers": {
            "thresholds": [
                _thresholds(config.default_thresholds),
                {"priority": "HIGH", **_thresholds(config.high_thresholds)},
            ]
        },
        "host_statuses": [_host(host) for host in cluster.hosts],
    }


def _thresholds(limits: Thresholds) -> dict[str, Any]:
    return {
        "max_connections": limits.max_connections,
        "max_pending_requests": limits.max_pending_requests,
        "max_requests": limits.max_requests,
        "max_retries": limits.max_retries,
    }


def _host(host: Host) -> dict[str, Any]:
    endpoint = host.endpoint
    health: dict[str, Any] = {"eds_health_status": _eds_health(host)}
    if not host.checked_healthy:
        health["failed_active_health_check"] = True
    if host.ejected_until:
        health["failed_outlier_check"] = True
    locality = endpoint.locality
    address: dict[str, Any]
    if endpoint.address.path:
        address = {"pipe": {"path": endpoint.address.path}}
    else:
        address = {"socket_address": {"address": endpoint.address.host, "port_value": endpoint.address.port}}
    return {
        "address": address,
        "hostname": endpoint.hostname,
        "stats": [
            {"type": "GAUGE", "name": "cx_active", "value": str(host.pool.connections())},
            {"type": "GAUGE", "name": "rq_active", "value": str(host.active)},
            {"type": "GAUGE", "name": "rq_pending_active", "value": str(len(host.pool.waiting))},
            {"type": "COUNTER", "name": "cx_total", "value": str(host.connects)},
            {"type": "COUNTER", "name": "cx_connect_fail", "value": str(host.connect_failures)},
            {"type": "COUNTER", "name": "rq_total", "value": str(host.rq_total)},
            {"type": "COUNTER", "name": "rq_success", "value": str(host.rq_success)},
            {"type": "COUNTER", "name": "rq_error", "value": str(host.rq_error)},
            {"type": "COUNTER", "name": "rq_timeout", "value": str(host.rq_timeout)},
        ],
        "health_status": health,
        "weight": endpoint.weight,
        "priority": endpoint.priority,
        "locality": {"region": locality.region, "zone": locality.zone, "sub_zone": locality.sub_zone},
    }


def _eds_health(host: Host) -> str:
    if host.endpoint.draining:
        return "DRAINING"
    if host.endpoint.degraded:
        return "DEGRADED"
    return "HEALTHY" if host.endpoint.healthy else "UNHEALTHY"
