"""Endpoints (envoy.config.endpoint.v3)."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

from agent.table.cluster import Assignment, Endpoint, Locality
from agent.table.decode.matchers import address, metadata
from agent.table.decode.message import Reader
from agent.table.listener import Address

_HEALTH = {
    "UNKNOWN": "healthy",
    "HEALTHY": "healthy",
    "UNHEALTHY": "unhealthy",
    "DRAINING": "draining",
    "TIMEOUT": "unhealthy",
    "DEGRADED": "degraded",
}

MOST_WEIGHT = 0xFFFFFFFF


def assignment(reader: Reader, *, names_allowed: bool = False) -> Assignment:
    """ClusterLoadAssignment. DNS clusters may name hosts; the others need IP addresses."""
    with reader as r:
        endpoints: list[Endpoint] = []
        for item in r.children("endpoints"):
            endpoints.extend(_locality(item, names_allowed))
        overprovisioning = 140
        if (policy := r.child("policy")) is not None:
            with policy as p:
                if p.seconds("endpoint_stale_after"):
                    p.fail(
                        "endpoint_stale_after",
                        "unsupported field: endpoints are used until they are replaced",
                    )
                p.only("weighted_priority_health", False)
                overprovisioning = p.integer("overprovisioning_factor", 140)
        _check_weights(r, endpoints)
        endpoints.sort(key=lambda endpoint: endpoint.priority)
        return Assignment(r.text("cluster_name"), tuple(endpoints), overprovisioning)


def _check_weights(r: Reader, endpoints: list[Endpoint]) -> None:
    """As Envoy: what is added up must stay within 32 bits."""
    hosts: dict[tuple[Locality, int], int] = {}
    localities: dict[int, dict[Locality, int]] = {}
    for endpoint in endpoints:
        place = (endpoint.locality, endpoint.priority)
        hosts[place] = hosts.get(place, 0) + endpoint.weight
        localities.setdefault(endpoint.priority, {})[endpoint.locality] = endpoint.locality_weight
    if any(total > MOST_WEIGHT for total in hosts.values()):
        r.fail("endpoints", f"the weights of a locality's endpoints add up to more than {MOST_WEIGHT}")
    if any(sum(weights.values()) > MOST_WEIGHT for weights in localities.values()):
        r.fail("endpoints", f"the weights of the localities of a priority add up to more than {MOST_WEIGHT}")


def _locality(reader: Reader, names_allowed: bool) -> list[Endpoint]:
    with reader as r:
        place = Locality()
        if (given := r.child("locality")) is not None:
            with given as g:
                place = Locality(g.text("region"), g.text("zone"), g.text("sub_zone"))
        weight, priority = r.integer("load_balancing_weight"), r.integer("priority")
        if "envoy.transport_socket_match" in metadata(r.child("metadata")):
            # All else in a locality's metadata is for filters and logs that are refused.
            r.fail("metadata", "transport socket matches are supported in the metadata of endpoints only")
        if (listed := r.child("load_balancer_endpoints")) is not None:
            with listed as endpoints:
                return [
                    _endpoint(item, names_allowed, place, weight, priority)
                    for item in endpoints.children("lb_endpoints")
                ]
        return [
            _endpoint(item, names_allowed, place, weight, priority) for item in r.children("lb_endpoints")
        ]


def _endpoint(
    reader: Reader, names_allowed: bool, place: Locality, locality_weight: int, priority: int
) -> Endpoint:
    with reader as r:
        health = r.choice("health_status", _HEALTH)
        data = metadata(r.child("metadata"))
        weight = r.integer("load_balancing_weight", 1)
        with r.must("endpoint") as e:
            where = address(e.must("address"))
            if not names_allowed and not where.path:
                try:
                    ip_address(where.host)
                except ValueError:
                    e.fail("address.socket_address.address", f"malformed IP address: {where.host}")
            checks = _check_config(e, where)
            return Endpoint(
                address=where,
                hostname=e.text("hostname"),
                weight=weight,
                healthy=health in {"healthy", "degraded"},
                draining=health == "draining",
                degraded=health == "degraded",
                locality=place,
                locality_weight=locality_weight,
                priority=priority,
                metadata=data,
                **checks,
            )


def _check_config(endpoint: Reader, where: Address) -> dict[str, Any]:
    config = endpoint.child("health_check_config")
    if config is None:
        return {}
    with config as c:
        own = c.child("address")
        place = where if own is None else address(own)
        port = c.integer("port_value")
        if port and not place.path:
            place = replace(place, port=port)
        return {
            "check_address": None if place == where else place,
            "check_hostname": c.text("hostname"),
            "checked": not c.boolean("disable_active_health_check"),
        }
