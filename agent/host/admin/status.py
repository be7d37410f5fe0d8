"""What `hostmesh-agent status` shows, as plain data (its JSON form is this very value).

Rule: nothing secret; times are seconds since the epoch, `null` where something is not there yet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wire.xds import CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE

if TYPE_CHECKING:
    from agent.host.service import AgentService
    from agent.host.workload import HostWorkload

_SHORT = {"listeners": LISTENER, "routes": ROUTE, "clusters": CLUSTER, "endpoints": ENDPOINT}


def status_of(service: AgentService) -> dict[str, Any]:
    """The whole agent."""
    return {
        "ready": service.ready and service.dataplane.serving,
        "draining": service.ending,
        "started": service.started,
        "host": service.facts.name,
        "addresses": list(service.facts.addresses),
        "capture": service.capture.active,
        "notServing": sorted(service.gate.reasons.values()),
        "captureError": service.gate.error or None,
        "generation": service.dataplane.generation,
        "waiting": service.dataplane.waiting,
        "workers": [
            {"pid": worker.pid, "generation": worker.generation, "restarts": worker.restarts}
            for worker in service.dataplane.status()
        ],
        "dns": {
            "servers": list(service.resolvers.current()),
            "forwarded": service.forwarder.forwarded,
            "failed": service.forwarder.failed,
        },
        "workloads": [_workload(workload) for workload in service.workloads],
    }


def _workload(workload: HostWorkload) -> dict[str, Any]:
    parts = workload.parts
    identity, held = parts.identity.current, parts.session.held()
    healthy, reason = workload.health
    return {
        "workload": workload.key,
        "node": parts.node_id,
        "healthy": healthy,
        "healthReason": reason,
        "istiod": {
            "connected": parts.xds.connected,
            "error": parts.xds.last_error or None,
            "rejected": parts.xds.last_rejection or None,
            "notRegistered": parts.xds.not_registered or None,
        },
        "missing": list(workload.missing),
        "refused": [
            {
                "type": one.type_url.rpartition(".")[2],
                "name": one.name,
                "path": one.path,
                "reason": one.reason,
            }
            for one in workload.refused
        ],
        "identity": {
            "spiffe": str(identity.spiffe) if identity is not None else None,
            "serial": identity.serial if identity is not None else None,
            "expires": identity.expires if identity is not None else None,
            "error": parts.identity.last_error or None,
        },
        "resources": {name: len(held[type_url]) for name, type_url in _SHORT.items()}
        | {"names": len(parts.dns.names) if held[NAME_TABLE] else 0},
        "dns": {"queries": parts.dns.counters.queries, "answered": parts.dns.counters.answered},
    }
