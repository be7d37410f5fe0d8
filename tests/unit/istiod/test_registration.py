"""Workloads come, fail, leave and break off, as the catalog sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from istiod.registration import Registration
from registry.catalog import Catalog
from registry.errors import RegistryUnavailableError
from registry.model import Health, Instance, Port, Service, VirtualIps


class CatalogInMemory(Catalog):
    """A catalog that keeps what it is told; `away` makes it refuse."""

    def __init__(self) -> None:
        self.held: dict[str, Instance] = {}
        self.away = False
        self.writes = 0

    def _write(self) -> None:
        if self.away:
            raise RegistryUnavailableError("away")
        self.writes += 1

    async def register(self, instance: Instance) -> Service:
        self._write()
        self.held[instance.id] = instance
        return Service(instance.service, instance.namespace, instance.ports, "240.240.0.1", "2001:2::1")

    async def set_health(self, instance_id: str, health: Health, *, owner: str | None = None) -> bool:
        self._write()
        known = self.held.get(instance_id)
        if known is None or (owner is not None and known.owner != owner):
            return False
        self.held[instance_id] = replace(known, health=health)
        return True

    async def deregister(self, instance_id: str, *, owner: str | None = None) -> bool:
        self._write()
        known = self.held.get(instance_id)
        if known is None or (owner is not None and known.owner != owner):
            return False
        del self.held[instance_id]
        return True

    async def instances(self) -> tuple[Instance, ...]:
        return tuple(self.held.values())

    async def services(self) -> tuple[Service, ...]:
        return ()

    async def forget_service(self, namespace: str, name: str) -> bool:
        return False

    async def allocate(self, host: str) -> VirtualIps:
        return VirtualIps("240.240.0.2", "2001:2::2")

    async def release(self, host: str) -> bool:
        return False

    async def allocations(self) -> Mapping[str, VirtualIps]:
        return {}

    def watch(self) -> AsyncIterator[int]:
        async def marks() -> AsyncIterator[int]:
            yield 1
            await trio.sleep_forever()

        return marks()

    async def hold_lease(
        self, *, grace: float, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        task_status.started()
        await trio.sleep_forever()

    async def owners(self) -> frozenset[str]:
        return frozenset({"me"})


REVIEWS = Instance(
    id="default/reviews-a",
    service="reviews",
    namespace="default",
    addresses=("10.0.0.2",),
    ports=(Port("http", 9080),),
    owner="me",
)

Story = Callable[[Registration, CatalogInMemory], Awaitable[None]]


def play(story: Story, known: dict[str, Health] | None = None) -> None:
    async def main() -> None:
        catalog = CatalogInMemory()
        registration = Registration(catalog, "me", (known or {}).get, grace=30)
        async with trio.open_nursery() as nursery:
            await nursery.start(registration.run)
            await story(registration, catalog)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_workload_is_unhealthy_until_its_agent_reports() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        registration.connected(REVIEWS, 1)
        await wait_all_tasks_blocked()
        assert catalog.held[REVIEWS.id].health is Health.UNHEALTHY
        registration.reported(REVIEWS.id, 1, True, "")
        await wait_all_tasks_blocked()
        assert catalog.held[REVIEWS.id].health is Health.HEALTHY
        registration.reported(REVIEWS.id, 1, False, "probe: connection refused")
        await wait_all_tasks_blocked()
        assert catalog.held[REVIEWS.id].health is Health.UNHEALTHY

    play(story)


def test_a_goodbye_removes_at_once() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        registration.connected(REVIEWS, 1)
        await wait_all_tasks_blocked()
        registration.left(REVIEWS.id, 1)
        await wait_all_tasks_blocked()
        assert not catalog.held

    play(story)


def test_a_broken_connection_leaves_the_instance_for_the_grace_period() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        registration.connected(REVIEWS, 1)
        registration.reported(REVIEWS.id, 1, True, "")
        await wait_all_tasks_blocked()
        registration.lost(REVIEWS.id, 1)
        await trio.sleep(29)
        assert catalog.held[REVIEWS.id].health is Health.HEALTHY
        await trio.sleep(2)
        assert not catalog.held

    play(story)


def test_an_agent_that_comes_back_in_time_keeps_its_health() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        registration.connected(REVIEWS, 1)
        registration.reported(REVIEWS.id, 1, True, "")
        registration.lost(REVIEWS.id, 1)
        await trio.sleep(20)
        registration.connected(REVIEWS, 2)
        await trio.sleep(60)
        assert catalog.held[REVIEWS.id].health is Health.HEALTHY

    play(story)


def test_the_end_of_an_older_connection_changes_nothing() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        registration.connected(REVIEWS, 1)
        registration.connected(REVIEWS, 2)
        registration.lost(REVIEWS.id, 1)
        registration.left(REVIEWS.id, 1)
        registration.reported(REVIEWS.id, 1, True, "")
        await trio.sleep(60)
        assert catalog.held[REVIEWS.id].health is Health.UNHEALTHY

    play(story)


def test_after_a_restart_of_istiod_health_is_what_the_catalog_says() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        registration.connected(REVIEWS, 1)
        await wait_all_tasks_blocked()
        assert catalog.held[REVIEWS.id].health is Health.HEALTHY

    play(story, known={REVIEWS.id: Health.HEALTHY})


def test_what_the_registry_missed_while_it_was_away_is_written_when_it_is_back() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        catalog.away = True
        registration.connected(REVIEWS, 1)
        registration.reported(REVIEWS.id, 1, True, "")
        await trio.sleep(20)
        assert not catalog.held
        catalog.away = False
        await trio.sleep(6)
        assert catalog.held[REVIEWS.id].health is Health.HEALTHY

    play(story)


def test_an_instance_that_somebody_removed_is_written_again_with_the_next_report() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        registration.connected(REVIEWS, 1)
        await wait_all_tasks_blocked()
        catalog.held.clear()
        registration.reported(REVIEWS.id, 1, True, "")
        await wait_all_tasks_blocked()
        assert catalog.held[REVIEWS.id].health is Health.HEALTHY

    play(story)


def test_an_agent_that_returns_while_its_goodbye_is_written_stays() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        registration.connected(REVIEWS, 1)
        await wait_all_tasks_blocked()
        registration.left(REVIEWS.id, 1)
        registration.connected(REVIEWS, 2)
        await trio.sleep(60)
        assert REVIEWS.id in catalog.held

    play(story)
