"""Names as Istio gives them: clusters, SNI, listeners, identities.

Rule: pure text; whoever parses these names (meshctl, dashboards, users) knows them from Istio.
"""

from __future__ import annotations

PASSTHROUGH = "PassthroughCluster"
INBOUND_PASSTHROUGH = "InboundPassthroughCluster"
BLACK_HOLE = "BlackHoleCluster"
VIRTUAL_OUTBOUND = "virtualOutbound"
VIRTUAL_INBOUND = "virtualInbound"
BLOCK_ALL = "block_all"
ALLOW_ANY = "allow_any"


def outbound_cluster(port: int, subset: str, host: str) -> str:
    """`outbound|9080|v1|reviews.default.svc.cluster.local`."""
    return f"outbound|{port}|{subset}|{host}"


def opaque_cluster(port: int, subset: str, host: str) -> str:
    """`outbound-tcp|8080||web.default.svc.cluster.local`: ours, see clusters.outbound_cluster."""
    return f"outbound-tcp|{port}|{subset}|{host}"


def inbound_cluster(port: int) -> str:
    """`inbound|9080||`."""
    return f"inbound|{port}||"


def sni(port: int, subset: str, host: str) -> str:
    """`outbound_.9080_.v1_.reviews.default.svc.cluster.local`."""
    return f"outbound_.{port}_.{subset}_.{host}"


def listener(address: str, port: int) -> str:
    """`0.0.0.0_9080`, `240.240.0.1_3306`."""
    return f"{address}_{port}"


def spiffe(trust_domain: str, namespace: str, service_account: str) -> str:
    """spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT."""
    return f"spiffe://{trust_domain}/ns/{namespace}/sa/{service_account}"


def config_path(group: str, version: str, namespace: str, kind: str, name: str) -> str:
    """The resource that a piece of configuration came from, as Istio writes it into metadata."""
    return f"/apis/{group}/{version}/namespaces/{namespace}/{kind}/{name}"
