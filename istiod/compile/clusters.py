"""CDS: one cluster for each port of each visible service and each of its subsets, and the fixed ones.

How an inbound call reaches the application: `inbound|PORT||` is ORIGINAL_DST, so the proxy connects to the
very address that the caller connected to, by way of `lo`. Applications on 0.0.0.0, [::] or the host's own
address are reached without configuration, and one call address is never turned into another. One that
listens on 127.0.0.1 only is reached by saying so: Sidecar.ingress.defaultEndpoint 127.0.0.1:PORT.
Like Istio's, these connections have the source 127.0.0.6 (for v6: ::1): capture tells by it the proxy's call
of its own application, which must pass, from its call of an endpoint on its own host, which must not.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_components_pb2
from envoy.extensions.upstreams.http.v3 import http_protocol_options_pb2

from istiod.compile import naming
from istiod.compile.endpoints import TlsDisabled, dns_assignment
from istiod.compile.envoy import ads, any_of, duration, socket_address, struct
from istiod.compile.tls import (
    ALPN_HTTP1,
    ALPN_HTTP2,
    ALPN_SNIFFED,
    ALPN_TCP,
    originated,
    outbound_mtls,
    raw_socket,
)
from istiod.compile.traffic_policy import (
    HTTP_OPTIONS,
    HostRule,
    apply_connection_pool,
    apply_http_options,
    apply_load_balancer,
    apply_outlier_detection,
    name_server_by_request,
)
from istiod.resources.mesh_config import MeshConfig
from istiod.services import MeshService, Protocol, Resolution, ServicePort

Type: TypeAlias = cluster_pb2.Cluster.DiscoveryType
_ALPN = {Protocol.HTTP: ALPN_HTTP1, Protocol.HTTP2: ALPN_HTTP2, Protocol.AUTO: ALPN_SNIFFED}
_DISCOVERY = {
    Resolution.ENDPOINTS: Type.EDS,
    Resolution.DNS: Type.STRICT_DNS,
    Resolution.DNS_ROUND_ROBIN: Type.LOGICAL_DNS,
    Resolution.NONE: Type.ORIGINAL_DST,
}
_FAMILIES = {
    (True, False): cluster_pb2.Cluster.V4_ONLY,
    (False, True): cluster_pb2.Cluster.V6_ONLY,
    (True, True): cluster_pb2.Cluster.ALL,
}


def identities(service: MeshService, mesh: MeshConfig) -> tuple[str, ...]:
    """The SPIFFE ids of whoever may serve this service, in every trust domain of the mesh, and the ServiceEntry's own.

    From grants, never from endpoints: what a host says about itself must not make callers accept it.
    """
    found = {
        naming.spiffe(domain, namespace, service_account)
        for namespace, service_account in service.servers
        for domain in (mesh.trust_domain, *mesh.trust_domain_aliases)
    }
    found.update(name for name in service.sans if name.startswith("spiffe://"))
    return tuple(sorted(found))


def outbound_cluster(
    service: MeshService,
    port: ServicePort,
    subset: str,
    rule: HostRule,
    *,
    sans: tuple[str, ...],
    mesh: MeshConfig,
    families: tuple[bool, bool],
    tls_disabled: TlsDisabled,
    opaque: bool = False,
) -> cluster_pb2.Cluster | None:
    """The cluster for calls to one port, None when there is nothing to call (DNS without endpoints).

    A port that is sniffed has a second one for what turned out not to be HTTP (`opaque`): the ALPN that a
    cluster offers tells the callee's proxy which of the two comes. (Istio has a filter of its own for that.)
    `families`: whether the proxy's host has IPv4 and IPv6.
    """
    name = naming.outbound_cluster(port.number, subset, service.host)
    policy = rule.effective(port.number, subset)
    cluster = cluster_pb2.Cluster(
        name=naming.opaque_cluster(port.number, subset, service.host) if opaque else name,
        type=_DISCOVERY[service.resolution],
        connect_timeout=duration(mesh.connect_timeout),
    )
    if cluster.type == Type.EDS:
        cluster.eds_cluster_config.eds_config.CopyFrom(ads())
        cluster.eds_cluster_config.service_name = name
    elif cluster.type in (Type.STRICT_DNS, Type.LOGICAL_DNS):
        labels = rule.subsets[subset].labels if subset in rule.subsets else {}
        assignment = dns_assignment(cluster.name, service, port, labels, tls_disabled)
        if assignment is None:
            return None
        cluster.load_assignment.CopyFrom(assignment)
        # The proxy's own addresses say what it can reach: AUTO would take AAAA records alone where there are any.
        cluster.dns_lookup_family = _FAMILIES[families]
        cluster.dns_refresh_rate.CopyFrom(duration(mesh.dns_refresh_rate))
        cluster.respect_dns_ttl = True
    apply_connection_pool(cluster, policy.connection_pool, policy.retry_budget)
    apply_load_balancer(cluster, policy.load_balancer)
    protocol = Protocol.TCP if opaque else apply_http_options(cluster, port.protocol, policy.connection_pool)
    apply_outlier_detection(cluster, policy.outlier_detection)
    alpn = _ALPN.get(protocol, ALPN_TCP)
    sni = naming.sni(port.number, subset, service.host)
    tls = policy.tls
    if tls is None:
        if mesh.enable_auto_mtls and not service.external and cluster.type != Type.ORIGINAL_DST:
            # The endpoint's metadata decides, so that proxies and plain workloads can serve side by side.
            cluster.transport_socket_matches.add(
                name="tlsMode-istio",
                match=struct({"tlsMode": "istio"}),
                transport_socket=outbound_mtls(mesh, sans, sni, alpn),
            )
            cluster.transport_socket_matches.add(
                name="tlsMode-disabled", match=struct({}), transport_socket=raw_socket()
            )
    elif tls.mode == "ISTIO_MUTUAL":
        expected = tls.subject_alt_names or sans
        cluster.transport_socket.CopyFrom(outbound_mtls(mesh, expected, tls.sni or sni, alpn))
    elif tls.mode in ("SIMPLE", "MUTUAL"):
        if service.host.startswith("*") and protocol in _ALPN:
            name_server_by_request(cluster, tls, service.sans)
        plain = {Protocol.HTTP: ("http/1.1",), Protocol.HTTP2: ("h2",)}.get(protocol, ())
        cluster.transport_socket.CopyFrom(originated(tls, service.host, service.sans, plain))
    described: dict[str, object] = {
        "services": [{"host": service.host, "name": service.name, "namespace": service.namespace}],
        "default_original_port": port.number,
    }
    if subset:
        described["subset"] = subset
    if rule.rules:
        owner = rule.rules[0].resource
        described["config"] = naming.config_path(
            "networking.istio.io", "v1", owner.namespace, "destination-rule", owner.name
        )
    cluster.metadata.filter_metadata["istio"].CopyFrom(struct(described))
    return cluster


def inbound_cluster(
    port: ServicePort,
    default_endpoint: str,
    addresses: Iterable[str],
    described: dict[str, str] | None,
    mesh: MeshConfig,
) -> cluster_pb2.Cluster:
    """The way from the proxy to its own application (see the module's docstring).

    `default_endpoint` is Sidecar.ingress.defaultEndpoint or "": loopback is called as it is, a wildcard means
    the workload's own address.
    """
    cluster = cluster_pb2.Cluster(
        name=naming.inbound_cluster(port.number),
        type=Type.ORIGINAL_DST,
        lb_policy=cluster_pb2.Cluster.CLUSTER_PROVIDED,
        connect_timeout=duration(mesh.connect_timeout),
    )
    if default_endpoint:
        host, _, number = default_endpoint.rpartition(":")
        host = host.strip("[]") or "127.0.0.1"
        if host in ("0.0.0.0", "::"):  # noqa: S104 - means the own address
            host = next(iter(addresses), "127.0.0.1")
        cluster.type = Type.STATIC
        cluster.lb_policy = cluster_pb2.Cluster.ROUND_ROBIN
        member = endpoint_components_pb2.LbEndpoint()
        member.endpoint.address.CopyFrom(socket_address(host, int(number)))
        cluster.load_assignment.cluster_name = cluster.name
        cluster.load_assignment.endpoints.add().lb_endpoints.append(member)
    elif port.target != port.number:
        cluster.original_dst_lb_config.upstream_port_override.value = port.target
    _bind_to_loopback(cluster)
    apply_connection_pool(cluster, None, None)
    apply_http_options(cluster, port.protocol, None)
    if described is not None:
        cluster.metadata.filter_metadata["istio"].CopyFrom(struct({"services": [described]}))
    return cluster


def _bind_to_loopback(cluster: cluster_pb2.Cluster) -> None:
    cluster.upstream_bind_config.source_address.CopyFrom(socket_address("127.0.0.6", 0).socket_address)
    extra = cluster.upstream_bind_config.extra_source_addresses.add()
    extra.address.CopyFrom(socket_address("::1", 0).socket_address)


def fixed_clusters(mesh: MeshConfig) -> list[cluster_pb2.Cluster]:
    """PassthroughCluster, InboundPassthroughCluster and BlackHoleCluster."""
    options = http_protocol_options_pb2.HttpProtocolOptions()
    options.use_downstream_protocol_config.http_protocol_options.SetInParent()
    options.use_downstream_protocol_config.http2_protocol_options.SetInParent()
    result = []
    for name in (naming.PASSTHROUGH, naming.INBOUND_PASSTHROUGH):
        cluster = cluster_pb2.Cluster(
            name=name,
            type=Type.ORIGINAL_DST,
            lb_policy=cluster_pb2.Cluster.CLUSTER_PROVIDED,
            connect_timeout=duration(mesh.connect_timeout),
        )
        if name == naming.INBOUND_PASSTHROUGH:
            _bind_to_loopback(cluster)
        apply_connection_pool(cluster, None, None)
        cluster.typed_extension_protocol_options[HTTP_OPTIONS].CopyFrom(any_of(options))
        result.append(cluster)
    black_hole = cluster_pb2.Cluster(
        name=naming.BLACK_HOLE, type=Type.STATIC, connect_timeout=duration(mesh.connect_timeout)
    )
    return [*result, black_hole]
