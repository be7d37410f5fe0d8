"""The catalog's law, the same on every backend: instances, health, services, VIPs, watching, ownership."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network

import pytest
import trio

from registry.errors import ConflictError, HeldError
from registry.model import Health, Instance, Port
from registry.opening import ConsulSettings, SqliteSettings, open_registry
from registry.store import Registry
from registry.vips import candidates

Settings = SqliteSettings | ConsulSettings

REVIEWS = Instance(
    id="reviews-vm1.default",
    service="reviews",
    namespace="default",
    addresses=("10.0.0.1", "fd00::1"),
    ports=(Port("http", 9080, "http"), Port("admin", 9443, "", 8443)),
    labels={"app": "reviews", "version": "v1"},
    service_account="bookinfo-reviews",
    locality="eu-west/eu-west-1a",
    weight=3,
    health=Health.UNHEALTHY,
    node="vm1",
    workload="reviews-vm1",
    owner="istiod-a",
    mtls=True,
)


def with_registry(settings: Settings, body: Callable[[Registry], Awaitable[None]]) -> None:
    """Run `body` on the opened registry, 30 seconds at most."""

    async def main() -> None:
        with trio.fail_after(30):
            async with open_registry(settings) as registry:
                await body(registry)

    trio.run(main)


def with_two(settings: Settings, body: Callable[[Registry, Registry], Awaitable[None]]) -> None:
    """Run `body` as two istiods that share one registry."""

    async def main() -> None:
        with trio.fail_after(30):
            async with open_registry(settings) as first, open_registry(settings) as second:
                await body(first, second)

    trio.run(main)


def test_an_instance_comes_back_as_it_was_registered(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        await registry.catalog.register(REVIEWS)
        assert await registry.catalog.instances() == (REVIEWS,)

    with_registry(settings, body)


def test_a_second_registration_of_an_id_takes_the_place_of_the_first(settings: Settings) -> None:
    moved = replace(REVIEWS, addresses=("10.0.0.9",), node="vm9", service="ratings", owner="istiod-b")

    async def body(registry: Registry) -> None:
        await registry.catalog.register(REVIEWS)
        await registry.catalog.register(moved)
        assert await registry.catalog.instances() == (moved,)
        assert [service.name for service in await registry.catalog.services()] == ["ratings", "reviews"]

    with_registry(settings, body)


def test_health_changes_without_touching_the_rest(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        await registry.catalog.register(REVIEWS)
        assert await registry.catalog.set_health(REVIEWS.id, Health.HEALTHY)
        assert await registry.catalog.instances() == (replace(REVIEWS, health=Health.HEALTHY),)

    with_registry(settings, body)


def test_an_unknown_instance_has_no_health_and_cannot_leave(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        assert not await registry.catalog.set_health("nobody", Health.HEALTHY)
        assert not await registry.catalog.deregister("nobody")

    with_registry(settings, body)


def test_an_istiod_cannot_remove_an_instance_that_reconnected_elsewhere(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        await registry.catalog.register(REVIEWS)
        await registry.catalog.register(replace(REVIEWS, owner="istiod-b"))
        assert not await registry.catalog.deregister(REVIEWS.id, owner="istiod-a")
        assert not await registry.catalog.set_health(REVIEWS.id, Health.HEALTHY, owner="istiod-a")
        assert [i.health for i in await registry.catalog.instances()] == [Health.UNHEALTHY]
        assert await registry.catalog.deregister(REVIEWS.id, owner="istiod-b")
        assert await registry.catalog.instances() == ()

    with_registry(settings, body)


def test_a_service_keeps_its_vips_and_ports_when_its_last_instance_leaves(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        returned = await registry.catalog.register(REVIEWS)
        (before,) = await registry.catalog.services()
        assert returned == before
        await registry.catalog.deregister(REVIEWS.id)
        assert await registry.catalog.services() == (before,)
        assert ip_address(before.vip4) in ip_network("240.240.0.0/16")
        assert ip_address(before.vip6) in ip_network("2001:2::/48")
        assert before.ports == (Port("http", 9080, "http"), Port("admin", 9443))

    with_registry(settings, body)


def test_a_port_that_no_instance_has_any_more_leaves_the_service(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        await registry.catalog.register(REVIEWS)
        await registry.catalog.register(replace(REVIEWS, ports=(Port("grpc", 9080, "grpc"),)))
        (service,) = await registry.catalog.services()
        assert service.ports == (Port("grpc", 9080, "grpc"),)

    with_registry(settings, body)


def test_services_of_one_name_in_two_namespaces_are_two(settings: Settings) -> None:
    other = replace(REVIEWS, id="reviews-vm2.prod", namespace="prod", node="vm2")

    async def body(registry: Registry) -> None:
        await registry.catalog.register(REVIEWS)
        await registry.catalog.register(other)
        first, second = await registry.catalog.services()
        assert [(s.namespace, s.name) for s in (first, second)] == [
            ("default", "reviews"),
            ("prod", "reviews"),
        ]
        assert first.vip4 != second.vip4

    with_registry(settings, body)


def test_a_service_is_forgotten_only_without_instances(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        before = await registry.catalog.register(REVIEWS)
        with pytest.raises(ConflictError, match="service default/reviews"):
            await registry.catalog.forget_service("default", "reviews")
        await registry.catalog.register(REVIEWS)
        await registry.catalog.deregister(REVIEWS.id)
        assert await registry.catalog.forget_service("default", "reviews")
        assert not await registry.catalog.forget_service("default", "reviews")
        assert await registry.catalog.services() == ()
        again = await registry.catalog.register(REVIEWS)
        assert again.vip4 == before.vip4

    with_registry(settings, body)


def test_two_istiods_allocating_at_once_never_give_one_address_twice(settings: Settings) -> None:
    hosts = [f"host-{number}.example" for number in range(12)]
    given: dict[tuple[int, str], str] = {}

    async def body(first: Registry, second: Registry) -> None:
        async def allocate(which: int, registry: Registry, host: str) -> None:
            given[which, host] = (await registry.catalog.allocate(host)).v4

        async with trio.open_nursery() as nursery:
            for host in hosts:
                nursery.start_soon(allocate, 1, first, host)
                nursery.start_soon(allocate, 2, second, host)
        assert all(given[1, host] == given[2, host] for host in hosts)
        assert len(set(given.values())) == len(hosts)
        assert {host: vips.v4 for host, vips in (await first.catalog.allocations()).items()} == {
            host: given[1, host] for host in hosts
        }
        assert await first.catalog.release(hosts[0])
        assert not await second.catalog.release(hosts[0])
        assert hosts[0] not in await second.catalog.allocations()

    with_two(settings, body)


def test_two_istiods_registering_one_new_service_at_once_agree_on_its_vips(settings: Settings) -> None:
    async def body(first: Registry, second: Registry) -> None:
        async with trio.open_nursery() as nursery:
            for number in range(10):
                instance = replace(REVIEWS, id=f"reviews-{number}", node=f"vm{number % 3}")
                registry = (first, second)[number % 2]
                nursery.start_soon(registry.catalog.register, instance)
        (service,) = await first.catalog.services()
        assert (await second.catalog.services()) == (service,)
        assert len(await second.catalog.instances()) == 10

    with_two(settings, body)


def test_a_watcher_gets_a_first_mark_at_once_and_one_for_each_burst(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        marks = registry.catalog.watch()
        await anext(marks)
        for number in range(5):
            await registry.catalog.register(replace(REVIEWS, id=f"reviews-{number}"))
        seen = 0
        while seen < 5:
            await anext(marks)
            seen = len(await registry.catalog.instances())

    with_registry(settings, body)


@pytest.mark.parametrize("what", ["catalog", "store"])
def test_a_change_by_one_istiod_wakes_the_watchers_of_the_other(settings: Settings, what: str) -> None:
    async def body(first: Registry, second: Registry) -> None:
        watched = second.catalog if what == "catalog" else second.store
        marks = watched.watch()
        await anext(marks)
        if what == "catalog":
            await first.catalog.register(REVIEWS)
            while await second.catalog.instances() != (REVIEWS,):
                await anext(marks)
            await first.catalog.set_health(REVIEWS.id, Health.HEALTHY)
            while (await second.catalog.instances())[0].health is not Health.HEALTHY:
                await anext(marks)
        else:
            from registry.model import Resource

            resource = Resource("Sidecar", "default", "x", "networking.istio.io/v1", {"egress": []})
            await first.store.put(resource)
            while not await second.store.list():
                await anext(marks)

    with_two(settings, body)


def test_writing_what_is_already_stored_wakes_nobody(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        await registry.catalog.register(REVIEWS)
        marks = registry.catalog.watch()
        await anext(marks)
        with trio.move_on_after(1.0):
            while True:  # marks that are still under way for the first registration
                await anext(marks)
        await registry.catalog.register(REVIEWS)
        await registry.catalog.set_health(REVIEWS.id, REVIEWS.health)
        with trio.move_on_after(1.0) as patience:
            await anext(marks)
        assert patience.cancelled_caught

    with_registry(settings, body)


def test_instances_of_a_dead_istiod_leave_after_the_grace_and_others_stay(settings: Settings) -> None:
    async def body(alive: Registry, other: Registry) -> None:
        dead = replace(REVIEWS, id="of-the-dead", owner="istiod-that-died")
        own = replace(REVIEWS, id="own", owner=alive.owner)
        static = replace(REVIEWS, id="nobody's", owner="")
        async with trio.open_nursery() as nursery:
            for instance in (dead, own, static):
                await other.catalog.register(instance)
            await nursery.start(partial(alive.catalog.hold_lease, grace=0.5))
            assert await other.catalog.owners() == {alive.owner}
            marks = other.catalog.watch()
            while any(i.id == "of-the-dead" for i in await other.catalog.instances()):
                await anext(marks)
            assert [i.id for i in await other.catalog.instances()] == ["nobody's", "own"]
            nursery.cancel_scope.cancel()
        assert await other.catalog.owners() == frozenset()

    with_two(settings, body)


def test_names_with_slashes_and_percents_do_not_mix(settings: Settings) -> None:
    odd = [replace(REVIEWS, id=name, node="n/1") for name in ("a", "a%2Fb", "a/b", "sidecar~10.0.0.1~x")]

    async def body(registry: Registry) -> None:
        for instance in odd:
            await registry.catalog.register(instance)
        assert [instance.id for instance in await registry.catalog.instances()] == [i.id for i in odd]
        assert await registry.catalog.deregister("a/b")
        assert len(await registry.catalog.instances()) == 3

    with_registry(settings, body)


def test_an_id_that_another_holder_has_is_not_taken_over_while_it_is_registered(settings: Settings) -> None:
    async def body(first: Registry, second: Registry) -> None:
        await first.catalog.register(REVIEWS)
        others = (
            replace(REVIEWS, addresses=("10.0.0.2",), owner="istiod-b"),
            replace(REVIEWS, service_account="bookinfo-ratings", owner="istiod-b"),
        )
        for other in others:
            with pytest.raises(HeldError, match=r"claimed by default/bookinfo-reviews at 10\.0\.0\.1"):
                await second.catalog.register(other, takeover=False)
        assert await second.catalog.instances() == (REVIEWS,)
        await second.catalog.register(replace(REVIEWS, owner="istiod-b"), takeover=False)
        assert (await first.catalog.instances())[0].owner == "istiod-b"
        await first.catalog.deregister(REVIEWS.id)
        await second.catalog.register(others[0], takeover=False)
        assert await first.catalog.instances() == (others[0],)

    with_two(settings, body)


def _sharing_a_slot() -> tuple[str, str]:
    """Two names whose first choice of an address is the same."""
    seen: dict[int, str] = {}
    for number in range(10_000):
        name = f"host-{number}.example"
        slot = next(candidates(name))
        if slot in seen:
            return seen[slot], name
        seen[slot] = name
    raise AssertionError("no two names share a slot")


def test_a_released_address_goes_back_to_its_name_and_to_no_other(settings: Settings) -> None:
    first, second = _sharing_a_slot()

    async def body(registry: Registry) -> None:
        catalog = registry.catalog
        given = await catalog.allocate(first)
        assert await catalog.release(first)
        assert await catalog.allocations() == {}
        assert await catalog.allocate(second) != given
        assert await catalog.allocate(first) == given

    with_registry(settings, body)


def test_a_forgotten_services_address_is_given_to_no_other_name(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        catalog = registry.catalog
        reviews = await catalog.register(REVIEWS)
        await catalog.deregister(REVIEWS.id)
        assert await catalog.forget_service("default", "reviews")
        first_choice = next(candidates("reviews.default"))
        rival = next(
            name for number in range(1_000_000) if next(candidates(name := f"host-{number}")) == first_choice
        )
        assert (await catalog.allocate(rival)).v4 != reviews.vip4
        assert (await catalog.register(REVIEWS)).vip4 == reviews.vip4

    with_registry(settings, body)
