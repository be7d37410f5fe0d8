"""Who serves a port, with the metadata that automatic mTLS and telemetry labels are made from: EDS and DNS clusters.

Rule: unhealthy endpoints are left out, as in Istio; an empty assignment is a service without endpoints. Weights keep
their ratios and fit into what Envoy can add up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from envoy.config.core.v3 import address_pb2, health_check_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2, endpoint_pb2

from istiod.compile.envoy import fit_weights, pipe_address, socket_address, struct, uint32
from istiod.services import Endpoint, MeshService, Resolution, ServicePort, includes

TlsDisabled = Callable[[Endpoint, int], bool]
"""Whether an endpoint's own policy (PeerAuthentication DISABLE) makes it refuse mutual TLS on a port."""


def load_assignment(
    name: str, service: MeshService, port: ServicePort, labels: Mapping[str, str], tls_disabled: TlsDisabled
) -> endpoint_pb2.ClusterLoadAssignment:
    """The healthy endpoints of one port that have `labels`."""
    found = _serving(service, port, labels)
    return endpoint_pb2.ClusterLoadAssignment(
        cluster_name=name, endpoints=sort_by_locality(_members(found, port, tls_disabled))
    )


def dns_assignment(
    name: str, service: MeshService, port: ServicePort, labels: Mapping[str, str], tls_disabled: TlsDisabled
) -> endpoint_pb2.ClusterLoadAssignment | None:
    """The names (and addresses) that a DNS cluster resolves, None when there are none."""
    found = _serving(service, port, labels)
    if service.resolution is Resolution.DNS_ROUND_ROBIN:
        found = found[:1]
    if not found:
        return None
    members = _members(found, port, tls_disabled)
    for _, member in members:
        member.ClearField("health_status")
    return endpoint_pb2.ClusterLoadAssignment(cluster_name=name, endpoints=sort_by_locality(members))


def _serving(service: MeshService, port: ServicePort, labels: Mapping[str, str]) -> list[Endpoint]:
    return [
        endpoint
        for endpoint in service.endpoints
        if endpoint.healthy and endpoint.serves(port.number) and includes(endpoint.labels, labels)
    ]


def _members(
    found: list[Endpoint], port: ServicePort, tls_disabled: TlsDisabled
) -> list[tuple[Endpoint, endpoint_components_pb2.LbEndpoint]]:
    members = []
    weights = fit_weights([endpoint.weight for endpoint in found])
    for endpoint, weight in zip(found, weights, strict=True):
        member = endpoint_components_pb2.LbEndpoint(
            load_balancing_weight=uint32(weight), health_status=health_check_pb2.HEALTHY
        )
        member.endpoint.address.CopyFrom(endpoint_address(endpoint, port))
        metadata = member.metadata.filter_metadata
        target = endpoint.ports.get(port.number, port.target)
        if endpoint.mtls and not tls_disabled(endpoint, target):
            metadata["envoy.transport_socket_match"].CopyFrom(struct({"tlsMode": "istio"}))
        if endpoint.workload:
            metadata["istio"].CopyFrom(struct({"workload": workload_label(endpoint)}))
        members.append((endpoint, member))
    return members


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
            load_balancing_weight=uint32(sum(member.load_balancing_weight.value for _, member in group)),
            lb_endpoints=[member for _, member in group],
        )
        if locality:
            part.locality.region, part.locality.zone, part.locality.sub_zone = region, zone, sub_zone
        result.append(part)
    return result
