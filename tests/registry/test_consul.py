"""What only the Consul registry promises: how its catalog reads, and that it outlasts Consul's absence."""

from __future__ import annotations

import gc
import json
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from registry.errors import (
    NotARegistryError,
    RegistryDeniedError,
    RegistryUnavailableError,
    SchemaTooNewError,
)
from registry.model import Health, Instance, Port
from registry.opening import ConsulSettings, open_registry

if TYPE_CHECKING:
    from consul_process import ConsulProcess

pytestmark = pytest.mark.consul

REVIEWS = Instance(
    id="reviews-vm1.default",
    service="reviews",
    namespace="default",
    addresses=("10.0.0.1", "fd00::1"),
    ports=(Port("http", 9080, "http"),),
    labels={"app": "reviews", "version": "v1"},
    service_account="bookinfo-reviews",
    node="vm1",
    workload="reviews-vm1",
    health=Health.HEALTHY,
)


def put(consul: ConsulProcess, path: str, body: bytes) -> Any:
    request = urllib.request.Request(consul.address + path, data=body, method="PUT")
    with urllib.request.urlopen(request, timeout=5) as response:
        return json.load(response)


@pytest.fixture
def environment_of_another_consul(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a shell with Consul's own tools set up looks like; istiod.yaml must win over it."""
    monkeypatch.setenv("CONSUL_HTTP_ADDR", "no-address")
    monkeypatch.setenv("CONSUL_HTTP_TOKEN", "another's")
    return iter((None,))


def test_an_instance_reads_well_in_consuls_own_catalog(shared_consul: ConsulProcess) -> None:
    async def main() -> None:
        settings = ConsulSettings(shared_consul.address, prefix="reads-well")
        async with open_registry(settings) as registry:
            await registry.catalog.register(replace(REVIEWS, service="reads-well"))
            command = ["consul", "catalog", "services", "-tags", f"-http-addr={shared_consul.address}"]
            shown = await trio.run_process(command, capture_stdout=True)
            assert ["reads-well", "default,v1"] in [
                line.split() for line in shown.stdout.decode().splitlines()
            ]
            (entry,) = shared_consul.ask("/v1/health/service/reads-well?passing")
            assert entry["Node"]["Node"] == "reads-well-vm1"
            assert (entry["Service"]["Address"], entry["Service"]["Port"]) == ("10.0.0.1", 9080)
            assert entry["Service"]["Meta"]["service-account"] == "bookinfo-reviews"
            await registry.catalog.set_health(REVIEWS.id, Health.UNHEALTHY)
            assert shared_consul.ask("/v1/health/service/reads-well?passing") == []
            await registry.catalog.deregister(REVIEWS.id)
            assert shared_consul.ask("/v1/health/service/reads-well") == []
            nodes = [node["Node"] for node in shared_consul.ask("/v1/catalog/nodes")]
            assert "reads-well-vm1" not in nodes

    trio.run(main)


def test_a_host_stays_in_consuls_catalog_while_it_has_another_workload(shared_consul: ConsulProcess) -> None:
    ratings = Instance("ratings-vm1.default", "ratings", "default", ("10.0.0.1",), REVIEWS.ports, node="vm1")

    async def main() -> None:
        settings = ConsulSettings(shared_consul.address, prefix="two-workloads")
        async with open_registry(settings) as registry:
            await registry.catalog.register(REVIEWS)
            await registry.catalog.register(ratings)
            await registry.catalog.deregister(REVIEWS.id)
            services = shared_consul.ask("/v1/catalog/node/two-workloads-vm1")["Services"]
            assert list(services) == ["ratings-vm1.default"]
            await registry.catalog.deregister(ratings.id)
            assert shared_consul.ask("/v1/catalog/node/two-workloads-vm1") is None

    trio.run(main)


def test_what_somebody_removed_from_consuls_catalog_comes_back_with_the_next_health(
    shared_consul: ConsulProcess,
) -> None:
    async def main() -> None:
        settings = ConsulSettings(shared_consul.address, prefix="removed-by-hand")
        async with open_registry(settings) as registry:
            await registry.catalog.register(REVIEWS)
            put(shared_consul, "/v1/catalog/deregister", b'{"Node": "removed-by-hand-vm1"}')
            await registry.catalog.set_health(REVIEWS.id, Health.UNHEALTHY)
            assert shared_consul.ask("/v1/catalog/node/removed-by-hand-vm1")["Services"]

    trio.run(main)


@pytest.mark.usefixtures("environment_of_another_consul")
def test_the_environments_consul_variables_have_no_say(shared_consul: ConsulProcess) -> None:
    async def main() -> None:
        async with open_registry(ConsulSettings(shared_consul.address, prefix="no-say")) as registry:
            assert await registry.catalog.instances() == ()

    trio.run(main)


def test_a_prefix_of_another_program_or_a_newer_version_is_refused(shared_consul: ConsulProcess) -> None:
    put(shared_consul, "/v1/kv/others/format", b"who knows")
    put(shared_consul, "/v1/kv/newer/format", b"2")

    async def opened(prefix: str) -> None:
        async with open_registry(ConsulSettings(shared_consul.address, prefix=prefix)):
            pass

    with pytest.raises(NotARegistryError, match="others/format"):
        trio.run(opened, "others")
    with pytest.raises(SchemaTooNewError, match="newer/format says format 2"):
        trio.run(opened, "newer")


def test_no_consul_is_a_typed_error_that_names_the_address(own_consul: ConsulProcess) -> None:
    async def main() -> None:
        with pytest.raises(RegistryUnavailableError, match=own_consul.address):
            async with open_registry(ConsulSettings(own_consul.address)):
                pass

    trio.run(main)


def test_a_watcher_resumes_when_consul_comes_back_even_without_its_state(own_consul: ConsulProcess) -> None:
    """`-dev` keeps its state in memory: the new Consul's index is smaller than the watcher's."""
    own_consul.start()

    async def main() -> None:
        with trio.fail_after(60):
            settings = ConsulSettings(own_consul.address)
            async with open_registry(settings) as registry, trio.open_nursery() as nursery:
                for number in range(20):
                    await registry.records.put("a", str(number), "raises the index")
                await nursery.start(partial(registry.catalog.hold_lease, grace=30))
                marks = registry.catalog.watch()
                await anext(marks)
                await trio.to_thread.run_sync(own_consul.stop)
                with pytest.raises(RegistryUnavailableError):
                    await registry.catalog.register(REVIEWS)
                await trio.to_thread.run_sync(own_consul.start)
                while True:  # connections of before the restart may still fail once
                    try:
                        await registry.catalog.register(REVIEWS)
                        break
                    except RegistryUnavailableError:
                        await trio.sleep(0.05)
                while await registry.catalog.instances() != (REVIEWS,):
                    await anext(marks)
                while registry.owner not in await registry.catalog.owners():
                    await trio.sleep(0.1)
                await registry.catalog.set_health(REVIEWS.id, Health.UNHEALTHY)
                while (await registry.catalog.instances())[0].health is not Health.UNHEALTHY:
                    await anext(marks)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_token_without_rights_is_a_denial_not_an_outage(own_consul: ConsulProcess) -> None:
    tokens = {"master": "root-secret", "agent": "root-secret"}
    own_consul.configure({"acl": {"enabled": True, "default_policy": "deny", "tokens": tokens}})
    own_consul.token = "root-secret"
    own_consul.start()

    async def opened(token: str | None) -> None:
        async with open_registry(ConsulSettings(own_consul.address, token=token)) as registry:
            await registry.catalog.register(REVIEWS)
            assert await registry.catalog.instances() == (REVIEWS,)

    trio.run(opened, "root-secret")
    for token in (None, "nobody's"):
        with pytest.raises(RegistryDeniedError, match="refused the ACL token") as denial:
            trio.run(opened, token)
        assert "nobody's" not in str(denial.value)
    assert "root-secret" not in repr(ConsulSettings(own_consul.address, token="root-secret"))


def test_a_cancelled_call_leaves_nothing_behind(shared_consul: ConsulProcess) -> None:
    """Calls are cut off at every point of their way; warnings are errors here, and so are lost generators."""

    async def main() -> None:
        async with open_registry(ConsulSettings(shared_consul.address, prefix="cancelled")) as registry:
            for number in range(40):
                with trio.move_on_after(number * 0.0002):
                    await registry.records.put("a", "b", "x" * 10_000)
                gc.collect()
            await registry.records.put("a", "b", "y")

    trio.run(main)
