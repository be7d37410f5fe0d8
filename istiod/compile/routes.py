"""RDS: route configurations of outbound HTTP listeners, one virtual host for each service.

Names (Istio): the configuration of a wildcard listener is its port (`9080`), that of a sniffed VIP listener
`HOST:PORT`; virtual hosts are `HOST:PORT`; what no virtual host knows goes to `allow_any` or `block_all`.
An application may send any authority to an address that mesh DNS gave it (a reverse proxy sends its client's): such a
call belongs to the service that has the address, never to the address itself, which exists nowhere.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from envoy.config.route.v3 import route_components_pb2, route_pb2

from istiod.compile import naming, virtual
from istiod.compile.cache import Cache
from istiod.compile.envoy import duration, uint32
from istiod.compile.http_route import RouteContext, default_route, http_routes
from istiod.compile.view import View
from istiod.resources.document import Document
from istiod.resources.virtual_service import VirtualService
from istiod.services import MeshService
from registry.vips import is_virtual

PHANTOM_PORT = 80
Keyed = tuple[route_components_pb2.VirtualHost, str]
Routes = tuple[str, list[route_components_pb2.Route]]


class Hosts(NamedTuple):
    """The virtual hosts of one route configuration, a key for all of them, and those that could not be made."""

    key: str
    hosts: list[Keyed]
    failed: list[tuple[str, Exception]]


def port_routes(view: View, services: list[MeshService], port: int, cache: Cache) -> Hosts:
    """The virtual hosts of the wildcard listener on `port`."""
    hosts, failed = _service_hosts(view, services, port, cache)
    if port == PHANTOM_PORT:
        for host, document in view.phantom_hosts():
            try:
                hosts.append(_phantom_host(view, host, document, cache))
            except Exception as error:
                hosts.append(_unusable(f"{host}:{port}", [host]))
                failed.append((f"{host}:{port}", error))
    return Hosts(_key(view, hosts, str(port)), hosts, failed)


def service_routes(view: View, service: MeshService, port: int, cache: Cache) -> Hosts:
    """The virtual host of one sniffed service, whose listener is its address: every authority means it (Istio)."""
    hosts, failed = _service_hosts(view, [service], port, cache, ["*"])
    return Hosts(_key(view, hosts, f"{service.host}:{port}"), hosts, failed)


def virtual_routes(view: View, services: list[MeshService], port: int, cache: Cache) -> Routes:
    """Where calls with a foreign authority go, by the virtual address that they were made to, and a key for it."""
    found: list[Routes] = []
    for service in services:
        try:
            found.append(_virtual_routes(view, service, port, cache))
        except Exception:  # noqa: S112 - the service's virtual host fails for the same reason, and is reported
            continue
    key = hashlib.sha256("\n".join(key for key, _ in found).encode()).hexdigest()[:16]
    return key, [route for _, routes in found for route in routes]


def _virtual_routes(view: View, service: MeshService, port: int, cache: Cache) -> Routes:
    addresses = tuple(address for address in view.addresses(service) if is_virtual(address))
    key = ("virtual", service.key, port, view.rule_key(service), addresses)

    def make() -> Routes:
        routes = []
        for address in addresses:
            route = _plain_route(view, service, port)
            route.match.CopyFrom(virtual.went_to(address))
            routes.append(route)
        text = b"".join(route.SerializeToString(deterministic=True) for route in routes)
        return hashlib.sha256(text).hexdigest()[:16], routes

    return cache.get(key, make)


def route_configuration(
    name: str,
    hosts: list[Keyed],
    to_virtual: list[route_components_pb2.Route],
    *,
    registry_only: bool,
) -> route_pb2.RouteConfiguration:
    """Put virtual hosts together. A domain that two of them claim belongs to the first; `to_virtual` are the routes
    of calls to virtual addresses for authorities that none of them has."""
    result = route_pb2.RouteConfiguration(name=name, ignore_port_in_host_matching=True)
    result.validate_clusters.value = False
    result.max_direct_response_body_size_bytes.CopyFrom(uint32(1 << 20))
    seen: set[str] = set()
    for host, _ in hosts:
        domains = [domain for domain in host.domains if domain not in seen]
        if not domains:
            continue
        seen.update(domains)
        if len(domains) == len(host.domains):
            result.virtual_hosts.append(host)
        else:
            copy = result.virtual_hosts.add()
            copy.CopyFrom(host)
            del copy.domains[:]
            copy.domains.extend(domains)
    if "*" not in seen:
        result.virtual_hosts.append(_fallback(to_virtual, registry_only=registry_only))
    return result


def domains_of(service: MeshService, namespace: str, suffix: str) -> list[str]:
    """What callers in `namespace` may write as the authority (ports are ignored when matching)."""
    # With a final dot, a name is the same name (Istio since 1.26).
    found = [service.host, f"{service.host}."]
    tail = f".svc.{suffix}"
    if service.host.endswith(tail):
        short = service.host.removesuffix(tail)
        found += [f"{short}.svc", short]
        name, _, home = short.rpartition(".")
        if home == namespace:
            # By the host and not by its owner: a ServiceEntry may name a host of another namespace.
            found.append(name)
    for address in service.addresses:
        if "/" not in address:
            found.append(f"[{address}]" if ":" in address else address)
    return found


def _service_hosts(
    view: View, services: list[MeshService], port: int, cache: Cache, domains: list[str] | None = None
) -> tuple[list[Keyed], list[tuple[str, Exception]]]:
    hosts: list[Keyed] = []
    failed: list[tuple[str, Exception]] = []
    for service in services:
        try:
            hosts.append(_service_host(view, service, port, cache, domains))
        except Exception as error:
            name = f"{service.host}:{port}"
            suffix = view.mesh.domain_suffix
            hosts.append(_unusable(name, domains or domains_of(service, view.proxy.namespace, suffix)))
            failed.append((name, error))
    return hosts, failed


def _unusable(name: str, domains: list[str]) -> Keyed:
    """A host whose routes cannot be made: an error, for the fallback would send its calls past all rules."""
    host = route_components_pb2.VirtualHost(name=name, domains=domains, include_request_attempt_count=True)
    route = host.routes.add(match=route_components_pb2.RouteMatch(prefix="/"))
    route.direct_response.status = 503
    route.direct_response.body.inline_string = f"the configuration of {name} cannot be compiled"
    return host, _digest(host)


def _service_host(
    view: View, service: MeshService, port: int, cache: Cache, domains: list[str] | None = None
) -> Keyed:
    document = view.virtual_service(service.host)
    domains = domains or domains_of(service, view.proxy.namespace, view.mesh.domain_suffix)
    key: tuple[object, ...] = ("vhost", service.key, port, view.rule_key(service), tuple(domains))
    if document is not None:
        key += (*_document_key(view, document),)

    def make() -> Keyed:
        routes = _routes(view, document, port) if document is not None else []
        host = route_components_pb2.VirtualHost(
            name=f"{service.host}:{port}",
            domains=domains,
            routes=routes or [_plain_route(view, service, port)],
            include_request_attempt_count=True,
        )
        return host, _digest(host)

    return cache.get(key, make)


def _plain_route(view: View, service: MeshService, port: int) -> route_components_pb2.Route:
    balancer = view.rule(service).effective(port, "").load_balancer
    hashing = balancer.consistent_hash if balancer is not None else None
    return default_route(naming.outbound_cluster(port, "", service.host), hashing)


def _phantom_host(view: View, host: str, document: Document[VirtualService], cache: Cache) -> Keyed:
    def make() -> Keyed:
        virtual_host = route_components_pb2.VirtualHost(
            name=f"{host}:{PHANTOM_PORT}",
            domains=_phantom_domains(view, host, document),
            routes=_routes(view, document, PHANTOM_PORT),
            include_request_attempt_count=True,
        )
        if not virtual_host.routes:
            virtual_host.domains[:] = []
        return virtual_host, _digest(virtual_host)

    return cache.get(("phantom", host, *_document_key(view, document)), make)


def _phantom_domains(view: View, host: str, document: Document[VirtualService]) -> list[str]:
    tail = f".{document.resource.namespace}.svc.{view.mesh.domain_suffix}"
    near = document.resource.namespace == view.proxy.namespace
    found = [host, f"{host}."]
    return [*found, host.removesuffix(tail)] if near and host.endswith(tail) else found


def _document_key(view: View, document: Document[VirtualService]) -> tuple[object, ...]:
    return (
        view.snapshot.key(document),
        view.destinations_key(document),
        view.proxy.namespace,
        view.labels_key,
        view.snapshot.mesh_key,
    )


def _routes(view: View, document: Document[VirtualService], port: int) -> list[route_components_pb2.Route]:
    context = RouteContext(
        namespace=view.proxy.namespace,
        labels=view.proxy.labels,
        port=port,
        cluster_of=lambda destination, namespace: view.cluster_of(destination, namespace, port),
        hash_of=lambda destination, namespace: view.hash_of(destination, namespace, port),
    )
    return http_routes(document, context, view.snapshot.delegate)


def _fallback(
    to_virtual: list[route_components_pb2.Route], *, registry_only: bool
) -> route_components_pb2.VirtualHost:
    name = naming.BLOCK_ALL if registry_only else naming.ALLOW_ANY
    host = route_components_pb2.VirtualHost(name=name, domains=["*"], include_request_attempt_count=True)
    if not registry_only:
        host.routes.extend(to_virtual)
        unserved = host.routes.add(name="virtual-unserved", match=virtual.went_to(""))
        unserved.route.cluster = naming.BLACK_HOLE
    route = host.routes.add(name=name, match=route_components_pb2.RouteMatch(prefix="/"))
    if registry_only:
        route.direct_response.status = 502
    else:
        route.route.cluster = naming.PASSTHROUGH
        route.route.timeout.CopyFrom(duration(0))
    return host


def _key(view: View, hosts: list[Keyed], name: str) -> str:
    text = "\n".join([name, str(view.scope.registry_only), *(key for _, key in hosts)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest(host: route_components_pb2.VirtualHost) -> str:
    return hashlib.sha256(host.SerializeToString(deterministic=True)).hexdigest()[:16]
