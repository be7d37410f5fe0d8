"""EDS: who serves a port, with the metadata that automatic mTLS and telemetry labels are made from.

Rule: unhealthy endpoints are left out, as in Istio; an empty assignment is a service without endpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from envoy.config.core.v3 import address_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2

from istiod.compile.envoy import pipe_address, socket_address, struct, uint32
from istiod.services import Endpoint, MeshService, ServicePort, includes

TlsDisabled = Callable[[Endpoint, int], bool]
"""Whether an endpoint's own policy (PeerAuthentication DISABLE) makes it refuse mutual TLS on a port."""


def load_assignment(
    name: str, service: MeshService, port: ServicePort, labels: Mapping[str, str], tls_disabled: TlsDisabled
) -> endpoint_pb2.ClusterLoadAssignment:
    """The healthy endpoints of one port that have `labels`."""
    members = []
    for endpoint in service.endpoints:
        if not endpoint.healthy or not includes(endpoint.labels, labels):
            continue
        member = endpoint_components_pb2.LbEndpoint(
            load_balancing_weight=uint32(endpoint.weight), health_status=health_check_pb2.HEALTHY
        )
        member.endpoint.address.CopyFrom(endpoint_address(endpoint, port))
        metadata = member.metadata.filter_metadata
        target = endpoint.ports.get(port.number, port.target)
        if endpoint.mtls and not tls_disabled(endpoint, target):
            metadata["envoy.transport_socket_match"].CopyFrom(struct({"tlsMode": "istio"}))
        if endpoint.workload:
            metadata["istio"].CopyFrom(struct({"workload": workload_label(endpoint)}))
        members.append((endpoint, member))
    return endpoint_pb2.ClusterLoadAssignment(cluster_name=name, endpoints=sort_by_locality(members))


def workload_label(endpoint: Endpoint) -> str:
    """Istio's `workload;namespace;canonical name;canonical revision;cluster`."""
    name = (
        endpoint.labels.get("service.istio.io/canonical-name")
        or endpoint.labels.get("app")
        or endpoint.workload
    )
    revision = (
        endpoint.labels.get("service.istio.io/canonical-revision")
        or endpoint.labels.get("version")
        or "latest"
    )
    return f"{endpoint.workload};{endpoint.namespace};{name};{revision};"


def endpoint_address(endpoint: Endpoint, port: ServicePort) -> address_pb2.Address:
    """Where the endpoint listens for callers of `port`."""
    if endpoint.address.startswith("unix://"):
        return pipe_address(endpoint.address.removeprefix("unix://"))
    return socket_address(endpoint.address, endpoint.ports.get(port.number, port.target))


def sort_by_locality(
    members: Iterable[tuple[Endpoint, endpoint_components_pb2.LbEndpoint]],
) -> list[endpoint_components_pb2.LocalityLbEndpoints]:
    """Group endpoints by locality (`region/zone/subzone`); a locality weighs what its endpoints weigh."""
    groups: dict[str, list[tuple[Endpoint, endpoint_components_pb2.LbEndpoint]]] = {}
    for endpoint, member in members:
        groups.setdefault(endpoint.locality, []).append((endpoint, member))
    result = []
    for locality, group in sorted(groups.items()):
        region, zone, sub_zone = [*locality.split("/"), "", "", ""][:3]
        part = endpoint_components_pb2.LocalityLbEndpoints(
            load_balancing_weight=uint32(sum(endpoint.weight for endpoint, _ in group)),
            lb_endpoints=[member for _, member in group],
        )
        if locality:
            part.locality.region, part.locality.zone, part.locality.sub_zone = region, zone, sub_zone
        result.append(part)
    return result
