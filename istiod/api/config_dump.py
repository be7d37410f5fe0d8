"""What istiod sent to a proxy, in the shape of Envoy's /config_dump?include_eds (admin.v3.ConfigDump).

Job: decode the encoded resources to JSON for people; used when the proxy itself cannot be asked.
Rule: the same field names as Envoy's own dump, so that one reader serves both.
Not for: secrets, which istiod never sends.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# The classes must be loaded for Any fields inside resources to be shown as JSON.
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from wire.xds import CLUSTER, ENDPOINT, LISTENER, ROUTE, EncodedResource

_ADMIN = "type.googleapis.com/envoy.admin.v3."

Sent = Mapping[str, Mapping[str, EncodedResource]]


def config_dump(sent: Sent) -> dict[str, Any]:
    """The dump of clusters, listeners, routes and endpoints."""
    clusters = _decoded(sent, CLUSTER, cluster_pb2.Cluster)
    listeners = _decoded(sent, LISTENER, listener_pb2.Listener)
    routes = _decoded(sent, ROUTE, route_pb2.RouteConfiguration)
    endpoints = _decoded(sent, ENDPOINT, endpoint_pb2.ClusterLoadAssignment)
    return {
        "configs": [
            {
                "@type": _ADMIN + "ClustersConfigDump",
                "dynamic_active_clusters": [
                    {"version_info": resource.version, "cluster": value} for resource, value in clusters
                ],
            },
            {
                "@type": _ADMIN + "ListenersConfigDump",
                "dynamic_listeners": [
                    {
                        "name": resource.name,
                        "active_state": {"version_info": resource.version, "listener": value},
                    }
                    for resource, value in listeners
                ],
            },
            {
                "@type": _ADMIN + "RoutesConfigDump",
                "dynamic_route_configs": [
                    {"version_info": resource.version, "route_config": value} for resource, value in routes
                ],
            },
            {
                "@type": _ADMIN + "EndpointsConfigDump",
                "dynamic_endpoint_configs": [
                    {"version_info": resource.version, "endpoint_config": value}
                    for resource, value in endpoints
                ],
            },
        ]
    }


def _decoded(sent: Sent, type_url: str, kind: type[Message]) -> list[tuple[EncodedResource, dict[str, Any]]]:
    found = []
    for resource in sent.get(type_url, {}).values():
        message = kind()
        AnyMessage.FromString(resource.body).Unpack(message)
        value = json_format.MessageToDict(message, preserving_proto_field_name=True)
        found.append((resource, {"@type": type_url, **value}))
    return found
