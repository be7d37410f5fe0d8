"""All resources of one proxy, put together from cached parts.

This is the page to read for "what does a proxy get": every resource is made in exactly one place below, with
the key of everything it reads.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from istiod.compile.authentication import disabling_key, peer_modes
from istiod.compile.authorization import http_filters, policies_of, tcp_filters
from istiod.compile.cache import Cache
from istiod.compile.clusters import fixed_clusters, identities, inbound_cluster, outbound_cluster
from istiod.compile.endpoints import load_assignment
from istiod.compile.inbound import Inbound, inbound_ports, virtual_inbound
from istiod.compile.name_table import name_table
from istiod.compile.outbound import (
    OutboundPlan,
    entry_key,
    opaque_key,
    plan,
    vip_listener,
    virtual_outbound,
    wildcard_listener,
)
from istiod.compile.routes import Keyed, port_routes, route_configuration, service_routes
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
    """Everything for one proxy. Pure; with a shared `cache` only what changed is made again."""
    view = View(snapshot, proxy)
    memory = cache if cache is not None else Cache()
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
        rule = view.rule(service)
        sans = cache.get(
            ("identities", service.endpoints_key, service.sans, mesh_key),
            lambda s=service: identities(s, mesh),
        )
        key = (service.key, view.rule_key(service), sans, mesh_key)

        def make(
            service: MeshService = service, rule: object = rule, sans: object = sans
        ) -> list[EncodedResource]:
            return _service_clusters(view, service, sans)  # type: ignore[arg-type]

        for resource in cache.get(("clusters", *key), make):
            found[resource.name] = resource
    sidecar = view.scope.sidecar
    proxy = view.proxy
    described = None
    if proxy.service:
        host = f"{proxy.service}.{proxy.namespace}.svc.{mesh.domain_suffix}"
        described = {"host": host, "name": proxy.service, "namespace": proxy.namespace}
    for one in inbound_ports(proxy, sidecar.spec if sidecar else None):
        inbound_key: Hashable = ("inbound", one, proxy.addresses, proxy.service, proxy.namespace, mesh_key)
        resource = cache.get(
            inbound_key,
            lambda one=one: _encode(
                inbound_cluster(one.port, one.default_endpoint, proxy.addresses, described, mesh)
            ),
        )
        found[resource.name] = resource
    for resource in cache.get(("fixed", mesh_key), lambda: [_encode(one) for one in fixed_clusters(mesh)]):
        found[resource.name] = resource
    return found


def _service_clusters(view: View, service: MeshService, sans: tuple[str, ...]) -> list[EncodedResource]:
    rule = view.rule(service)
    found = []
    for port in service.ports:
        if port.protocol is Protocol.UDP:
            continue
        for subset in ("", *rule.subsets):
            cluster = outbound_cluster(service, port, subset, rule, sans, view.mesh)
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
        for resource in cache.get(
            key, lambda service=service: _service_endpoints(view, service, disabling=bool(disabling))
        ):
            found[resource.name] = resource
    return found


def _service_endpoints(view: View, service: MeshService, *, disabling: bool) -> list[EncodedResource]:
    def tls_disabled(endpoint: Endpoint, port: int) -> bool:
        return (
            disabling and peer_modes(view.snapshot, endpoint.namespace, endpoint.labels).of(port) == "DISABLE"
        )

    rule = view.rule(service)
    found = []
    for port in service.ports:
        if port.protocol is Protocol.UDP:
            continue
        for subset in ("", *rule.subsets):
            balancer = rule.effective(port.number, subset).load_balancer
            if balancer is not None and balancer.simple == "PASSTHROUGH":
                continue
            labels = rule.subsets[subset].labels if subset else {}
            name = f"outbound|{port.number}|{subset}|{service.host}"
            found.append(_encode_named(name, load_assignment(name, service, port, labels, tls_disabled)))
    return found


def _listeners(view: View, outbound: OutboundPlan, cache: Cache) -> Encoded:
    proxy = view.proxy
    shape = (proxy.ipv4, proxy.ipv6, view.scope.registry_only, view.snapshot.mesh_key)
    made: list[EncodedResource] = [
        cache.get(
            ("virtualOutbound", proxy.outbound_port, proxy.inbound_port, shape),
            lambda: _encode(virtual_outbound(view)),
        )
    ]
    for port, entry in outbound.ports.items():
        key = ("wildcard", port, entry_key(view, entry), shape)
        made.append(
            cache.get(key, lambda port=port, entry=entry: _encode(wildcard_listener(view, port, entry)))
        )
    for service, service_port in outbound.vips:
        vip_key = ("vip", opaque_key(view, service, service_port), shape)
        made.append(cache.get(vip_key, lambda s=service, p=service_port: _encode(vip_listener(view, s, p))))
    made.append(_inbound_listener(view, cache))
    return {resource.name: resource for resource in made}


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

    def add(name: str, key: str, hosts: list[Keyed]) -> None:
        found[name] = cache.get(
            ("routes", name, key),
            lambda: _encode(route_configuration(name, hosts, registry_only=view.scope.registry_only)),
        )

    for port, entry in outbound.ports.items():
        if entry.http:
            add(str(port), *port_routes(view, entry.http, port, cache))
    for service, service_port in outbound.vips:
        if service_port.protocol is Protocol.AUTO:
            name = f"{service.host}:{service_port.number}"
            add(name, *service_routes(view, service, service_port.number, cache))
    return found


def _name_table(view: View, cache: Cache) -> Encoded:
    text = "\n".join(service.key for service in view.scope.services.values())
    key = ("names", view.proxy.namespace, hashlib.sha256(text.encode()).hexdigest()[:16])
    return {"": cache.get(key, lambda: _encode_named("", name_table(view)))}


def _encode(message: Message) -> EncodedResource:
    name: str = message.name  # type: ignore[attr-defined] # listeners, clusters and routes all have one
    return _encode_named(name, message)


def _encode_named(name: str, message: Message) -> EncodedResource:
    return encode(name, message)
