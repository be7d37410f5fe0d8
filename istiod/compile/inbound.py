"""LDS, inbound: virtualInbound, whose filter chains say who may reach which port of the workload, and how.

For each port the PeerAuthentication mode chooses the chains: STRICT has mutual TLS only, DISABLE plain text
only, PERMISSIVE both (told apart by ALPN, so that an application's own TLS still passes). Ports that nobody
declared go through the catch-all chains to InboundPassthroughCluster under the workload's mode. A connection
that no chain wants is closed. Authorization policies stand in every chain.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from envoy.config.core.v3 import base_pb2
from envoy.config.listener.v3 import listener_components_pb2, listener_pb2
from envoy.config.route.v3 import route_components_pb2, route_pb2
from envoy.extensions.filters.listener.http_inspector.v3 import http_inspector_pb2
from envoy.extensions.filters.listener.original_dst.v3 import original_dst_pb2
from envoy.extensions.filters.listener.tls_inspector.v3 import tls_inspector_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2

from istiod.compile import naming
from istiod.compile.authentication import PeerModes
from istiod.compile.chains import Chain, Chains, Match
from istiod.compile.connection import inbound_http, tcp_proxy
from istiod.compile.envoy import any_of, duration, socket_address, struct
from istiod.compile.outbound import ANY_V4, ANY_V6, HTTP_INSPECTOR, SNIFFED_HTTP, TLS_INSPECTOR
from istiod.compile.tls import ALPN_TCP, MATCH_HTTP, MESH_ALPN, SERVER_ALPN, inbound_mtls
from istiod.proxy import ProxyInfo
from istiod.resources.mesh_config import MeshConfig
from istiod.resources.sidecar import Sidecar
from istiod.services import Protocol, ServicePort, protocol_of

ORIGINAL_DST = "envoy.filters.listener.original_dst"


@dataclass(frozen=True, slots=True)
class InboundPort:
    """One port of the workload and where its application is reached (clusters.inbound_cluster)."""

    port: ServicePort
    """`target` differs from `number` where the application listens on another port of the called address."""
    default_endpoint: str = ""

    @property
    def cluster(self) -> str:
        """`inbound|PORT||`."""
        return naming.inbound_cluster(self.port.number)


@dataclass(frozen=True, slots=True)
class Inbound:
    """Everything that virtualInbound is made from."""

    proxy: ProxyInfo
    mesh: MeshConfig
    modes: PeerModes
    ports: tuple[InboundPort, ...]
    http_filters: tuple[hcm_pb2.HttpFilter, ...]
    tcp_filters: tuple[listener_components_pb2.Filter, ...]


def inbound_ports(proxy: ProxyInfo, sidecar: Sidecar | None, mesh: MeshConfig) -> tuple[InboundPort, ...]:
    """The workload's declared ports, or those of the Sidecar's ingress, which replaces them (Istio)."""
    own = (proxy.outbound_port, proxy.inbound_port)
    if sidecar is not None and sidecar.ingress:
        listed = [
            (
                one.port.number,
                one.port.name,
                one.port.protocol,
                one.default_endpoint,
                one.port.target_port or one.port.number,
            )
            for one in sidecar.ingress
        ]
    else:
        # Callers connect to the port that the application listens on, whatever the service's own number is.
        listed = [(port.target, port.name, port.protocol, "", port.target) for port in proxy.ports]
    result = []
    seen: set[int] = set()
    for number, name, protocol, endpoint, target in listed:
        # Two ports of a service may lead to one of the application: the first says what it speaks.
        if number in own or number in seen:
            continue
        seen.add(number)
        port = ServicePort(name, number, protocol_of(name, number, protocol), target)
        if port.protocol is not Protocol.UDP:
            if mesh.inbound_traffic_policy.mode == "LOCALHOST" and not endpoint:
                endpoint = f"127.0.0.1:{target}"
            result.append(InboundPort(port, endpoint))
    return tuple(result)


def virtual_inbound(inbound: Inbound) -> listener_pb2.Listener:
    """The listener that capture redirects inbound connections to."""
    proxy = inbound.proxy
    families = ([ANY_V4] if proxy.ipv4 else []) + ([ANY_V6] if proxy.ipv6 else [])
    result = listener_pb2.Listener(name=naming.VIRTUAL_INBOUND, traffic_direction=base_pb2.INBOUND)
    result.address.CopyFrom(socket_address(families[0], proxy.inbound_port))
    for family in families[1:]:
        result.additional_addresses.add(address=socket_address(family, proxy.inbound_port))
    chains = Chains(result)
    chains.add(
        Chain(
            name="virtualInbound-blackhole",
            filter_chain_match=_on_port(proxy.inbound_port),
            filters=[tcp_proxy(naming.BLACK_HOLE, [(naming.BLACK_HOLE, 1)], inbound.mesh)],
        )
    )
    plain_tcp: list[int] = []
    for one in inbound.ports:
        mode = inbound.modes.of(one.port.number)
        name = naming.listener(ANY_V4, one.port.number)
        build = _PortChains(inbound, name, one.cluster, one.port.number)
        chains.extend(build.chains(mode, one.port.protocol))
        if mode == "DISABLE" and one.port.protocol is Protocol.TCP:
            plain_tcp.append(one.port.number)
    declared = {one.port.number for one in inbound.ports}
    for number, mode in sorted(inbound.modes.ports.items()):
        if number not in declared and number != proxy.inbound_port:
            build = _PortChains(inbound, naming.listener(ANY_V4, number), naming.INBOUND_PASSTHROUGH, number)
            chains.extend(build.chains(mode, Protocol.AUTO))
    catch_all = _PortChains(inbound, naming.VIRTUAL_INBOUND, naming.INBOUND_PASSTHROUGH, 0)
    chains.extend(catch_all.chains(inbound.modes.workload, Protocol.AUTO))
    result.listener_filters.add(name=ORIGINAL_DST, typed_config=any_of(original_dst_pb2.OriginalDst()))
    tls_inspector = result.listener_filters.add(
        name=TLS_INSPECTOR, typed_config=any_of(tls_inspector_pb2.TlsInspector())
    )
    http_inspector = result.listener_filters.add(
        name=HTTP_INSPECTOR, typed_config=any_of(http_inspector_pb2.HttpInspector())
    )
    # Where the server speaks first there are no bytes to look at, and none are needed.
    _except_ports(tls_inspector, plain_tcp)
    _except_ports(http_inspector, plain_tcp)
    result.listener_filters_timeout.CopyFrom(duration(inbound.mesh.protocol_detection_timeout))
    result.continue_on_listener_filters_timeout = True
    return result


class _PortChains:
    """The filter chains of one port (0: of all others)."""

    def __init__(self, inbound: Inbound, name: str, cluster: str, port: int) -> None:
        self._inbound = inbound
        self._name = name
        self._cluster = cluster
        self._port = port

    def chains(self, mode: str, protocol: Protocol) -> list[Chain]:
        """All chains for a mode and protocol."""
        found: list[Chain] = []
        if mode != "DISABLE":
            found += self._mutual(mode == "PERMISSIVE", protocol)
        if mode != "STRICT":
            found += self._plain(protocol, tls_passes=mode == "PERMISSIVE" and not protocol.is_http)
        return found

    def _mutual(self, permissive: bool, protocol: Protocol) -> list[Chain]:
        """Chains that end mutual TLS. Under PERMISSIVE only callers that offer the mesh's ALPN get there."""
        if protocol.is_http:
            alpn = (*MESH_ALPN[1:], *MESH_ALPN[:1], *MATCH_HTTP) if permissive else ()
            return [self._http(self._match("tls", alpn), SERVER_ALPN)]
        opaque = self._tcp(self._match("tls", MESH_ALPN if permissive else ()), mtls=True)
        if protocol is Protocol.AUTO:
            return [self._http(self._match("tls", MATCH_HTTP), SERVER_ALPN), opaque]
        return [opaque]

    def _plain(self, protocol: Protocol, *, tls_passes: bool) -> list[Chain]:
        """Chains without mutual TLS; `tls_passes`: TLS that is not the mesh's goes to the application as it is."""
        if protocol.is_http:
            return [self._http(self._match("raw_buffer"), None)]
        if protocol is Protocol.AUTO:
            # Envoy does not go back once a transport matched: raw bytes that are not HTTP need their own chain.
            found = [self._http(self._match("raw_buffer", SNIFFED_HTTP), None)]
            transports: tuple[str, ...] = ("tls", "raw_buffer")
        else:
            found = []
            transports = ("tls", "raw_buffer") if tls_passes else ("",)
        return [*found, *(self._tcp(self._match(transport), mtls=False) for transport in transports)]

    def _match(self, transport: str, alpn: Iterable[str] = ()) -> Match:
        match = Match(transport_protocol=transport, application_protocols=alpn)
        if self._port:
            match.destination_port.value = self._port
        return match

    def _http(self, match: Match, alpn: tuple[str, ...] | None) -> Chain:
        inbound = self._inbound
        routes = _routes(self._cluster, self._port, inbound)
        stat_prefix = f"inbound_{self._name}" if self._port else naming.INBOUND_PASSTHROUGH
        manager = inbound_http(stat_prefix, routes, inbound.http_filters, inbound.mesh)
        name = self._name if self._port else f"{self._name}-catchall-http"
        chain = Chain(name=name, filter_chain_match=match, filters=[manager])
        if alpn is not None:
            chain.transport_socket.CopyFrom(inbound_mtls(inbound.mesh, alpn))
        return chain

    def _tcp(self, match: Match, *, mtls: bool) -> Chain:
        inbound = self._inbound
        proxy = tcp_proxy(self._cluster, [(self._cluster, 1)], inbound.mesh)
        chain = Chain(name=self._name, filter_chain_match=match, filters=[*inbound.tcp_filters, proxy])
        if mtls:
            chain.transport_socket.CopyFrom(inbound_mtls(inbound.mesh, ALPN_TCP))
        return chain


def _routes(cluster: str, port: int, inbound: Inbound) -> route_pb2.RouteConfiguration:
    """Everything to the application; its own time-outs are the callers' business."""
    result = route_pb2.RouteConfiguration(name=cluster)
    result.validate_clusters.value = False
    host = result.virtual_hosts.add(name=f"inbound|http|{port}", domains=["*"])
    route = host.routes.add(name="default", match=route_components_pb2.RouteMatch(prefix="/"))
    route.route.cluster = cluster
    route.route.timeout.CopyFrom(duration(0))
    if port and inbound.proxy.service:
        service = f"{inbound.proxy.service}.{inbound.proxy.namespace}.svc.{inbound.mesh.domain_suffix}"
        route.metadata.filter_metadata["istio"].CopyFrom(struct({"service": service}))
    return result


def _on_port(port: int) -> Match:
    match = Match()
    match.destination_port.value = port
    return match


def _except_ports(filter_: listener_components_pb2.ListenerFilter, ports: list[int]) -> None:
    """Switch a listener filter off for some destination ports."""
    for port in ports:
        rule = listener_components_pb2.ListenerFilterChainMatchPredicate()
        rule.destination_port_range.start, rule.destination_port_range.end = port, port + 1
        filter_.filter_disabled.or_match.rules.append(rule)
    if len(ports) == 1:
        # or_match wants two at least.
        only = filter_.filter_disabled.or_match.rules[0]
        single = listener_components_pb2.ListenerFilterChainMatchPredicate()
        single.CopyFrom(only)
        filter_.filter_disabled.CopyFrom(single)
