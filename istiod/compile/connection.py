"""The terminal network filters: HTTP connection managers and TCP proxies, in and out, with Istio's settings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

from envoy.config.listener.v3 import listener_components_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.http.cors.v3 import cors_pb2
from envoy.extensions.filters.http.fault.v3 import fault_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.extensions.filters.network.tcp_proxy.v3 import tcp_proxy_pb2

from istiod.compile.access_log import access_logs
from istiod.compile.envoy import ads, any_of, duration, true
from istiod.compile.route_filters import CORS_FILTER, FAULT_FILTER
from istiod.resources.mesh_config import MeshConfig
from istiod.resources.traffic.connection_pool import TcpSettings

HCM = "envoy.filters.network.http_connection_manager"
TCP_PROXY = "envoy.filters.network.tcp_proxy"
ROUTER = "envoy.filters.http.router"
Hcm: TypeAlias = hcm_pb2.HttpConnectionManager
Filter: TypeAlias = listener_components_pb2.Filter


def outbound_http(stat_prefix: str, route_name: str, mesh: MeshConfig) -> Filter:
    """The manager of an outbound listener, with its routes over RDS."""
    manager = _manager(stat_prefix, mesh)
    manager.rds.config_source.CopyFrom(ads())
    manager.rds.route_config_name = route_name
    manager.http_filters.add(name=FAULT_FILTER, typed_config=any_of(fault_pb2.HTTPFault()))
    manager.http_filters.add(name=CORS_FILTER, typed_config=any_of(cors_pb2.Cors()))
    manager.http_filters.add(name=ROUTER, typed_config=any_of(router_pb2.Router()))
    return Filter(name=HCM, typed_config=any_of(manager))


def inbound_http(
    stat_prefix: str,
    routes: route_pb2.RouteConfiguration,
    authorization: Iterable[hcm_pb2.HttpFilter],
    mesh: MeshConfig,
) -> Filter:
    """The manager in front of the application.

    The caller's certificate is passed on as x-forwarded-client-cert: APPEND_FORWARD, as Istio's sidecars do,
    which drops the field on connections without one, so that plaintext callers cannot make it up.
    """
    manager = _manager(stat_prefix, mesh)
    manager.server_name = "istio-envoy"
    manager.forward_client_cert_details = Hcm.APPEND_FORWARD
    details = manager.set_current_client_cert_details
    details.subject.value, details.dns, details.uri = True, True, True
    manager.route_config.CopyFrom(routes)
    manager.http_filters.extend(authorization)
    manager.http_filters.add(name=FAULT_FILTER, typed_config=any_of(fault_pb2.HTTPFault()))
    manager.http_filters.add(name=CORS_FILTER, typed_config=any_of(cors_pb2.Cors()))
    manager.http_filters.add(name=ROUTER, typed_config=any_of(router_pb2.Router()))
    return Filter(name=HCM, typed_config=any_of(manager))


def tcp_proxy(
    stat_prefix: str,
    clusters: list[tuple[str, int]],
    mesh: MeshConfig,
    settings: TcpSettings | None = None,
    *,
    by_source: bool = False,
) -> Filter:
    """Opaque bytes to one cluster, or split by weight. `by_source`: the client's address chooses the host."""
    proxy = tcp_proxy_pb2.TcpProxy(stat_prefix=stat_prefix, access_log=access_logs(mesh))
    if len(clusters) == 1:
        proxy.cluster = clusters[0][0]
    else:
        for name, weight in clusters:
            proxy.weighted_clusters.clusters.add(name=name, weight=weight)
    if settings is not None and settings.idle_timeout is not None:
        proxy.idle_timeout.CopyFrom(duration(settings.idle_timeout))
    if settings is not None and settings.max_connection_duration is not None:
        proxy.max_downstream_connection_duration.CopyFrom(duration(settings.max_connection_duration))
    if by_source:
        proxy.hash_policy.add().source_ip.SetInParent()
    return Filter(name=TCP_PROXY, typed_config=any_of(proxy))


def _manager(stat_prefix: str, mesh: MeshConfig) -> hcm_pb2.HttpConnectionManager:
    manager = Hcm(stat_prefix=stat_prefix, codec_type=Hcm.AUTO)
    manager.use_remote_address.value = False
    _normalize_path(manager, mesh.path_normalization.normalization)
    manager.upgrade_configs.add(upgrade_type="websocket")
    manager.access_log.extend(access_logs(mesh))
    # The application may stream for as long as it likes; routes and pools have their own timeouts.
    manager.stream_idle_timeout.CopyFrom(duration(0))
    return manager


def _normalize_path(manager: hcm_pb2.HttpConnectionManager, kind: str) -> None:
    """Istio's pathNormalization; DEFAULT is BASE (RFC 3986 dot segments, `\\` as `/`)."""
    manager.path_with_escaped_slashes_action = Hcm.KEEP_UNCHANGED
    if kind == "NONE":
        return
    manager.normalize_path.CopyFrom(true())
    if kind in ("MERGE_SLASHES", "DECODE_AND_MERGE_SLASHES"):
        manager.merge_slashes = True
    if kind == "DECODE_AND_MERGE_SLASHES":
        manager.path_with_escaped_slashes_action = Hcm.UNESCAPE_AND_FORWARD
