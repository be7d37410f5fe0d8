"""All resources of one proxy, put together from cached parts.

This is the page to read for "what does a proxy get": every resource is made in exactly one place below, with
the key of everything it reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from istiod.compile import naming
from istiod.compile.authentication import disabling_key, peer_modes
from istiod.compile.authorization import http_filters, policies_of, tcp_filters
from istiod.compile.cache import Cache
from istiod.compile.clusters import fixed_clusters, identities, inbound_cluster, outbound_cluster
from istiod.compile.endpoints import TlsDisabled, load_assignment
from istiod.compile.inbound import Inbound, InboundPort, inbound_ports, virtual_inbound
from istiod.compile.name_table import name_table
from istiod.compile.outbound import (
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
    Keyed,
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

    def of(self, type_url: str) -> Mapping[str, EncodedResource]:
        """The resources of a type; empty for one that is not compiled."""
        return self.types.get(type_url, {})

    def message(self, type_url: str, name: str, form: type[Message]) -> Message:
        """One resource, decoded (for people and tests). Raises KeyError for an unknown name."""
        packed = AnyMessage.FromString(self.types[type_url][name].body)
        result = form()
        result.ParseFromString(packed.value)
        return result


def compile_proxy(snapshot: Snapshot, proxy: ProxyInfo, cache: Cache | None = None) -> ProxyResources:
    """Everything for one proxy. Pure; with a shared `cache` only what changed is made again.

    A proxy that cannot see what changed gets the very same object as before.
    """
    memory = cache if cache is not None else Cache()
    known = completed(snapshot, proxy)
    key = ("proxy", known, tuple(sorted(known.labels.items())), reads_key(snapshot, known))
    return memory.get(key, partial(_compile, snapshot, known, memory))


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


def _compile(snapshot: Snapshot, proxy: ProxyInfo, memory: Cache) -> ProxyResources:
    view = View(snapshot, proxy)
    outbound = plan(view)
    return ProxyResources(
        {
            CLUSTER: _clusters(view, memory),
            ENDPOINT: _endpoints(view, memory),
            LISTENER: _listeners(view, outbound, memory),
            ROUTE: _routes(view, outbound, memory),
            NAME_TABLE: _name_table(view, memory),
        }
    )


def _clusters(view: View, cache: Cache) -> Encoded:
    mesh, mesh_key = view.mesh, view.snapshot.mesh_key
    found: Encoded = {}
    for service in view.scope.services.values():
        names_key = ("identities", service.servers, service.sans, mesh_key)
        sans = cache.get(names_key, partial(identities, service, mesh))
        key: tuple[object, ...] = ("clusters", service.key, view.rule_key(service), sans, mesh_key)
        if service.resolution is not Resolution.ENDPOINTS:
            key += (view.proxy.ipv4, view.proxy.ipv6, disabling_key(view.snapshot))
        for resource in cache.get(key, partial(_service_clusters, view, service, sans)):
            found[resource.name] = resource
    sidecar = view.scope.sidecar
    proxy = view.proxy
    for one in inbound_ports(proxy, sidecar.spec if sidecar else None):
        # Only a cluster that does not follow the original destination needs to know the workload's address.
        addresses = proxy.addresses if one.default_endpoint else ()
        inbound_key = ("inbound", one, addresses, proxy.service, proxy.namespace, mesh_key)
        resource = cache.get(inbound_key, partial(_inbound_cluster, view, one))
        found[resource.name] = resource
    for resource in cache.get(("fixed", mesh_key), lambda: [_encode(one) for one in fixed_clusters(mesh)]):
        found[resource.name] = resource
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


def _endpoints(view: View, cache: Cache) -> Encoded:
    disabling = disabling_key(view.snapshot)
    found: Encoded = {}
    for service in view.scope.services.values():
        if service.resolution is not Resolution.ENDPOINTS:
            continue
        key = ("endpoints", service.key, service.endpoints_key, view.rule_key(service), disabling)
        for resource in cache.get(key, partial(_service_endpoints, view, service)):
            found[resource.name] = resource
    return found


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


def _listeners(view: View, outbound: OutboundPlan, cache: Cache) -> Encoded:
    proxy = view.proxy
    shape = (proxy.ipv4, proxy.ipv6, view.scope.registry_only, view.snapshot.mesh_key)
    outbound_key = ("virtualOutbound", proxy.outbound_port, shape)
    made = [cache.get(outbound_key, lambda: _encode(virtual_outbound(view)))]
    for number, entry in outbound.ports.items():
        key = ("wildcard", number, entry_key(view, entry), shape)
        made.append(cache.get(key, partial(_wildcard, view, number, entry)))
    for one in outbound.vips:
        vip_key = ("vip", opaque_key(view, one.service, one.port), one.addresses, shape)
        made.append(cache.get(vip_key, partial(_vip, view, one)))
    made.append(_inbound_listener(view, cache))
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
    ports = inbound_ports(proxy, sidecar.spec if sidecar else None)
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


def _routes(view: View, outbound: OutboundPlan, cache: Cache) -> Encoded:
    found: Encoded = {}

    def add(name: str, key: str, hosts: list[Keyed], to_virtual: Routes = ("", [])) -> None:
        found[name] = cache.get(
            ("routes", name, key, to_virtual[0]),
            lambda: _encode(
                route_configuration(name, hosts, to_virtual[1], registry_only=view.scope.registry_only)
            ),
        )

    for port, entry in outbound.ports.items():
        if entry.http:
            to_virtual = virtual_routes(view, entry.http, port, cache)
            add(str(port), *port_routes(view, entry.http, port, cache), to_virtual)
    for one in outbound.vips:
        if one.port.protocol is Protocol.AUTO:
            name = f"{one.service.host}:{one.port.number}"
            add(name, *service_routes(view, one.service, one.port.number, cache))
    return found


def _name_table(view: View, cache: Cache) -> Encoded:
    text = "\n".join(service.key for service in view.scope.services.values())
    proxy = view.proxy
    key = ("names", proxy.namespace, proxy.ipv4, proxy.ipv6, hashlib.sha256(text.encode()).hexdigest()[:16])
    return {"": cache.get(key, lambda: encode("", name_table(view)))}


def _encode(message: Any) -> EncodedResource:
    """Listeners, clusters and route configurations carry their own names."""
    return encode(message.name, message)
