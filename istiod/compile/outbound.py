"""LDS, outbound: virtualOutbound, one wildcard listener for each port, one listener for each opaque VIP.

Captured connections arrive at virtualOutbound, which hands each to the listener of its original destination:
`240.240.0.1_3306` for an address of its own, else `0.0.0.0_9080` for the port, else itself (passthrough).
HTTP needs no address: all HTTP services of a port share the wildcard listener, where what is not HTTP goes on
to where it was going. Nothing goes on to a virtual address (virtual.py). Services come in order of age: of two that
claim the same connections the older has them (chains.py).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from envoy.config.core.v3 import address_pb2, base_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2

from istiod.compile import naming, virtual
from istiod.compile.access_log import connection_logs
from istiod.compile.chains import Chain, Chains
from istiod.compile.connection import outbound_http, tcp_proxy
from istiod.compile.envoy import any_of, duration, socket_address, true
from istiod.compile.principal import cidr
from istiod.compile.tcp_route import OpaqueRoute, hashes_source, opaque_routes
from istiod.compile.view import View
from istiod.services import MeshService, Protocol, ServicePort

ANY_V4, ANY_V6 = "0.0.0.0", "::"  # noqa: S104 - capture decides who comes
SNIFFED_HTTP = ("http/1.1", "h2c")
TLS_INSPECTOR = "envoy.filters.listener.tls_inspector"
HTTP_INSPECTOR = "envoy.filters.listener.http_inspector"


@dataclass(slots=True)
class PortPlan:
    """What the wildcard listener of one port has to tell apart."""

    http: list[MeshService] = field(default_factory=list)
    opaque: list[tuple[MeshService, ServicePort]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class VipPlan:
    """An opaque port of one service and its addresses that no older service has on that port."""

    service: MeshService
    port: ServicePort
    addresses: tuple[str, ...]


@dataclass(slots=True)
class OutboundPlan:
    """All outbound listeners of a proxy before they are made."""

    ports: dict[int, PortPlan] = field(default_factory=dict)
    vips: list[VipPlan] = field(default_factory=list)


def plan(view: View) -> OutboundPlan:
    """Sort every visible port: by its number when HTTP, else by its service's address."""
    result = OutboundPlan()
    taken: set[tuple[str, int]] = set()
    own = (view.proxy.outbound_port, view.proxy.inbound_port)
    for service in view.scope.services.values():
        plain = any("/" not in address for address in service.addresses)
        for port in service.ports:
            if port.number in own or port.protocol is Protocol.UDP:
                continue
            if port.protocol.is_http:
                result.ports.setdefault(port.number, PortPlan()).http.append(service)
            elif plain:
                free = tuple(one for one in view.addresses(service) if (one, port.number) not in taken)
                taken.update((one, port.number) for one in free)
                if free:
                    result.vips.append(VipPlan(service, port, free))
            else:
                entry = result.ports.setdefault(port.number, PortPlan())
                entry.opaque.append((service, port))
                if port.protocol is Protocol.AUTO:
                    entry.http.append(service)
    return result


def virtual_outbound(view: View) -> listener_pb2.Listener:
    """The listener that capture redirects to; what no other listener wants passes through, or is refused."""
    port = view.proxy.outbound_port
    result = _listener(naming.VIRTUAL_OUTBOUND, _wildcard_addresses(view, port))
    result.use_original_dst.CopyFrom(true())
    # Nobody may call the proxy's own port: it would call itself for ever.
    result.filter_chains.add(
        name="virtualOutbound-blackhole",
        filter_chain_match=listener_components_pb2.FilterChainMatch(destination_port={"value": port}),
        filters=[tcp_proxy(naming.BLACK_HOLE, [(naming.BLACK_HOLE, 1)], view.mesh)],
    )
    # An address of the mesh on a port that none of its services has.
    result.filter_chains.extend(_unserved_chains(view))
    target = naming.BLACK_HOLE if view.scope.registry_only else naming.PASSTHROUGH
    result.filter_chains.add(
        name="virtualOutbound-catchall-tcp", filters=[tcp_proxy(target, [(target, 1)], view.mesh)]
    )
    result.access_log.extend(connection_logs(view.mesh))
    return result


def wildcard_listener(view: View, port: int, entry: PortPlan) -> listener_pb2.Listener:
    """`0.0.0.0_PORT`: HTTP by RDS, services without address by SNI or address block, the rest passes through."""
    name = naming.listener(ANY_V4, port)
    result = _unbound(_listener(name, _wildcard_addresses(view, port)))
    chains = Chains(result)
    for service, service_port in entry.opaque:
        for chain in _opaque_chains(view, service, service_port, by_name=True):
            if not _is_default(chain):
                chains.add(chain)
            elif not entry.http and not result.HasField("default_filter_chain"):
                result.default_filter_chain.CopyFrom(chain)
    if entry.http:
        chains.add(_http_chain(view, name, str(port)))
        to_virtual = _http_chain(view, name, str(port))
        to_virtual.filter_chain_match.prefix_ranges.extend(virtual.blocks())
        to_virtual.filters.insert(0, virtual.note_destination())
        chains.add(to_virtual)
    chains.extend(_unserved_chains(view))
    if not result.HasField("default_filter_chain"):
        result.default_filter_chain.CopyFrom(_passthrough_chain(view))
    _inspect(result, view, http=bool(entry.http))
    return result


def vip_listener(view: View, one: VipPlan) -> listener_pb2.Listener:
    """`VIP_PORT` of one service that is not (known to be) HTTP."""
    service, port = one.service, one.port
    name = naming.listener(one.addresses[0], port.number)
    result = _unbound(_listener(name, [socket_address(address, port.number) for address in one.addresses]))
    chains = Chains(result)
    for chain in _opaque_chains(view, service, port, by_name=False):
        if not _is_default(chain):
            chains.add(chain)
        elif not result.HasField("default_filter_chain"):
            result.default_filter_chain.CopyFrom(chain)
    if port.protocol is Protocol.AUTO:
        chains.add(_http_chain(view, name, f"{service.host}:{port.number}"))
    _inspect(result, view, http=port.protocol is Protocol.AUTO)
    if not result.filter_chains:
        result.filter_chains.append(result.default_filter_chain)
        result.ClearField("default_filter_chain")
    return result


def entry_key(view: View, entry: PortPlan) -> str:
    """The content that a wildcard listener reads."""
    parts = ["http" if entry.http else ""]
    for service, port in entry.opaque:
        parts.append(opaque_key(view, service, port))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def opaque_key(view: View, service: MeshService, port: ServicePort) -> str:
    """The content that the chains of an opaque port read."""
    return f"{service.key}/{port.number}/{view.rule_key(service)}/{opaque_routes(view, service, port)}"


def _opaque_chains(view: View, service: MeshService, port: ServicePort, *, by_name: bool) -> list[Chain]:
    """Chains for the rules of a port, then the service itself. `by_name`: the listener is shared by others."""
    blocks = tuple(address for address in service.addresses if "/" in address) if by_name else ()
    routes = opaque_routes(view, service, port)
    if not any(route.takes_all(port) for route in routes):
        name = naming.opaque_cluster if port.protocol is Protocol.AUTO else naming.outbound_cluster
        cluster = name(port.number, "", service.host)
        names = (service.host,) if by_name and not blocks and port.protocol is Protocol.TLS else ()
        by_source = hashes_source(view.rule(service).effective(port.number, ""))
        routes.append(OpaqueRoute(cluster, ((cluster, 1),), names, by_source=by_source))
    pool = view.rule(service).effective(port.number, "").connection_pool
    settings = pool.tcp if pool else None
    chains: list[Chain] = []
    for route in routes:
        match = listener_components_pb2.FilterChainMatch(server_names=route.server_names)
        match.prefix_ranges.extend(cidr(block) for block in route.subnets or blocks)
        if route.tls or route.server_names:
            match.transport_protocol = "tls"
        filters = [
            tcp_proxy(route.name, list(route.clusters), view.mesh, settings, by_source=route.by_source)
        ]
        chain = Chain(name=route.name, filters=filters)
        if match != listener_components_pb2.FilterChainMatch():
            chain.filter_chain_match.CopyFrom(match)
        chains.append(chain)
    return chains


def _is_default(chain: Chain) -> bool:
    return not chain.HasField("filter_chain_match")


def _http_chain(view: View, listener_name: str, route_name: str) -> Chain:
    chain = Chain(filters=[outbound_http(f"outbound_{listener_name}", route_name, view.mesh)])
    chain.filter_chain_match.transport_protocol = "raw_buffer"
    chain.filter_chain_match.application_protocols.extend(SNIFFED_HTTP)
    return chain


def _passthrough_chain(view: View) -> Chain:
    target = naming.BLACK_HOLE if view.scope.registry_only else naming.PASSTHROUGH
    return Chain(name="PassthroughFilterChain", filters=[tcp_proxy(target, [(target, 1)], view.mesh)])


def _unserved_chains(view: View) -> list[Chain]:
    """Connections to virtual addresses that nothing else takes: closed at once.

    Envoy does not go back once a transport matched: raw bytes beside an HTTP chain need a chain of their own.
    """
    filters = [tcp_proxy(naming.BLACK_HOLE, [(naming.BLACK_HOLE, 1)], view.mesh)]
    chains = [Chain(name="virtual-unserved", filters=filters) for _ in range(2)]
    for chain, transport in zip(chains, ("raw_buffer", ""), strict=True):
        chain.filter_chain_match.prefix_ranges.extend(virtual.blocks())
        chain.filter_chain_match.transport_protocol = transport
    return chains


def _inspect(listener: listener_pb2.Listener, view: View, *, http: bool) -> None:
    """Listener filters that look at the first bytes, and for how long they wait for them."""
    tls = any(chain.filter_chain_match.transport_protocol == "tls" for chain in listener.filter_chains)
    if tls or http:
        listener.listener_filters.add(
            name=TLS_INSPECTOR, typed_config=any_of(tls_inspector_pb2.TlsInspector())
        )
    if http:
        listener.listener_filters.add(
            name=HTTP_INSPECTOR, typed_config=any_of(http_inspector_pb2.HttpInspector())
        )
    if tls or http:
        listener.listener_filters_timeout.CopyFrom(duration(view.mesh.protocol_detection_timeout))
        listener.continue_on_listener_filters_timeout = True


def _wildcard_addresses(view: View, port: int) -> list[address_pb2.Address]:
    families = [ANY_V4] if view.proxy.ipv4 else []
    families += [ANY_V6] if view.proxy.ipv6 else []
    return [socket_address(host, port) for host in families]


def _listener(name: str, addresses: list[address_pb2.Address]) -> listener_pb2.Listener:
    result = listener_pb2.Listener(name=name, traffic_direction=base_pb2.OUTBOUND)
    result.address.CopyFrom(addresses[0])
    for address in addresses[1:]:
        result.additional_addresses.add(address=address)
    return result


def _unbound(listener: listener_pb2.Listener) -> listener_pb2.Listener:
    listener.bind_to_port.value = False
    return listener
