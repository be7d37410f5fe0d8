"""One bad part of a configuration costs that part only. Faults are real values that no check has seen."""

from __future__ import annotations

import gc
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio
from envoy.config.route.v3 import route_pb2

from istiod.compile import Cache, ProxyInfo, ProxyResources, compile_proxy
from istiod.compile.failure import with_last_good
from istiod.feed import Feed
from istiod.monitoring import Metrics
from istiod.resources.document import Document
from istiod.resources.mesh_config import MeshConfig
from istiod.snapshot import Snapshot, build
from registry.model import Health, Instance, Port, Resource, Service
from registry.opening import SqliteSettings, open_registry
from wire.xds import CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE

HTTP = (Port("http", 9080),)
PROXY = ProxyInfo("default", "default", {"app": "web"}, ("10.0.0.1",), "web", "web-1", HTTP)
ALL = (CLUSTER, ENDPOINT, LISTENER, ROUTE, NAME_TABLE)


def service(name: str, number: int, ports: tuple[Port, ...] = HTTP) -> Service:
    return Service(name, "default", ports, f"240.240.0.{number}", f"2001:2::{number}")


def instance(name: str, address: str, **changes: Any) -> Instance:
    one = Instance(
        f"default/{name}-1", name, "default", (address,), HTTP, {"app": name}, health=Health.HEALTHY
    )
    return replace(one, **changes)


def resource(kind: str, name: str, spec: dict[str, Any], version: str = "1") -> Resource:
    return Resource(kind, "default", name, "networking.istio.io/v1", spec, version=version)


SERVICES = (service("web", 1), service("reviews", 2), service("db", 3, (Port("mysql", 3306),)))
INSTANCES = (instance("web", "10.0.0.1"), instance("reviews", "10.0.0.2"))


def mesh(*resources: Resource, previous: Snapshot | None = None) -> Snapshot:
    return build(SERVICES, INSTANCES, resources, MeshConfig(), previous)


ROUTED = resource(
    "VirtualService",
    "reviews",
    {"hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "reviews"}}]}]},
)


def broken(snapshot: Snapshot, kind: str, **attributes: Any) -> Snapshot:
    """The snapshot with values in its documents of a kind that no validation lets through (as an older version's)."""
    documents = dict(snapshot.documents)
    documents[kind] = tuple(
        Document(one.resource, one.spec.model_copy(update=attributes)) for one in documents[kind]
    )
    return replace(snapshot, documents=documents, _scopes={}, keys=dict.fromkeys(snapshot.keys, "x"))


def unthinkable(routed: Resource) -> tuple[Any, ...]:
    """The rules of a VirtualService with a timeout that is no number."""
    document = mesh(routed).of("VirtualService")[0]
    return tuple(rule.model_copy(update={"timeout": "soon"}) for rule in document.spec.http)


def names(made: ProxyResources) -> dict[str, set[str]]:
    return {url: set(made.of(url)) for url in ALL}


def virtual_hosts(made: Any, name: str = "9080") -> dict[str, Any]:
    resource_of = made[ROUTE][name]
    message = ProxyResources({ROUTE: {name: resource_of}}).message(ROUTE, name, route_pb2.RouteConfiguration)
    assert isinstance(message, route_pb2.RouteConfiguration)
    return {host.name: host for host in message.virtual_hosts}


REVIEWS = "reviews.default.svc.cluster.local:9080"
WEB = "web.default.svc.cluster.local:9080"


def test_routes_that_cannot_be_made_cost_their_host_only() -> None:
    good = compile_proxy(mesh(ROUTED), PROXY)
    bad = compile_proxy(broken(mesh(ROUTED), "VirtualService", http=unthinkable(ROUTED)), PROXY)
    assert [failure.virtual_host for failure in bad.failures] == [REVIEWS]
    assert names(bad) == names(good)
    hosts = virtual_hosts(bad.types)
    assert hosts[WEB] == virtual_hosts(good.types)[WEB]
    assert hosts[REVIEWS].routes[0].direct_response.status == 503


def test_a_proxy_keeps_the_last_good_routes_of_a_host_that_cannot_be_made() -> None:
    good = compile_proxy(mesh(ROUTED), PROXY)
    bad = compile_proxy(broken(mesh(ROUTED), "VirtualService", http=unthinkable(ROUTED)), PROXY)
    kept = with_last_good(bad.types, bad.failures, good.types)
    assert virtual_hosts(kept)[REVIEWS] == virtual_hosts(good.types)[REVIEWS]


def test_clusters_that_cannot_be_made_are_kept_as_they_were() -> None:
    rule = resource("DestinationRule", "reviews", {"host": "reviews"})
    good = compile_proxy(mesh(rule), PROXY)
    snapshot = broken(mesh(rule), "DestinationRule", traffic_policy=object())
    snapshot = replace(
        snapshot,
        _rules={("default", "reviews.default.svc.cluster.local"): snapshot.documents["DestinationRule"]},
    )
    bad = compile_proxy(snapshot, PROXY)
    assert not any(failure.everything for failure in bad.failures)
    missing = good.of(CLUSTER).keys() - bad.of(CLUSTER).keys()
    assert missing == {"outbound|9080||reviews.default.svc.cluster.local"}
    kept = with_last_good(bad.types, bad.failures, good.types)
    assert {url: set(kept[url]) for url in ALL} == names(good)
    assert kept[CLUSTER] == good.of(CLUSTER)


def test_when_nothing_can_be_made_the_proxy_keeps_everything() -> None:
    good = compile_proxy(mesh(ROUTED), PROXY)
    bad = compile_proxy(broken(mesh(ROUTED), "VirtualService", hosts=(7,)), PROXY)
    assert [failure.everything for failure in bad.failures] == [True]
    assert with_last_good(bad.types, bad.failures, good.types) is good.types
    assert not with_last_good(bad.types, bad.failures, {}), "a new proxy is sent nothing, not an empty mesh"


def test_a_resource_whose_reading_fails_is_left_out_of_the_snapshot() -> None:
    odd = replace(resource("VirtualService", "odd", {}), spec={"hosts": {"a": object()}})
    snapshot = mesh(odd, ROUTED)
    assert [document.resource.name for document in snapshot.of("VirtualService")] == ["reviews"]
    assert "VirtualService default/odd" in str(snapshot.problems[0])


def test_a_service_that_cannot_be_used_is_left_out_and_named() -> None:
    odd = replace(service("odd", 9), ports=(replace(HTTP[0], name=7),))  # type: ignore[arg-type]
    snapshot = build((*SERVICES, odd), INSTANCES, (), MeshConfig())
    assert {one.name for one in snapshot.services} == {"web", "reviews", "db"}
    assert "service default/odd" in str(snapshot.problems[0])


def test_parts_live_as_long_as_a_proxy_that_uses_them() -> None:
    """Snapshots that a proxy cannot see must not cost it its parts, however many they are."""
    cache = Cache()
    snapshot = mesh(ROUTED)
    held = compile_proxy(snapshot, PROXY, cache)
    for number in range(80):
        other = replace(PROXY, namespace=f"n{number}")
        unseen = replace(resource("PeerAuthentication", "p", {}, str(number)), namespace="elsewhere")
        snapshot = mesh(ROUTED, unseen, previous=snapshot)
        assert compile_proxy(snapshot, PROXY, cache).types is held.types
        compile_proxy(snapshot, other, cache)
    misses = cache.misses
    policy = {"loadBalancer": {"simple": "RANDOM"}}
    rule = resource("DestinationRule", "reviews", {"host": "reviews", "trafficPolicy": policy})
    changed = compile_proxy(mesh(ROUTED, rule, previous=snapshot), PROXY, cache)
    assert changed.types is not held.types
    assert cache.misses - misses < 10


def test_parts_that_no_proxy_uses_are_evicted() -> None:
    cache = Cache()
    sizes = []
    for number in range(200):
        compile_proxy(mesh(ROUTED), replace(PROXY, namespace=f"n{number}", service=f"s{number}"), cache)
        sizes.append(len(cache))
    gc.collect()
    assert sizes[-1] <= sizes[60]


def test_one_damaged_row_of_each_kind_does_not_keep_istiod_from_a_snapshot(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "registry.db"

    async def main() -> None:
        async with open_registry(SqliteSettings(path)) as registry:
            for one in INSTANCES:
                await registry.catalog.register(one)
            await registry.store.put(ROUTED)
        with sqlite3.connect(path) as rows:
            rows.execute("INSERT INTO instances VALUES ('default/bad', 'default', 'web', '{')")
            rows.execute("INSERT INTO services VALUES ('default', 'bad', '[]')")
            rows.execute(
                "INSERT INTO resources VALUES ('VirtualService', 'default', 'bad', 7, ?)", (b"\xff{",)
            )
            rows.execute(
                "INSERT INTO resources VALUES ('Gateway', 'default', 'bad', 8, CAST(X'FF7B' AS TEXT))"
            )
            body = json.dumps({"kind": "Sidecar", "namespace": "default", "name": "odd", "spec": "text"})
            rows.execute("INSERT INTO resources VALUES ('Sidecar', 'default', 'odd', 9, ?)", (body,))
        rows.close()
        async with open_registry(SqliteSettings(path)) as registry, trio.open_nursery() as nursery:
            feed = Feed(registry, MeshConfig(), Metrics())
            with trio.fail_after(5):
                await nursery.start(feed.run)
            assert {one.name for one in feed.snapshot.services} == {"web", "reviews"}
            assert len(feed.snapshot.of("VirtualService")) == 1
            assert len(feed.problems) == 5
            assert any("instance default/bad" in problem for problem in feed.problems)
            assert any("Sidecar default/odd" in problem for problem in feed.problems)
            # The rows are mended by writing them again.
            await registry.store.put(replace(ROUTED, name="bad"))
            await registry.store.delete(replace(ROUTED, kind="Gateway", name="bad").key)
            await registry.catalog.register(instance("bad", "10.0.0.9", id="default/bad"))
            with trio.fail_after(5):
                while len(feed.problems) > 1:
                    await feed.newer_than(feed.number)
            assert [one.name for one in feed.services] == ["bad", "reviews", "web"]
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_another_root_namespace_makes_endpoints_anew() -> None:
    """What switches mutual TLS off in the one root namespace does not do so in the other."""
    off = replace(
        resource("PeerAuthentication", "off", {"mtls": {"mode": "DISABLE"}}), namespace="istio-system"
    )
    cache = Cache()
    found = []
    for root in ("istio-system", "elsewhere"):
        mesh_config = MeshConfig(rootNamespace=root)  # type: ignore[call-arg]
        made = compile_proxy(build(SERVICES, INSTANCES, (off,), mesh_config), PROXY, cache)
        found.append(made.of(ENDPOINT)["outbound|9080||reviews.default.svc.cluster.local"].version)
    assert found[0] != found[1]


def test_a_list_of_ten_thousand_workloads_does_not_hold_up_the_loop(tmp_path: Path) -> None:
    from starlette.requests import Request

    from istiod.api.inventory import InventoryApi
    from istiod.xds.node import ProxyNode
    from istiod.xds.status import ProxyStatus, ProxyTable

    async def main() -> float:
        table = ProxyTable()
        for number in range(2000):
            node = ProxyNode(str(number), "sidecar", f"w{number}", "default", "d", ("10.0.0.1",))
            table.add(ProxyStatus(table.next_number(), node, None, "", "delta", 0.0))
        async with open_registry(SqliteSettings(tmp_path / "registry.db")) as registry:
            feed = Feed(registry, MeshConfig(), Metrics())
            feed._facts = (
                (),
                tuple(instance("web", "10.0.0.1", id=f"default/w{n}") for n in range(10_000)),
                (),
            )
            worst, running = 0.0, True

            async def watch_the_loop() -> None:
                nonlocal worst
                while running:
                    # In time of the processor: other programs on the machine have no say.
                    before = time.thread_time()
                    await trio.lowlevel.checkpoint()
                    worst = max(worst, time.thread_time() - before)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_the_loop)
                request = Request({"type": "http", "query_string": b"", "headers": []})
                answer = await InventoryApi(feed, table, "istiod:15012").workloads(request)
                running = False
            items = json.loads(answer.body)["items"]
            assert sum(item["connected"] for item in items) == 2000
            assert len(items) == 10_000
            return worst

    worst = trio.run(main)
    print(f"the loop waited at most {worst * 1000:.0f} ms")
    assert worst < 0.1
