"""Istio's labels of one request or connection, from what the data plane knows (Istio "Standard metrics").

Rule: the own side comes from node metadata, the other side from the endpoint's `istio.workload`, the cluster's
`istio.services` and the peer's SPIFFE id; what nobody told is `unknown`.
Not for: counting (series.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from agent.table.listener import Direction
from agent.telemetry.outcome import Outcome

UNKNOWN: Final = "unknown"
_SIDE: Final = (
    "workload",
    "workload_namespace",
    "principal",
    "app",
    "version",
    "canonical_service",
    "canonical_revision",
    "cluster",
)


@dataclass(frozen=True, slots=True)
class Side:
    """One end of a call, as Istio labels it."""

    workload: str = UNKNOWN
    workload_namespace: str = UNKNOWN
    principal: str = UNKNOWN
    app: str = UNKNOWN
    version: str = UNKNOWN
    canonical_service: str = UNKNOWN
    canonical_revision: str = UNKNOWN
    cluster: str = UNKNOWN

    @classmethod
    def of_node(cls, metadata: Mapping[str, Any], principal: str = UNKNOWN) -> Side:
        """The own side, from the node's metadata (NAMESPACE, WORKLOAD_NAME, LABELS, CLUSTER_ID)."""
        labels = metadata.get("LABELS") or {}
        name = metadata.get("WORKLOAD_NAME") or UNKNOWN
        app = labels.get("app") or labels.get("app.kubernetes.io/name")
        version = labels.get("version") or labels.get("app.kubernetes.io/version")
        return cls(
            workload=name,
            workload_namespace=metadata.get("NAMESPACE") or UNKNOWN,
            principal=principal,
            app=app or UNKNOWN,
            version=version or UNKNOWN,
            canonical_service=labels.get("service.istio.io/canonical-name") or app or name,
            canonical_revision=labels.get("service.istio.io/canonical-revision") or version or "latest",
            cluster=metadata.get("CLUSTER_ID") or UNKNOWN,
        )

    @classmethod
    def of_endpoint(cls, metadata: Mapping[str, Any], principal: str) -> Side:
        """The upstream's side, from `istio.workload`: name;namespace;canonical-name;canonical-revision;cluster."""
        workload = (metadata.get("istio") or {}).get("workload")
        parts = [*str(workload or "").split(";"), "", "", "", "", ""]
        name, namespace, service, revision, cluster = (part or UNKNOWN for part in parts[:5])
        return cls(
            workload=name,
            workload_namespace=namespace,
            principal=principal,
            app=service,
            version=revision,
            canonical_service=service,
            canonical_revision=revision,
            cluster=cluster,
        )

    @classmethod
    def of_principal(cls, principal: str) -> Side:
        """The caller's side, of which only the certificate is known: its SPIFFE id names the namespace."""
        parts = principal.removeprefix("spiffe://").split("/")
        namespace = parts[2] if len(parts) == 5 and parts[1] == "ns" else UNKNOWN
        return cls(workload_namespace=namespace, principal=principal)


def passes_through(outcome: Outcome) -> bool:
    """Does the request go to a place that is no service of the mesh, and is named by its authority alone?"""
    return outcome.cluster is not None and outcome.cluster.name == "PassthroughCluster"


def principal_of(peer: Any) -> str:
    """A peer's first URI SAN, else `unknown`: also where nobody has verified the certificate."""
    return peer.uri_sans[0] if peer is not None and peer.verified and peer.uri_sans else UNKNOWN


def connection_labels(outcome: Outcome, node: Side, authority: str = UNKNOWN) -> dict[str, str]:
    """The labels that HTTP and TCP share; empty where the listener has no direction (no mesh). `authority` names what
    passes through, where the request says it."""
    listener = outcome.listener
    if listener is None or listener.direction is Direction.UNSPECIFIED:
        return {}
    connection = outcome.connection
    downstream_peer = connection.peer if connection is not None else None
    if listener.direction is Direction.OUTBOUND:
        reporter, policy = "source", UNKNOWN
        source, destination = (
            node,
            Side.of_endpoint(outcome.upstream_metadata, principal_of(outcome.upstream_peer)),
        )
    else:
        reporter, policy = "destination", "mutual_tls" if downstream_peer is not None else "none"
        source, destination = Side.of_principal(principal_of(downstream_peer)), node
    labels = {"reporter": reporter}
    for name in _SIDE:
        labels[f"source_{name}"] = getattr(source, name)
        labels[f"destination_{name}"] = getattr(destination, name)
    if (outcome.upstream_peer if reporter == "source" else downstream_peer) is None:
        labels[f"{reporter}_principal"] = UNKNOWN  # a principal that was not shown proves nothing
    host, name, namespace = _service(outcome, authority)
    labels["destination_service"] = host
    labels["destination_service_name"] = name
    labels["destination_service_namespace"] = namespace
    labels["connection_security_policy"] = policy
    return labels


def _service(outcome: Outcome, authority: str) -> tuple[str, str, str]:
    """Host, name and namespace of the destination, from the cluster's `istio.services`, else its name."""
    cluster = outcome.cluster
    services = (cluster.metadata.get("istio") or {}).get("services") if cluster is not None else None
    if services:
        first = services[0]
        return tuple(str(first.get(key) or UNKNOWN) for key in ("host", "name", "namespace"))  # type: ignore[return-value]
    if cluster is not None and cluster.name.endswith("Cluster"):
        # PassthroughCluster, BlackHoleCluster, InboundPassthroughCluster: Istio labels them by name.
        return authority if cluster.name == "PassthroughCluster" else UNKNOWN, cluster.name, UNKNOWN
    return UNKNOWN, UNKNOWN, UNKNOWN
