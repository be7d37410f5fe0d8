"""xDS resources become a table, each for itself; what did not change stays the same object."""

from __future__ import annotations

from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.route.v3 import route_pb2
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage

from agent.table.build import CLUSTER, ENDPOINT, LISTENER, ROUTE, TableBuilder, build
from agent.table.errors import ConfigError


def packed(message: Any) -> bytes:
    """A message as the control plane sends it."""
    holder = AnyMessage()
    holder.Pack(message)
    return holder.SerializeToString(deterministic=True)


def cluster(name: str, **fields: Any) -> bytes:
    """An EDS cluster."""
    tree = {"name": name, "type": "EDS", "eds_cluster_config": {"eds_config": {"ads": {}}}, **fields}
    return packed(json_format.ParseDict(tree, cluster_pb2.Cluster()))


def endpoints(name: str, *hosts: str) -> bytes:
    """An assignment of hosts on port 80."""
    listed = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": 80}}}} for host in hosts
    ]
    tree = {"cluster_name": name, "endpoints": [{"lb_endpoints": listed}]}
    return packed(json_format.ParseDict(tree, endpoint_pb2.ClusterLoadAssignment()))


def test_unchanged_resources_stay_the_same_objects() -> None:
    builder = TableBuilder()
    first = builder.build(
        {CLUSTER: {"a": cluster("a"), "b": cluster("b")}, ENDPOINT: {"a": endpoints("a", "10.0.0.1")}}
    ).table
    second = builder.build(
        {
            CLUSTER: {"a": cluster("a"), "b": cluster("b", connect_timeout="1s")},
            ENDPOINT: {"a": endpoints("a", "10.0.0.1")},
        }
    ).table
    assert second.clusters["a"] is first.clusters["a"]
    assert second.assignments["a"] is first.assignments["a"]
    assert second.clusters["b"].connect_timeout == 1.0
    assert second.version != first.version


def test_the_version_is_the_contents() -> None:
    resources = {CLUSTER: {"a": cluster("a")}}
    assert build(resources).version == build(resources).version


def test_a_bad_resource_keeps_its_last_good_version_and_holds_up_no_other() -> None:
    builder = TableBuilder()
    first = builder.build({CLUSTER: {"a": cluster("a"), "b": cluster("b")}}).table
    changed = {
        "a": cluster("a", preconnect_policy={}),
        "b": cluster("b", connect_timeout="1s"),
        "c": cluster("c", preconnect_policy={}),
    }
    for _ in range(2):  # refused each time, not only at first
        built = builder.build({CLUSTER: changed})
        assert built.table.clusters["a"] is first.clusters["a"]
        assert built.table.clusters["b"].connect_timeout == 1.0
        assert set(built.table.clusters) == {"a", "b"}
        assert built.bodies[CLUSTER] == {"a": cluster("a"), "b": changed["b"]}
        assert [(one.name, str(one)) for one in built.refused] == [
            ("a", "Cluster[a].preconnect_policy: unsupported field"),
            ("c", "Cluster[c].preconnect_policy: unsupported field"),
        ]


def test_a_removed_resource_is_gone_with_its_last_good_version() -> None:
    builder = TableBuilder()
    builder.build({CLUSTER: {"a": cluster("a")}})
    builder.build({CLUSTER: {}})
    built = builder.build({CLUSTER: {"a": cluster("a", preconnect_policy={})}})
    assert not built.table.clusters
    assert len(built.refused) == 1


@pytest.mark.parametrize("body", [b"\xff\xff", b"", packed(route_pb2.RouteConfiguration(name="r"))])
def test_bytes_that_are_no_such_resource_are_refused(body: bytes) -> None:
    with pytest.raises(ConfigError):
        build({CLUSTER: {"a": body}})


def test_the_constraints_of_the_api_are_checked() -> None:
    bad = packed(
        json_format.ParseDict({"name": "r", "virtual_hosts": [{"name": "v"}]}, route_pb2.RouteConfiguration())
    )
    with pytest.raises(ConfigError, match=r"RouteConfiguration\[r\].virtual_hosts\[0\].domains: at least 1"):
        build({ROUTE: {"r": bad}})


def test_resources_that_are_not_the_data_planes_are_passed_over() -> None:
    table = build({"type.googleapis.com/istio.networking.nds.v1.NameTable": {"": b"anything"}, LISTENER: {}})
    assert table.listeners == {}


def test_messages_nested_without_bound_cost_only_their_own_resource() -> None:
    inner = AnyMessage(type_url="type.googleapis.com/google.protobuf.Any")
    for _ in range(3000):
        inner = AnyMessage(
            type_url="type.googleapis.com/google.protobuf.Any", value=inner.SerializeToString()
        )
    deep = cluster_pb2.Cluster(name="deep")
    deep.typed_extension_protocol_options["x"].CopyFrom(inner)
    built = TableBuilder().build({CLUSTER: {"a": cluster("a"), "deep": packed(deep)}})
    assert set(built.table.clusters) == {"a"}
    assert [str(one) for one in built.refused] == ["Cluster[deep]: nested too deeply"]


def test_a_fault_of_the_decoder_costs_only_its_own_resource(caplog: pytest.LogCaptureFixture) -> None:
    def broken(name: str) -> bytes:
        raise RuntimeError("a fault of ours")

    source = {"status": 200, "body": {"filename": "/x"}}
    tree = {"name": "v", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "direct_response": source}]}
    bad = json_format.ParseDict({"name": "bad", "virtual_hosts": [tree]}, route_pb2.RouteConfiguration())
    good = route_pb2.RouteConfiguration(name="good")
    built = TableBuilder(broken).build({ROUTE: {"bad": packed(bad), "good": packed(good)}})
    assert set(built.table.routes) == {"good"}
    assert "RuntimeError: a fault of ours" in built.refused[0].reason
    assert "RouteConfiguration[bad] cannot be decoded" in caplog.text
