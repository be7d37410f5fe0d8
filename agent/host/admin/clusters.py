"""/clusters: upstream hosts as all workers see them, in Envoy's text and JSON (envoy.admin.v3.Clusters).

Rule: workers report Envoy's own JSON shape (agent.upstream.view); numbers are added up, a host is only as healthy
as its least content worker says. Not for: asking the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

_FLAGS = (
    ("failed_active_health_check", "failed_active_hc"),
    ("failed_outlier_check", "failed_outlier_check"),
    ("failed_active_degraded_check", "degraded_active_hc"),
    ("pending_dynamic_removal", "pending_dynamic_removal"),
)


def merged(
    answers: Iterable[Sequence[dict[str, Any]]], wanted: Callable[[str], bool]
) -> list[dict[str, Any]]:
    """One list of cluster statuses out of one a worker."""
    clusters: dict[str, dict[str, Any]] = {}
    for answer in answers:
        for cluster in answer:
            if not wanted(cluster["name"]):
                continue
            known = clusters.get(cluster["name"])
            if known is None:
                clusters[cluster["name"]] = {
                    **cluster,
                    "host_statuses": [dict(host) for host in cluster["host_statuses"]],
                }
            else:
                _add_hosts(known["host_statuses"], cluster["host_statuses"])
    return [clusters[name] for name in sorted(clusters)]


def _add_hosts(known: list[dict[str, Any]], others: Sequence[dict[str, Any]]) -> None:
    by_address = {address_text(host): host for host in known}
    for host in others:
        mine = by_address.get(address_text(host))
        if mine is None:
            known.append(dict(host))
            continue
        values = {stat["name"]: int(stat.get("value", 0)) for stat in host["stats"]}
        mine["stats"] = [
            {**stat, "value": str(int(stat.get("value", 0)) + values.get(stat["name"], 0))}
            for stat in mine["stats"]
        ]
        mine["health_status"] = {**mine["health_status"], **host["health_status"]}


def address_text(host: dict[str, Any]) -> str:
    """`ip:port`, or a socket's path."""
    address = host["address"]
    if "pipe" in address:
        return str(address["pipe"]["path"])
    ip, port = address["socket_address"]["address"], address["socket_address"]["port_value"]
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"


def as_text(clusters: Iterable[dict[str, Any]]) -> str:
    """Envoy's `cluster::host::name::value` lines."""
    lines: list[str] = []
    for cluster in clusters:
        name = cluster["name"]
        lines.append(f"{name}::observability_name::{cluster.get('observability_name', name)}")
        for threshold in cluster.get("circuit_breakers", {}).get("thresholds", ()):
            priority = threshold.get("priority", "DEFAULT").lower()
            lines.extend(
                f"{name}::{priority}_priority::{limit}::{value}"
                for limit, value in threshold.items()
                if limit != "priority"
            )
        lines.append(f"{name}::added_via_api::{str(cluster.get('added_via_api', False)).lower()}")
        for host in cluster["host_statuses"]:
            lines.extend(f"{name}::{address_text(host)}::{line}" for line in _host_lines(host))
    return "".join(f"{line}\n" for line in lines)


def _host_lines(host: dict[str, Any]) -> Iterable[str]:
    for stat in sorted(host["stats"], key=lambda stat: str(stat["name"])):
        yield f"{stat['name']}::{stat.get('value', 0)}"
    yield f"hostname::{host.get('hostname', '')}"
    yield f"health_flags::{_flags(host['health_status'])}"
    yield f"weight::{host.get('weight', 1)}"
    locality = host.get("locality", {})
    for part in ("region", "zone", "sub_zone"):
        yield f"{part}::{locality.get(part, '')}"
    yield "canary::false"
    yield f"priority::{host.get('priority', 0)}"
    yield f"success_rate::{host.get('success_rate', {}).get('value', -1)}"
    yield "local_origin_success_rate::-1"


def _flags(health: dict[str, Any]) -> str:
    flags = "".join(f"/{text}" for key, text in _FLAGS if health.get(key))
    if health.get("eds_health_status") in ("UNHEALTHY", "DRAINING", "TIMEOUT"):
        flags += "/failed_eds_health"
    return flags or "healthy"
