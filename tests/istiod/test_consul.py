"""Two istiods that share one Consul: what one learns, the other serves."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.istiod.conftest import CASES, Istiod
from tests.istiod.observing import REVIEWS, endpoints, eventually, weights, workloads
from tests.istiod.proxies import connected, enrol, node
from tests.registry.consul_process import ConsulProcess
from wire.spiffe import SpiffeId
from wire.xds import ROUTE

SAMPLES = CASES / "istio-samples"


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Istiod, Istiod, ConsulProcess]]:
    """Two istiods of one mesh: one authority, one Consul."""
    consul = ConsulProcess(tmp_path / "consul")
    consul.start()
    extra = f'registry: {{consul: {{address: "{consul.address}"}}}}\n'
    first, second = (Istiod(tmp_path / name, extra=extra) for name in ("one", "two"))
    try:
        first.directory.mkdir()
        first.start()
        second.state.mkdir(parents=True)
        shutil.copytree(first.state / "ca", second.state / "ca")
        second.start()
        yield first, second, consul
    finally:
        first.stop()
        second.stop()
        consul.stop()


@pytest.mark.consul
def test_two_istiods_on_one_consul_serve_one_mesh(pair: tuple[Istiod, Istiod, ConsulProcess]) -> None:
    first, second, consul = pair

    async def story() -> None:
        run = trio.to_thread.run_sync
        token = (
            await run(
                first.ok, "token", "create", "-s", "reviews", "-s", "caller", "--service", "reviews/reviews"
            )
        ).strip()
        reviews = await enrol(first.address("xds"), token, SpiffeId("cluster.local", "default", "reviews"))
        caller = await enrol(second.address("xds"), token, SpiffeId("cluster.local", "default", "caller"))
        agent_node = node("reviews-a", "reviews", service_account="reviews", address="127.0.0.7")
        async with connected(
            second.address("xds"), node("caller-a", service_account="caller"), caller
        ) as watcher:
            async with connected(first.address("xds"), agent_node, reviews) as agent:
                await agent.report(True)
                await watcher.until(lambda: endpoints(watcher, REVIEWS).get("127.0.0.7") in (0, 1), 20)
                await watcher.until(lambda: "9080" in watcher.names(ROUTE))
                files = ("destination-rule-reviews.yaml", "virtual-service-reviews-90-10.yaml")
                await run(first.ok, "apply", *(part for file in files for part in ("-f", SAMPLES / file)))
                await watcher.until(lambda: weights(watcher) == [("v1", 90), ("v2", 10)], 20)
                assert any(
                    item["metadata"]["name"] == "reviews" for item in second.json("get", "vs")["items"]
                )
                with urllib.request.urlopen(f"{consul.address}/v1/catalog/services", timeout=5) as response:
                    assert "reviews" in json.load(response)
            # The agent moves to the other istiod: the first lets go, the instance stays as it was.
            async with connected(second.address("xds"), agent_node, reviews):

                async def moved() -> bool:
                    known = (await workloads(second)).get("reviews-a", {})
                    return known.get("owner") == second.about["istiod"] and known.get("health") == "healthy"

                await eventually(moved, 20)

                async def first_gave_up() -> bool:
                    return "workload did not come back" in first.log

                await eventually(first_gave_up)
                assert (await workloads(second))["reviews-a"]["health"] == "healthy"

    trio.run(story)
