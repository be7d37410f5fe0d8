"""Workloads come, fail, leave and break off, as the catalog sees it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from istiod.registration import Registration
from registry.catalog import Catalog
from registry.document import check_holder
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

    async def register(self, instance: Instance, *, takeover: bool = True) -> Service:
        self._write()
        if not takeover:
            check_holder(instance, self.held.get(instance.id))
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


def play(story: Story, known: dict[str, Instance] | None = None) -> None:
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

    play(story, known={REVIEWS.id: replace(REVIEWS, health=Health.HEALTHY)})


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


CLONE = replace(REVIEWS, addresses=("10.0.0.3",))
"""Another host with the same name and identity, as cloned machines are."""


def test_two_hosts_with_one_name_are_two_instances_and_end_apart() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        assert registration.name_for(REVIEWS) == REVIEWS.id
        registration.connected(REVIEWS, 1)
        other = registration.name_for(CLONE)
        assert other.startswith(f"{REVIEWS.id}-")
        registration.connected(replace(CLONE, id=other), 2)
        await wait_all_tasks_blocked()
        assert set(catalog.held) == {REVIEWS.id, other}
        assert (registration.name_for(REVIEWS), registration.name_for(CLONE)) == (REVIEWS.id, other)
        registration.left(other, 2)
        registration.left(other, 1)
        await trio.sleep(60)
        assert list(catalog.held.values()) == [REVIEWS]

    play(story)


def test_a_host_gets_the_name_that_its_former_holder_has_left() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        registration.connected(REVIEWS, 1)
        registration.lost(REVIEWS.id, 1)
        await trio.sleep(20)
        assert registration.name_for(CLONE) != REVIEWS.id, "its grace is not over: it is live"
        await trio.sleep(20)
        assert registration.name_for(CLONE) == REVIEWS.id

    play(story)


def test_a_name_that_another_identity_claims_in_advance_does_not_keep_its_owner_out() -> None:
    async def story(registration: Registration, _: CatalogInMemory) -> None:
        squatter = replace(REVIEWS, service_account="ratings")
        registration.connected(squatter, 1)
        first = registration.name_for(REVIEWS)
        registration.connected(replace(squatter, id=first), 2)
        second = registration.name_for(REVIEWS)
        assert len({REVIEWS.id, first, second}) == 3

    play(story)


def test_an_instance_in_the_catalog_keeps_its_name_from_others_after_a_restart_of_istiod() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        assert registration.name_for(CLONE) != REVIEWS.id
        assert registration.name_for(REVIEWS) == REVIEWS.id

    play(story, known={REVIEWS.id: REVIEWS})


def test_a_name_that_another_istiod_gave_away_at_the_same_moment_is_given_up() -> None:
    async def story(registration: Registration, catalog: CatalogInMemory) -> None:
        elsewhere = replace(CLONE, owner="another-istiod")
        catalog.held[REVIEWS.id] = elsewhere
        lost = trio.Event()
        registration.connected(REVIEWS, 1, lost.set)
        with trio.fail_after(10):
            await lost.wait()
        registration.left(REVIEWS.id, 1)
        await trio.sleep(60)
        assert catalog.held == {REVIEWS.id: elsewhere}

    play(story)
