"""A VirtualService's `tcp` and `tls` rules as filter chains of one service's port.

Not for: HTTP (http_route.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from istiod.compile.envoy import fit_weights
from istiod.compile.traffic_policy import Policy
from istiod.compile.view import View
from istiod.resources.routing.destination import TcpDestination
from istiod.resources.routing.l4_route import L4Match, TlsMatch
from istiod.services import MeshService, Protocol, ServicePort, includes


@dataclass(frozen=True, slots=True)
class OpaqueRoute:
    """Connections that match go to `clusters` (name, weight). Empty conditions match everything."""

    name: str
    clusters: tuple[tuple[str, int], ...]
    server_names: tuple[str, ...] = ()
    subnets: tuple[str, ...] = ()
    tls: bool = False
    """Only TLS connections, whatever their server name."""
    by_source: bool = False
    """The client's address chooses the host (consistentHash.useSourceIp)."""

    def takes_all(self, port: ServicePort) -> bool:
        """Whether nothing that the port speaks is left to later routes."""
        return not (self.server_names or self.subnets or (self.tls and port.protocol is not Protocol.TLS))


def opaque_routes(view: View, service: MeshService, port: ServicePort) -> list[OpaqueRoute]:
    """The rules for a port, TLS before TCP, as Istio applies them. Empty: no rule speaks of this port."""
    document = view.virtual_service(service.host)
    if document is None:
        return []
    namespace = document.resource.namespace
    label = f"{document.resource.name}.{namespace}"
    found: list[OpaqueRoute] = []
    for tls in document.spec.tls:
        for match in tls.match:
            if _applies(view, match, port):
                clusters = _clusters(view, tls.route, namespace, port)
                every = "*" in match.sni_hosts
                names = () if every else match.sni_hosts
                by_source = _by_source(view, tls.route, namespace, port)
                found.append(OpaqueRoute(label, clusters, names, match.destination_subnets, every, by_source))
    for tcp in document.spec.tcp:
        clusters = _clusters(view, tcp.route, namespace, port)
        for condition in tcp.match or (None,):
            if condition is None or _applies(view, condition, port):
                subnets = condition.destination_subnets if condition else ()
                by_source = _by_source(view, tcp.route, namespace, port)
                found.append(OpaqueRoute(label, clusters, (), subnets, by_source=by_source))
    return found


def _applies(view: View, match: L4Match | TlsMatch, port: ServicePort) -> bool:
    if match.port and match.port != port.number:
        return False
    if match.gateways and "mesh" not in match.gateways:
        return False
    if match.source_namespace and match.source_namespace != view.proxy.namespace:
        return False
    return includes(view.proxy.labels, match.source_labels)


def hashes_source(policy: Policy) -> bool:
    """Whether connections are balanced by their client's address."""
    balancer = policy.load_balancer
    return bool(balancer and balancer.consistent_hash and balancer.consistent_hash.use_source_ip)


def _by_source(view: View, routes: tuple[TcpDestination, ...], namespace: str, port: ServicePort) -> bool:
    hashes = [view.hash_of(one.destination, namespace, port.number) for one in routes]
    return any(one is not None and one.use_source_ip for one in hashes)


def _clusters(
    view: View, routes: tuple[TcpDestination, ...], namespace: str, port: ServicePort
) -> tuple[tuple[str, int], ...]:
    live = [one for one in routes if one.weight > 0] or list(routes[:1])
    weights = fit_weights([one.weight or 1 for one in live])
    return tuple(
        (view.opaque_cluster_of(one.destination, namespace, port.number), weight)
        for one, weight in zip(live, weights, strict=True)
    )
