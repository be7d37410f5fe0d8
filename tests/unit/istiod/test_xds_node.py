"""What a proxy says about itself is read strictly."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.core.v3 import base_pb2
from google.protobuf import json_format

from istiod.xds.node import NodeError, check_identity, parse_node
from registry.model import Health, Port
from wire.spiffe import SpiffeId

METADATA: dict[str, Any] = {
    "NAMESPACE": "default",
    "SERVICE_ACCOUNT": "bookinfo-reviews",
    "LABELS": {"app": "reviews", "version": "v2"},
    "INSTANCE_IPS": "10.0.0.2,fd00::2",
    "WORKLOAD_NAME": "reviews-v2",
    "NODE_NAME": "host-a",
    "ISTIO_VERSION": "0.1.0",
    "DNS_CAPTURE": "true",
    "PROXY_CONFIG": {"proxyListenPort": 15101, "proxyInboundListenPort": 15106},
    "HOSTMESH_WORKLOAD": {
        "service": "reviews",
        "namespace": "default",
        "ports": [{"name": "http", "port": 9080}],
        "locality": "eu-west/a",
        "weight": 3,
    },
}
ID = "sidecar~10.0.0.2~reviews-host-a.default~default.svc.cluster.local"


def node(changes: dict[str, Any] | None = None, identifier: str = ID) -> base_pb2.Node:
    message = base_pb2.Node(id=identifier)
    json_format.ParseDict({**METADATA, **(changes or {})}, message.metadata)
    return message


def test_a_node_becomes_a_proxy_and_an_instance() -> None:
    proxy = parse_node(node())
    assert proxy.key == "default/reviews-host-a"
    assert (proxy.outbound_port, proxy.inbound_port) == (15101, 15106)
    instance = proxy.instance("istiod-1")
    assert instance is not None
    assert instance.id == "default/reviews-host-a"
    assert instance.addresses == ("10.0.0.2", "fd00::2")
    assert instance.ports == (Port("http", 9080),)
    assert instance.health is Health.UNHEALTHY
    assert (instance.service, instance.service_account, instance.node) == (
        "reviews",
        "bookinfo-reviews",
        "host-a",
    )
    assert (instance.locality, instance.weight, instance.owner) == ("eu-west/a", 3, "istiod-1")
    info = proxy.info()
    assert (info.service, info.workload, info.outbound_port) == ("reviews", "reviews-v2", 15101)


def test_a_node_without_workload_is_served_and_not_registered() -> None:
    message = node()
    del message.metadata.fields["HOSTMESH_WORKLOAD"]
    assert parse_node(message).instance("istiod-1") is None


@pytest.mark.parametrize(
    ("changes", "identifier", "named"),
    [
        ({}, "reviews", "node id"),
        ({}, "sidecar~10.0.0.2~reviews~default.svc.cluster.local", "NAME.NAMESPACE"),
        ({}, "waypoint~10.0.0.2~reviews.default~x", "type 'waypoint'"),
        ({"NAMESPACE": "other"}, ID, "NAMESPACE"),
        ({"NAMESPACE": 3}, ID, "NAMESPACE"),
        ({"INSTANCE_IPS": "10.0.0.2,nonsense"}, ID, "INSTANCE_IPS"),
        ({"LABELS": ["a"]}, ID, "LABELS"),
        ({"LABELS": {"a": 1}}, ID, "LABELS.a"),
        ({"PROXY_CONFIG": {"proxyListenPort": 70000}}, ID, "PROXY_CONFIG.proxyListenPort"),
        ({"PROXY_CONFIG": {"proxyListenPort": "9" * 5000}}, ID, "PROXY_CONFIG.proxyListenPort"),
        ({"HOSTMESH_WORKLOAD": "reviews"}, ID, "HOSTMESH_WORKLOAD"),
        ({"HOSTMESH_WORKLOAD": {"service": "a|b"}}, ID, "HOSTMESH_WORKLOAD.service"),
        ({"HOSTMESH_WORKLOAD": {"service": "a", "namespace": "kube"}}, ID, "HOSTMESH_WORKLOAD.namespace"),
        (
            {"HOSTMESH_WORKLOAD": {"service": "a", "ports": [{"port": 0}]}},
            ID,
            "HOSTMESH_WORKLOAD.ports[0].port",
        ),
        (
            {"HOSTMESH_WORKLOAD": {"service": "a", "ports": [{"port": 1}, {"port": 1}]}},
            ID,
            "HOSTMESH_WORKLOAD.ports",
        ),
        ({"HOSTMESH_WORKLOAD": {"service": "a", "weight": 0.5}}, ID, "HOSTMESH_WORKLOAD.weight"),
        ({"HOSTMESH_WORKLOAD": {"service": "a", "weight": 129}}, ID, "HOSTMESH_WORKLOAD.weight"),
    ],
)
def test_what_is_wrong_is_refused_by_name(changes: dict[str, Any], identifier: str, named: str) -> None:
    with pytest.raises(NodeError) as refusal:
        parse_node(node(changes, identifier))
    assert named in str(refusal.value)


@pytest.mark.parametrize(
    "peer",
    [
        SpiffeId("cluster.local", "default", "bookinfo-ratings"),
        SpiffeId("cluster.local", "other", "bookinfo-reviews"),
        SpiffeId("evil.example", "default", "bookinfo-reviews"),
    ],
)
def test_a_node_must_be_who_its_certificate_says(peer: SpiffeId) -> None:
    proxy = parse_node(node())
    check_identity(proxy, SpiffeId("cluster.local", "default", "bookinfo-reviews"), ("cluster.local",))
    with pytest.raises(NodeError):
        check_identity(proxy, peer, ("cluster.local",))


def test_a_node_may_be_of_any_trust_domain_of_the_mesh() -> None:
    proxy = parse_node(node())
    check_identity(
        proxy, SpiffeId("old.example", "default", "bookinfo-reviews"), ("cluster.local", "old.example")
    )
