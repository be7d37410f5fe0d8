"""All resources of one proxy, put together from cached parts.

This is the page to read for "what does a proxy get": every resource is made in exactly one place below, with
the key of everything it reads.
Rule: a part that cannot be made is left out and named in `failures`; the others are there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from istiod.compile import naming
from istiod.compile.authentication import disabling_key, peer_modes
from istiod.compile.authorization import http_filters, policies_of, tcp_filters
from istiod.compile.cache import Cache, Parts
from istiod.compile.clusters import fixed_clusters, identities, inbound_cluster, outbound_cluster
from istiod.compile.endpoints import TlsDisabled, load_assignment
from istiod.compile.failure import Failure, Failures, failure
from istiod.compile.inbound import Inbound, InboundPort, inbound_ports, virtual_inbound
from istiod.compile.name_table import name_table
from istiod.compile.outbound import (
    ANY_V4,
    OutboundPlan,
    PortPlan,
    VipPlan,
    entry_key,
    opaque_key,
    plan,
    vip_listener,
    virtual_outbound,
    wildcard_listener,
)
from istiod.compile.routes import (
    Hosts,
    Routes,
    port_routes,
    route_configuration,
    service_routes,
    virtual_routes,
)
from istiod.compile.view import View
from istiod.proxy import ProxyInfo
from istiod.services import Endpoint, MeshService, Protocol, Resolution
from istiod.snapshot import Snapshot
from wire.xds import CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE, EncodedResource, encode

Encoded = dict[str, EncodedResource]


@dataclass(frozen=True, slots=True)
class ProxyResources:
    """What one proxy is served: resources by type URL and name, each encoded once and shared."""

    types: Mapping[str, Mapping[str, EncodedResource]]
    failures: tuple[Failure, ...] = ()
    """The parts that could not be made; see `istiod.compile.failure.with_last_good`."""
    parts: Parts = field(default=(), repr=False, compare=False)
    """What it was made of: in the cache for as long as this is held."""

    def of(self, type_url: str) -> Mapping[str, EncodedResource]:
        """The resources of a type; empty for one that is not compiled."""
        return self.types.get(type_url, {})

    def message(self, type_url: str, name: str, form: type[Message]) -> Message:
        """One resource, decoded (for people and tests). Raises KeyError for an unknown name."""
        packed = AnyMessage.FromString(self.types[type_url][name].body)
        result = form()
        result.ParseFromString(packed.value)
        return result


@dataclass(frozen=True, slots=True)
class _Made:
    """What is the same for every proxy that sees the same."""

    types: Mapping[str, Mapping[str, EncodedResource]]
    failures: tuple[Failure, ...]


def compile_proxy(snapshot: Snapshot, proxy: ProxyInfo, cache: Cache | None = None) -> ProxyResources:
    """Everything for one proxy. Pure and never raises; with a shared `cache` only what changed is made again.

    A proxy that cannot see what changed gets the very same `types` as before.
    """
    memory = cache if cache is not None else Cache()
    try:
        known = completed(snapshot, proxy)
        key = ("proxy", known, tuple(sorted(known.labels.items())), reads_key(snapshot, known))
        part = memory.part(key, partial(_compile, snapshot, known, memory))
    except Exception as error:
        return ProxyResources({}, (failure("", "the whole configuration", error, ("*",)),))
    return ProxyResources(part.value.types, part.value.failures, (part,))


def reads_key(snapshot: Snapshot, proxy: ProxyInfo) -> str:
    """The content of everything that a compile for this proxy reads of the snapshot."""
    homes = (proxy.namespace, snapshot.mesh.root_namespace)
    parts = [snapshot.scope(proxy).reads_key, disabling_key(snapshot)]
    for kind in ("PeerAuthentication", "AuthorizationPolicy"):
        for document in snapshot.of(kind):
            if document.resource.namespace in homes:
                dry_run = document.resource.annotations.get("istio.io/dry-run", "")
                parts.append(f"{document.resource.key}{snapshot.key(document)}{dry_run}")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def completed(snapshot: Snapshot, proxy: ProxyInfo) -> ProxyInfo:
    """A proxy that does not say what it serves (a plain Envoy in a workload's place) as the catalog knows it."""
    if proxy.service or proxy.ports:
        return proxy
    for instance in snapshot.instances:
        same = (instance.namespace, instance.service_account) == (proxy.namespace, proxy.service_account)
        if same and instance.workload == proxy.workload and set(instance.addresses) & set(proxy.addresses):
            return replace(proxy, service=instance.service, ports=instance.ports)
    return proxy


def _compile(snapshot: Snapshot, proxy: ProxyInfo, memory: Cache) -> _Made:
    failures = Failures()
    view = View(snapshot, proxy)
    outbound = plan(view)
    types = {
        CLUSTER: _clusters(view, memory, failures),
        ENDPOINT: _endpoints(view, memory, failures),
        LISTENER: _listeners(view, outbound, memory, failures),
        ROUTE: _routes(view, outbound, memory, failures),
        NAME_TABLE: _name_table(view, memory, failures),
    }
    return _Made(types, failures.all())


def _clusters(view: View, cache: Cache, failures: Failures) -> Encoded:
    mesh, mesh_key = view.mesh, view.snapshot.mesh_key
    found: Encoded = {}
    for service in view.scope.services.values():
        made = partial(_clusters_of, view, service, cache)
        for resource in failures.guard(CLUSTER, f"clusters of {service.host}", made, f"*|{service.host}"):
            found[resource.name] = resource
    made = partial(_inbound_clusters, view, cache)
    for resource in failures.guard(CLUSTER, "inbound clusters", made, "*||"):
        found[resource.name] = resource
    for resource in cache.get(("fixed", mesh_key), lambda: [_encode(one) for one in fixed_clusters(mesh)]):
        found[resource.name] = resource
    return found


def _clusters_of(view: View, service: MeshService, cache: Cache) -> list[EncodedResource]:
    mesh, mesh_key = view.mesh, view.snapshot.mesh_key
    names_key = ("identities", service.servers, service.sans, mesh_key)
    sans = cache.get(names_key, partial(identities, service, mesh))
    key: tuple[object, ...] = ("clusters", service.key, view.rule_key(service), sans, mesh_key)
    if service.resolution is not Resolution.ENDPOINTS:
        key += (view.proxy.ipv4, view.proxy.ipv6, disabling_key(view.snapshot))
    return cache.get(key, partial(_service_clusters, view, service, sans))


def _inbound_clusters(view: View, cache: Cache) -> list[EncodedResource]:
    sidecar = view.scope.sidecar
    proxy = view.proxy
    found = []
    for one in inbound_ports(proxy, sidecar.spec if sidecar else None, view.mesh):
        # Only a cluster that does not follow the original destination needs to know the workload's address.
        addresses = proxy.addresses if one.default_endpoint else ()
        key = ("inbound", one, addresses, proxy.service, proxy.namespace, view.snapshot.mesh_key)
        found.append(cache.get(key, partial(_inbound_cluster, view, one)))
    return found


def _inbound_cluster(view: View, one: InboundPort) -> EncodedResource:
    proxy, mesh = view.proxy, view.mesh
    described = None
    if proxy.service:
        host = f"{proxy.service}.{proxy.namespace}.svc.{mesh.domain_suffix}"
        described = {"host": host, "name": proxy.service, "namespace": proxy.namespace}
    return _encode(inbound_cluster(one.port, one.default_endpoint, proxy.addresses, described, mesh))


def _service_clusters(view: View, service: MeshService, sans: tuple[str, ...]) -> list[EncodedResource]:
    rule = view.rule(service)
    families = view.proxy.ipv4, view.proxy.ipv6
    tls_disabled = _tls_disabled(view)
    found = []
    for port in service.ports:
        if port.protocol is Protocol.UDP:
            continue
        for subset in ("", *rule.subsets):
            for opaque in (False, True) if port.protocol is Protocol.AUTO else (False,):
                cluster = outbound_cluster(
                    service, port, subset, rule, sans=sans, mesh=view.mesh, families=families,
                    tls_disabled=tls_disabled, opaque=opaque,
                )  # fmt: skip
                if cluster is not None:
                    found.append(_encode(cluster))
    return found


def _endpoints(view: View, cache: Cache, failures: Failures) -> Encoded:
    disabling = disabling_key(view.snapshot)
    found: Encoded = {}
    for service in view.scope.services.values():
        if service.resolution is not Resolution.ENDPOINTS:
            continue
        made = partial(_endpoints_of, view, service, disabling, cache)
        for resource in failures.guard(ENDPOINT, f"endpoints of {service.host}", made, f"*|{service.host}"):
            found[resource.name] = resource
    return found


def _endpoints_of(view: View, service: MeshService, disabling: str, cache: Cache) -> list[EncodedResource]:
    key = ("endpoints", service.key, service.endpoints_key, view.rule_key(service), disabling)
    return cache.get(key, partial(_service_endpoints, view, service))


def _tls_disabled(view: View) -> TlsDisabled:
    disabling = bool(disabling_key(view.snapshot))

    def tls_disabled(endpoint: Endpoint, port: int) -> bool:
        return (
            disabling and peer_modes(view.snapshot, endpoint.namespace, endpoint.labels).of(port) == "DISABLE"
        )

    return tls_disabled


def _service_endpoints(view: View, service: MeshService) -> list[EncodedResource]:
    rule, tls_disabled = view.rule(service), _tls_disabled(view)
    found = []
    for port in service.ports:
        if port.protocol is Protocol.UDP:
            continue
        for subset in ("", *rule.subsets):
            balancer = rule.effective(port.number, subset).load_balancer
            if balancer is not None and balancer.simple == "PASSTHROUGH":
                continue
            labels = rule.subsets[subset].labels if subset else {}
            name = naming.outbound_cluster(port.number, subset, service.host)
            found.append(encode(name, load_assignment(name, service, port, labels, tls_disabled)))
    return found


def _listeners(view: View, outbound: OutboundPlan, cache: Cache, failures: Failures) -> Encoded:
    proxy = view.proxy
    shape = (proxy.ipv4, proxy.ipv6, view.scope.registry_only, view.snapshot.mesh_key)
    made: list[EncodedResource] = []

    def one(name: str, make: Callable[[], EncodedResource]) -> None:
        made.extend(failures.guard(LISTENER, f"listener {name}", lambda: [make()], name))

    def listen_on_port(number: int, entry: PortPlan) -> EncodedResource:
        key = ("wildcard", number, entry_key(view, entry), shape)
        return cache.get(key, partial(_wildcard, view, number, entry))

    def listen_on_address(planned: VipPlan) -> EncodedResource:
        key = ("vip", opaque_key(view, planned.service, planned.port), planned.addresses, shape)
        return cache.get(key, partial(_vip, view, planned))

    outbound_key = ("virtualOutbound", proxy.outbound_port, shape)
    one(naming.VIRTUAL_OUTBOUND, lambda: cache.get(outbound_key, lambda: _encode(virtual_outbound(view))))
    for number, entry in outbound.ports.items():
        one(naming.listener(ANY_V4, number), partial(listen_on_port, number, entry))
    for planned in outbound.vips:
        name = naming.listener(planned.addresses[0], planned.port.number)
        one(name, partial(listen_on_address, planned))
    one(naming.VIRTUAL_INBOUND, partial(_inbound_listener, view, cache))
    return {resource.name: resource for resource in made}


def _wildcard(view: View, port: int, entry: PortPlan) -> EncodedResource:
    return _encode(wildcard_listener(view, port, entry))


def _vip(view: View, one: VipPlan) -> EncodedResource:
    return _encode(vip_listener(view, one))


def _inbound_listener(view: View, cache: Cache) -> EncodedResource:
    proxy, snapshot = view.proxy, view.snapshot
    modes = peer_modes(snapshot, proxy.namespace, proxy.labels)
    policies = policies_of(snapshot, proxy.namespace, proxy.labels)
    sidecar = view.scope.sidecar
    ports = inbound_ports(proxy, sidecar.spec if sidecar else None, view.mesh)
    key = (
        "virtualInbound",
        proxy.outbound_port,
        proxy.inbound_port,
        proxy.service,
        proxy.namespace,
        proxy.ipv4,
        proxy.ipv6,
        ports,
        modes.workload,
        tuple(sorted(modes.ports.items())),
        tuple(
            (policy.resource.key, snapshot.key(policy), policy.resource.annotations.get("istio.io/dry-run"))
            for policy in policies
        ),
        snapshot.mesh_key,
    )

    def make() -> EncodedResource:
        http = tuple(http_filters(policies, view.mesh))
        tcp = tuple(tcp_filters(policies, view.mesh))
        return _encode(virtual_inbound(Inbound(proxy, view.mesh, modes, ports, http, tcp)))

    return cache.get(key, make)


def _routes(view: View, outbound: OutboundPlan, cache: Cache, failures: Failures) -> Encoded:
    found: Encoded = {}

    def add(name: str, make: Callable[[], tuple[Hosts, Routes]]) -> None:
        made = partial(configuration, name, make)
        for resource in failures.guard(ROUTE, f"routes {name}", lambda: [made()], name):
            found[resource.name] = resource

    def configuration(name: str, make: Callable[[], tuple[Hosts, Routes]]) -> EncodedResource:
        hosts, to_virtual = make()
        for host, error in hosts.failed:
            failures.add(failure(ROUTE, f"routes of {host}", error, (name,), host))
        return cache.get(
            ("routes", name, hosts.key, to_virtual[0]),
            lambda: _encode(
                route_configuration(name, hosts.hosts, to_virtual[1], registry_only=view.scope.registry_only)
            ),
        )

    for port, entry in outbound.ports.items():
        if entry.http:
            add(
                str(port),
                lambda port=port, services=entry.http: (  # type: ignore[misc]
                    port_routes(view, services, port, cache),
                    virtual_routes(view, services, port, cache),
                ),
            )
    for one in outbound.vips:
        if one.port.protocol is Protocol.AUTO:
            add(
                f"{one.service.host}:{one.port.number}",
                lambda one=one: (service_routes(view, one.service, one.port.number, cache), ("", [])),  # type: ignore[misc]
            )
    return found


def _name_table(view: View, cache: Cache, failures: Failures) -> Encoded:
    def made() -> list[EncodedResource]:
        text = "\n".join(service.key for service in view.scope.services.values())
        proxy = view.proxy
        key = (
            "names",
            proxy.namespace,
            proxy.ipv4,
            proxy.ipv6,
            hashlib.sha256(text.encode()).hexdigest()[:16],
        )
        return [cache.get(key, lambda: encode("", name_table(view)))]

    return {one.name: one for one in failures.guard(NAME_TABLE, "the name table", made, "")}


def _encode(message: Any) -> EncodedResource:
    """Listeners, clusters and route configurations carry their own names."""
    return encode(message.name, message)
