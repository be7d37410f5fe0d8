"""Which resources other resources name: a client's next subscriptions.

Rule: only what is fetched over ADS counts. Not for judging whether a resource is right (agent.table).
"""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf.any_pb2 import Any as AnyMessage

from wire.xds.types import EncodedResource

_HCM = http_connection_manager_pb2.HttpConnectionManager


def endpoint_names(clusters: Iterable[EncodedResource]) -> set[str]:
    """The ClusterLoadAssignments that the clusters of type EDS need; raises DecodeError for broken bodies."""
    names = set()
    for resource in clusters:
        cluster = cluster_pb2.Cluster()
        AnyMessage.FromString(resource.body).Unpack(cluster)
        if cluster.type == cluster_pb2.Cluster.EDS:
            names.add(cluster.eds_cluster_config.service_name or cluster.name)
    return names


def route_names(listeners: Iterable[EncodedResource]) -> set[str]:
    """The RouteConfigurations that the listeners' HTTP filters name; raises DecodeError for broken bodies."""
    names = set()
    for resource in listeners:
        listener = listener_pb2.Listener()
        AnyMessage.FromString(resource.body).Unpack(listener)
        configs = [listener.api_listener.api_listener]
        for chain in [*listener.filter_chains, listener.default_filter_chain]:
            configs.extend(network_filter.typed_config for network_filter in chain.filters)
        for config in configs:
            if config.Is(_HCM.DESCRIPTOR):
                manager = _HCM()
                config.Unpack(manager)
                if manager.HasField("rds"):
                    names.add(manager.rds.route_config_name)
    return names
