"""A change is tried before it is stored: refused with document, field and reason, or let through, and fast."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import trio
from starlette.applications import Starlette

from agent.exchange.trial import decode
from agent.table.build import Refused
from istiod.access.records import upgrade
from istiod.api.errors import ApiError, on_api_error
from istiod.api.resources import ResourceApi
from istiod.compile import Cache, ProxyInfo
from istiod.feed import Feed
from istiod.monitoring import Metrics
from istiod.resources.document import typed
from istiod.resources.mesh_config import MeshConfig
from istiod.trial import Outcome, Trial
from registry.model import Health, Instance, Port, Resource
from registry.opening import SqliteSettings, open_registry
from wire.xds import ROUTE

HTTP = (Port("http", 9080),)
GROUPS = {
    "VirtualService": "networking.istio.io/v1",
    "DestinationRule": "networking.istio.io/v1",
    "AuthorizationPolicy": "security.istio.io/v1",
    "ServiceEntry": "networking.istio.io/v1",
}


def resource(kind: str, name: str, spec: dict[str, Any], namespace: str = "default") -> Resource:
    return Resource(kind, namespace, name, GROUPS[kind], spec)


def instance(number: int, service: str = "reviews", namespace: str = "default") -> Instance:
    return Instance(
        f"{namespace}/{service}-{number}", service, namespace, (f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}",),
        HTTP, {"app": service}, health=Health.HEALTHY, workload=f"{service}-{number}",
    )  # fmt: skip


def strict(resources: Mapping[str, Mapping[str, bytes]]) -> tuple[object, tuple[Refused, ...]]:
    """The agent's interpreter, and one thing more that it refuses and no validation of a document can know of."""
    taken, refused = decode(resources)
    more = [
        Refused(ROUTE, name, f"RouteConfiguration[{name}].host_rewrite_literal", "this agent cannot do it")
        for name, body in resources.get(ROUTE, {}).items()
        if b"refused.example" in body
    ]
    return taken, (*refused, *more)


@asynccontextmanager
async def mesh(
    tmp_path: Path, instances: Iterable[Instance], stored: Sequence[Resource] = ()
) -> AsyncIterator[tuple[Trial, Feed]]:
    async with (
        open_registry(SqliteSettings(tmp_path / "registry.db")) as registry,
        trio.open_nursery() as nursery,
    ):
        for one in instances:
            await registry.catalog.register(one)
        await upgrade(registry, 0.0)
        for one_of in stored:
            await registry.store.put(one_of)
        feed = Feed(registry, MeshConfig(), Metrics())
        await nursery.start(feed.run)
        yield Trial(feed, list[ProxyInfo], Cache(), strict), feed
        nursery.cancel_scope.cancel()


def tried(tmp_path: Path, *resources: Resource, stored: Sequence[Resource] = ()) -> Outcome:
    """The outcome for resources in a mesh of two services."""

    async def main() -> Outcome:
        async with mesh(tmp_path, [instance(1), instance(2, "web")], stored) as (trial, feed):
            return await trial.of([typed(one) for one in resources], await feed._registry.store.list())

    return trio.run(main)


GOOD = resource(
    "VirtualService", "good", {"hosts": ["web"], "http": [{"route": [{"destination": {"host": "web"}}]}]}
)


def http(name: str = "bad", **rule: Any) -> Resource:
    route = [{"destination": {"host": "reviews"}}]
    first = {"match": [{"uri": {"prefix": "/first"}}], "route": route}
    return resource("VirtualService", name, {"hosts": ["reviews"], "http": [first, {"route": route, **rule}]})


def test_what_proxies_take_passes(tmp_path: Path) -> None:
    outcome = tried(tmp_path, GOOD)
    assert not outcome.refusals
    assert not outcome.warnings
    assert outcome.proxies >= 1


BAD_RULE = {"rewrite": {"authority": "refused.example"}}


def test_what_every_proxy_would_refuse_is_refused_with_its_field_and_reason(tmp_path: Path) -> None:
    (refusal,) = tried(tmp_path, http(**BAD_RULE)).refusals
    assert refusal.document.resource.name == "bad"
    assert refusal.field == "spec.http[1].rewrite"
    assert "RouteConfiguration[9080].host_rewrite_literal: this agent cannot do it" in refusal.reason


def test_of_several_documents_the_bad_one_is_named(tmp_path: Path) -> None:
    refusals = tried(tmp_path, GOOD, http(**BAD_RULE)).refusals
    assert [one.document.resource.name for one in refusals] == ["bad"]


def test_a_fault_that_is_stored_already_does_not_keep_others_from_being_changed(tmp_path: Path) -> None:
    """An older version stored it: both faults can be mended in turn."""
    assert not tried(tmp_path, GOOD, stored=[http(**BAD_RULE)]).refusals
    second = http("worse", **BAD_RULE)
    assert tried(tmp_path, http(), stored=[http(**BAD_RULE), second]).refusals == ()


def test_a_change_that_nobody_connected_can_see_is_tried_on_the_first_proxy_to_come(tmp_path: Path) -> None:
    bad = http(**BAD_RULE)
    entry = resource(
        "ServiceEntry",
        "far",
        {"hosts": ["far.example"], "resolution": "DNS", "ports": [{"number": 80, "name": "http"}], "exportTo": ["."]},
        "empty",
    )  # fmt: skip
    spec = {**bad.spec, "hosts": ["far.example"], "exportTo": ["."]}
    outcome = tried(tmp_path, entry, resource("VirtualService", "far", spec, "empty"))
    assert {(one.document.resource.kind, one.document.resource.name) for one in outcome.refusals} >= {
        ("VirtualService", "far")
    }


def test_routes_of_a_service_that_has_yet_to_come_are_tried(tmp_path: Path) -> None:
    bad = http(**BAD_RULE)
    assert tried(tmp_path, resource("VirtualService", "early", {**bad.spec, "hosts": ["early"]})).refusals
    assert tried(tmp_path, resource("VirtualService", "out", {**bad.spec, "hosts": ["out.example"]})).refusals


def test_a_trial_in_a_mesh_of_five_hundred_services_takes_a_fraction_of_a_second(tmp_path: Path) -> None:
    instances = [
        instance(copy * 1000 + number, f"s{number}", f"n{number % 5}")
        for number in range(500)
        for copy in range(2)
    ]

    async def main() -> tuple[float, float, Outcome]:
        async with mesh(tmp_path, instances) as (trial, feed):
            worst, turning = 0.0, True

            async def watch_the_loop() -> None:
                nonlocal worst
                while turning:
                    before = time.perf_counter()
                    await trio.lowlevel.checkpoint()
                    worst = max(worst, time.perf_counter() - before)

            route = [{"destination": {"host": "s1.n1.svc.cluster.local"}}]
            spec = {"hosts": ["s1.n1.svc.cluster.local"], "http": [{"timeout": "2s", "route": route}]}
            documents = [typed(resource("VirtualService", "one", spec, "n1"))]
            stored = await feed._registry.store.list()
            await trial.of(documents, stored)  # what istiod's streams have compiled
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch_the_loop)
                started = time.perf_counter()
                outcome = await trial.of(documents, stored)
                took = time.perf_counter() - started
                turning = False
            return took, worst, outcome

    took, worst, outcome = trio.run(main)
    print(
        f"trial: {took * 1000:.0f} ms for {outcome.proxies} kinds, the loop waited at most {worst * 1000:.0f} ms"
    )
    assert not outcome.refusals
    assert outcome.proxies >= 5
    assert took < 2.0


def manifest(name: str, host: str, **rule: Any) -> dict[str, Any]:
    return {
        "apiVersion": GROUPS["VirtualService"],
        "kind": "VirtualService",
        "metadata": {"name": name},
        "spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": "reviews"}}], **rule}]},
    }


def test_what_is_refused_is_not_stored_and_neither_is_what_came_with_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with mesh(tmp_path, [instance(1), instance(2, "web")]) as (trial, feed):
            store = feed._registry.store
            app = Starlette(
                routes=ResourceApi(store, trial).routes(), exception_handlers={ApiError: on_api_error}
            )
            transport = httpx.ASGITransport(app)
            async with httpx.AsyncClient(transport=transport, base_url="http://istiod") as client:
                bad = manifest("bad", "reviews", **BAD_RULE)
                sources = [
                    {"name": f"{n}.yaml", "text": json.dumps(one)}
                    for n, one in enumerate((manifest("good", "web"), bad))
                ]
                for dry_run in (True, False):
                    answer = await client.post("/apply", json={"sources": sources, "dryRun": dry_run})
                    assert answer.status_code == 422
                    (detail,) = answer.json()["error"]["details"]
                    assert detail["where"].endswith("VirtualService default/bad")
                    assert detail["field"] == "spec.http[0].rewrite"
                put = await client.put("/resources/virtualservice/default/bad", json=bad)
                assert put.status_code == 422
                assert await store.list() == ()
                fine = await client.post("/apply", json={"sources": sources[:1]})
                assert fine.status_code == 200
                assert [one.name for one in await store.list()] == ["good"]

    trio.run(main)


def test_what_an_older_document_has_is_said_before_it_is_stored(tmp_path: Path) -> None:
    def block(name: str, address: str) -> Resource:
        ports = [{"number": 5432, "name": "tcp", "protocol": "TCP"}]
        spec = {"hosts": [f"{name}.example"], "addresses": [address], "resolution": "NONE", "ports": ports}
        return resource("ServiceEntry", name, spec)

    older = block("a", "10.8.0.0/16")
    outcome = tried(tmp_path, block("b", "10.8.1.1/16"), stored=[older])
    assert not outcome.refusals
    (warning,) = outcome.warnings
    assert "ServiceEntry default/b" in warning
    assert "10.8.0.0/16 on port 5432 belongs to the older ServiceEntry default/a" in warning
    assert not tried(tmp_path, block("c", "10.9.0.0/16"), stored=[older]).warnings
