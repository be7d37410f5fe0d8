"""The whole of one proxy's resources: names, sharing, purity, what a change touches, and speed."""
# ruff: noqa: E501 - a resource is easier to read on one line

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from google.protobuf.json_format import MessageToDict

from istiod.compile import Cache, ProxyInfo, compile_proxy
from istiod.resources.mesh_config import MeshConfig, mesh_config
from istiod.snapshot import Snapshot, build
from registry.model import Health, Instance, Port, Resource, Service
from wire.proto import name_table_pb2
from wire.xds import CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE

HTTP = (Port("http", 9080),)
PROXY = ProxyInfo(
    "default", "bookinfo-reviews", {"app": "reviews"}, ("10.0.0.2",), "reviews", "reviews-v1", HTTP
)  # fmt: skip


def service(name: str, number: int, ports: tuple[Port, ...] = HTTP, namespace: str = "default") -> Service:
    return Service(name, namespace, ports, f"240.240.0.{number}", f"2001:2::{number}")


def instance(name: str, address: str, ports: tuple[Port, ...] = HTTP, **changes: Any) -> Instance:
    one = Instance(
        f"default/{name}-{address}", name, "default", (address,), ports, {"app": name, "version": "v1"},
        f"bookinfo-{name}", "eu/eu-1/a", 0, Health.HEALTHY, "h", f"{name}-v1",
    )  # fmt: skip
    return replace(one, **changes)


def resource(
    kind: str, name: str, spec: dict[str, Any], namespace: str = "default", version: str = "1"
) -> Resource:
    return Resource(kind, namespace, name, "networking.istio.io/v1", spec, version=version)


def mesh(
    *resources: Resource, config: MeshConfig | None = None, previous: Snapshot | None = None
) -> Snapshot:
    services = [service("reviews", 1), service("ratings", 2), service("db", 3, (Port("mysql", 3306),))]
    instances = [
        instance("reviews", "10.0.0.2"),
        instance("ratings", "10.0.0.3"),
        instance("db", "10.0.0.4", services[2].ports),
    ]
    return build(services, instances, resources, config or MeshConfig(), previous)


def test_names_are_istios() -> None:
    compiled = compile_proxy(mesh(), PROXY)
    assert set(compiled.of(LISTENER)) == {
        "virtualOutbound",
        "virtualInbound",
        "0.0.0.0_9080",
        "240.240.0.3_3306",
    }
    assert set(compiled.of(ROUTE)) == {"9080"}
    assert set(compiled.of(CLUSTER)) == {
        "outbound|9080||reviews.default.svc.cluster.local",
        "outbound|9080||ratings.default.svc.cluster.local",
        "outbound|3306||db.default.svc.cluster.local",
        "inbound|9080||",
        "PassthroughCluster",
        "InboundPassthroughCluster",
        "BlackHoleCluster",
    }
    assert set(compiled.of(ENDPOINT)) == {
        name for name in compiled.of(CLUSTER) if name.startswith("outbound")
    }


def test_endpoints_say_who_they_are() -> None:
    compiled = compile_proxy(mesh(), PROXY)
    name = "outbound|9080||ratings.default.svc.cluster.local"
    assignment = compiled.message(ENDPOINT, name, endpoint_pb2.ClusterLoadAssignment)
    assert MessageToDict(assignment)["endpoints"] == [
        {
            "locality": {"region": "eu", "zone": "eu-1", "subZone": "a"},
            "loadBalancingWeight": 1,
            "lbEndpoints": [
                {
                    "endpoint": {"address": {"socketAddress": {"address": "10.0.0.3", "portValue": 9080}}},
                    "healthStatus": "HEALTHY",
                    "loadBalancingWeight": 1,
                    "metadata": {
                        "filterMetadata": {
                            "envoy.transport_socket_match": {"tlsMode": "istio"},
                            "istio": {"workload": "ratings-v1;default;ratings;v1;"},
                        }
                    },
                }
            ],
        }
    ]


def test_clusters_say_which_service_they_are_and_whom_they_trust() -> None:
    compiled = compile_proxy(mesh(), PROXY)
    name = "outbound|9080||ratings.default.svc.cluster.local"
    cluster = compiled.message(CLUSTER, name, cluster_pb2.Cluster)
    assert isinstance(cluster, cluster_pb2.Cluster)
    described = MessageToDict(cluster.metadata.filter_metadata["istio"])
    assert described["services"] == [
        {"host": "ratings.default.svc.cluster.local", "name": "ratings", "namespace": "default"}
    ]
    assert [match.name for match in cluster.transport_socket_matches] == ["tlsMode-istio", "tlsMode-disabled"]
    tls = cluster.transport_socket_matches[0].transport_socket.typed_config.value
    assert b"spiffe://cluster.local/ns/default/sa/bookinfo-ratings" in tls
    assert b"outbound_.9080_._.ratings.default.svc.cluster.local" in tls


def test_the_name_table_has_the_services_and_their_shorter_names() -> None:
    dual = replace(PROXY, addresses=("10.0.0.2", "fd00::2"))
    table = compile_proxy(mesh(), dual).message(NAME_TABLE, "", name_table_pb2.NameTable)
    assert isinstance(table, name_table_pb2.NameTable)
    info = table.table["ratings.default.svc.cluster.local"]
    assert list(info.ips) == ["240.240.0.2", "2001:2::2"]
    assert list(info.alt_hosts) == ["ratings", "ratings.default", "ratings.default.svc"]
    far = compile_proxy(mesh(), replace(PROXY, namespace="other")).message(
        NAME_TABLE, "", name_table_pb2.NameTable
    )
    assert isinstance(far, name_table_pb2.NameTable)
    assert "ratings" not in far.table["ratings.default.svc.cluster.local"].alt_hosts


def test_ipv6_is_listened_on_where_the_workload_has_it() -> None:
    def addresses(proxy: ProxyInfo, name: str) -> list[str]:
        listener = compile_proxy(mesh(), proxy).message(LISTENER, name, listener_pb2.Listener)
        assert isinstance(listener, listener_pb2.Listener)
        every = [listener.address, *(one.address for one in listener.additional_addresses)]
        return [one.socket_address.address for one in every]

    dual = replace(PROXY, addresses=("10.0.0.2", "fd00::2"))
    six = replace(PROXY, addresses=("fd00::2",))
    for name in ("virtualOutbound", "virtualInbound", "0.0.0.0_9080"):
        assert addresses(PROXY, name) == ["0.0.0.0"]
        assert addresses(dual, name) == ["0.0.0.0", "::"]
        assert addresses(six, name) == ["::"]
    assert addresses(dual, "240.240.0.3_3306") == ["240.240.0.3", "2001:2::3"]
    assert addresses(six, "2001:2::3_3306") == ["2001:2::3"]


def test_equal_inputs_give_equal_bytes_with_and_without_cache() -> None:
    rule = resource(
        "DestinationRule", "r", {"host": "ratings", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]}
    )
    cache = Cache()
    compile_proxy(mesh(), PROXY, cache)
    warm = compile_proxy(mesh(rule), PROXY, cache)
    fresh = compile_proxy(mesh(rule), PROXY)
    assert warm == fresh


def test_proxies_share_what_is_the_same_for_them() -> None:
    cache, snapshot = Cache(), mesh()
    one = compile_proxy(snapshot, PROXY, cache)
    two = compile_proxy(snapshot, replace(PROXY, workload="reviews-v2", addresses=("10.0.0.9",)), cache)
    for kind in (CLUSTER, ENDPOINT, LISTENER, ROUTE, NAME_TABLE):
        assert all(one.of(kind)[name] is two.of(kind)[name] for name in one.of(kind)), kind


def change(kind: str, spec: dict[str, Any], namespace: str = "default") -> set[str]:
    """The names of the resources that a new resource changes for PROXY; empty means the very same object."""
    cache, before = Cache(), mesh()
    old = compile_proxy(before, PROXY, cache)
    new = compile_proxy(mesh(resource(kind, "new", spec, namespace), previous=before), PROXY, cache)
    if new.types is old.types:
        return set()
    changed = {
        name
        for kind_of in new.types
        for name, one in new.of(kind_of).items()
        if old.of(kind_of).get(name) != one
    }
    gone = {name for kind_of in old.types for name in old.of(kind_of) if name not in new.of(kind_of)}
    assert changed | gone, "a proxy that sees no change must get the same object"
    return changed | gone


@pytest.mark.parametrize(
    ("kind", "spec", "namespace", "touched"),
    [
        ("VirtualService", {"hosts": ["ratings"], "http": [{"timeout": "1s", "route": [{"destination": {"host": "ratings"}}]}]}, "default", {"9080"}),
        (
            "DestinationRule",
            {"host": "ratings", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}},
            "default",
            {"outbound|9080||ratings.default.svc.cluster.local"},
        ),
        ("PeerAuthentication", {"mtls": {"mode": "STRICT"}}, "default", {"virtualInbound"}),
        ("AuthorizationPolicy", {"rules": [{}]}, "istio-system", {"virtualInbound"}),
        ("PeerAuthentication", {"mtls": {"mode": "STRICT"}}, "elsewhere", set()),
        ("AuthorizationPolicy", {"rules": [{}]}, "elsewhere", set()),
        ("DestinationRule", {"host": "unknown.example", "trafficPolicy": {}}, "default", set()),
        ("DestinationRule", {"host": "ratings.default.svc.cluster.local", "exportTo": ["."]}, "elsewhere", set()),
        ("Gateway", {"servers": []}, "default", set()),
    ],
)  # fmt: skip
def test_a_change_touches_only_what_reads_it(
    kind: str, spec: dict[str, Any], namespace: str, touched: set[str]
) -> None:
    assert change(kind, spec, namespace) == touched


def test_a_new_instance_touches_only_its_service() -> None:
    cache, before = Cache(), mesh()
    old = compile_proxy(before, PROXY, cache)
    services = [service("reviews", 1), service("ratings", 2), service("db", 3, (Port("mysql", 3306),))]
    more = [*before.instances, instance("ratings", "10.0.0.33")]
    new = compile_proxy(build(services, more, (), MeshConfig(), before), PROXY, cache)
    differing = {
        (kind, name)
        for kind in new.types
        for name, one in new.of(kind).items()
        if old.of(kind)[name] is not one
    }
    assert differing == {(ENDPOINT, "outbound|9080||ratings.default.svc.cluster.local")}


def test_a_stored_resource_that_does_not_validate_is_reported_and_left_out() -> None:
    snapshot = mesh(resource("VirtualService", "bad", {"hosts": ["ratings"], "htpp": []}))
    assert [problem.path for problem in snapshot.problems] == ["spec.htpp"]
    assert compile_proxy(snapshot, PROXY) == compile_proxy(mesh(), PROXY)


def test_service_entries_get_stable_addresses_that_nobody_else_has() -> None:
    def entry(name: str) -> Resource:
        return resource(
            "ServiceEntry",
            name,
            {"hosts": [f"{name}.example"], "resolution": "DNS", "ports": [{"number": 443, "name": "tls"}]},
        )

    few, many = mesh(entry("one")), mesh(*(entry(f"e{n}") for n in range(300)), entry("one"))
    assert few.by_host["one.example"][0].addresses == many.by_host["one.example"][0].addresses
    every = [address for one in many.services for address in one.addresses]
    assert len(set(every)) == len(every)
    assert all(address.startswith(("240.240.", "2001:2:")) for address in every)


def test_a_plain_envoy_in_a_workloads_place_gets_the_workloads_ports() -> None:
    anonymous = replace(PROXY, service="", ports=())
    assert (
        compile_proxy(mesh(), anonymous).of(CLUSTER)["inbound|9080||"]
        == compile_proxy(mesh(), PROXY).of(CLUSTER)["inbound|9080||"]
    )


def test_unknown_settings_of_the_mesh_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mesh\.trustDomian: unknown field"):
        mesh_config({"trustDomian": "x"})


def test_five_hundred_services_compile_in_a_tenth_of_a_second_for_the_next_proxy() -> None:
    services = [
        Service(f"s{n}", "default", HTTP, f"240.240.{n // 250}.{n % 250 + 1}", f"2001:2::{n + 1:x}")
        for n in range(500)
    ]
    instances = [
        instance(f"s{n}", f"10.{copy}.{n // 250}.{n % 250 + 1}") for n in range(500) for copy in range(4)
    ]
    snapshot, cache = build(services, instances, (), MeshConfig()), Cache()
    compile_proxy(snapshot, PROXY, cache)
    started = time.perf_counter()
    compile_proxy(snapshot, replace(PROXY, workload="reviews-v2", service="s1"), cache)
    assert time.perf_counter() - started < 0.1
