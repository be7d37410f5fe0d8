"""The config store's and the records' law, the same on every backend: versions, conflicts, order."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import trio

from registry.errors import ConflictError
from registry.model import ABSENT, Resource, ResourceKey
from registry.opening import ConsulSettings, SqliteSettings, open_registry
from registry.store import Registry

Settings = SqliteSettings | ConsulSettings

REVIEWS = Resource(
    kind="VirtualService",
    namespace="default",
    name="reviews",
    api_version="networking.istio.io/v1",
    spec={"hosts": ["reviews"], "http": [{"route": [{"destination": {"host": "reviews"}, "weight": 100}]}]},
    labels={"team": "books"},
    annotations={"note": "größer"},
)


def with_registry(settings: Settings, body: Callable[[Registry], Awaitable[None]]) -> None:
    """Run `body` on the opened registry, 30 seconds at most."""

    async def main() -> None:
        with trio.fail_after(30):
            async with open_registry(settings) as registry:
                await body(registry)

    trio.run(main)


def test_a_resource_comes_back_with_version_generation_and_time(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        stored = await registry.store.put(REVIEWS)
        assert stored.version != ABSENT
        assert stored.generation == 1
        assert stored.created > 1_000_000_000
        assert replace(stored, version=ABSENT, generation=0, created=0.0) == REVIEWS
        assert await registry.store.get(REVIEWS.key) == stored
        assert await registry.store.list() == (stored,)

    with_registry(settings, body)


def test_the_generation_counts_changes_of_the_spec_only(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        first = await registry.store.put(REVIEWS)
        labelled = await registry.store.put(replace(REVIEWS, labels={"team": "films"}))
        changed = await registry.store.put(replace(REVIEWS, spec={"hosts": ["reviews"]}))
        assert [first.generation, labelled.generation, changed.generation] == [1, 1, 2]
        assert len({first.version, labelled.version, changed.version}) == 3
        assert first.created == changed.created

    with_registry(settings, body)


def test_applying_the_same_again_writes_nothing(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        first = await registry.store.put(REVIEWS)
        assert await registry.store.put(REVIEWS) == first

    with_registry(settings, body)


def test_a_write_over_a_version_that_is_gone_is_a_conflict(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        with pytest.raises(ConflictError, match="VirtualService default/reviews"):
            await registry.store.put(REVIEWS, expected="7")
        first = await registry.store.put(REVIEWS, expected=ABSENT)
        with pytest.raises(ConflictError):
            await registry.store.put(replace(REVIEWS, spec={}), expected=ABSENT)
        second = await registry.store.put(replace(REVIEWS, spec={}), expected=first.version)
        with pytest.raises(ConflictError):
            await registry.store.delete(REVIEWS.key, expected=first.version)
        assert await registry.store.delete(REVIEWS.key, expected=second.version)
        assert not await registry.store.delete(REVIEWS.key)

    with_registry(settings, body)


def test_lists_are_in_order_and_by_kind_and_namespace(settings: Settings) -> None:
    keys = [
        ResourceKey("DestinationRule", "default", "reviews"),
        ResourceKey("Sidecar", "default", "a"),
        ResourceKey("Sidecar", "default", "a-b"),
        ResourceKey("Sidecar", "prod", "a"),
    ]

    async def body(registry: Registry) -> None:
        for kind, namespace, name in reversed(keys):
            await registry.store.put(Resource(kind, namespace, name, "networking.istio.io/v1", {}))
        store = registry.store
        assert [r.key for r in await store.list()] == keys
        assert [r.key for r in await store.list("Sidecar")] == keys[1:]
        assert [r.key for r in await store.list("Sidecar", "default")] == keys[1:3]
        assert [r.key for r in await store.list(namespace="default")] == keys[:3]
        assert await store.list("Gateway") == ()

    with_registry(settings, body)


def test_a_store_watcher_is_not_woken_by_instances_of_the_catalog(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        marks = registry.store.watch()
        await anext(marks)
        with trio.move_on_after(1.0):
            while True:  # the first look at the backend
                await anext(marks)
        await registry.catalog.allocate("example.org")
        with trio.move_on_after(0.5) as patience:
            await anext(marks)
        assert patience.cancelled_caught
        await registry.store.put(REVIEWS)
        await anext(marks)

    with_registry(settings, body)


def test_records_have_versions_and_conflicts(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        records = registry.records
        assert await records.get("tokens", "a") is None
        first = await records.put("tokens", "a", "one", expected=ABSENT)
        await records.put("tokens", "b", "other")
        await records.put("elsewhere", "a", "third")
        assert await records.get("tokens", "a") == first
        second = await records.put("tokens", "a", "two", expected=first.version)
        with pytest.raises(ConflictError, match="tokens/a"):
            await records.put("tokens", "a", "three", expected=first.version)
        assert [(r.key, r.value) for r in await records.list("tokens")] == [("a", "two"), ("b", "other")]
        assert await records.delete("tokens", "a", expected=second.version)
        assert not await records.delete("tokens", "a")

    with_registry(settings, body)


def test_of_many_writers_over_one_version_exactly_one_wins(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        start = await registry.records.put("tokens", "a", "unused")
        won: list[int] = []

        async def use(number: int) -> None:
            try:
                await registry.records.put("tokens", "a", f"used by {number}", expected=start.version)
            except ConflictError:
                return
            won.append(number)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(use, number)
        (winner,) = won
        record = await registry.records.get("tokens", "a")
        assert record is not None
        assert record.value == f"used by {winner}"

    with_registry(settings, body)


def test_what_is_stored_is_there_after_a_new_start(settings: Settings) -> None:
    async def write(registry: Registry) -> None:
        await registry.store.put(REVIEWS)

    async def read(registry: Registry) -> None:
        assert [r.key for r in await registry.store.list()] == [REVIEWS.key]

    with_registry(settings, write)
    with_registry(settings, read)


def test_a_change_of_records_by_one_istiod_wakes_the_watchers_of_the_other(settings: Settings) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with open_registry(settings) as first, open_registry(settings) as second:
                marks = second.records.watch()
                await anext(marks)
                await first.records.put("access", "grant/default/reviews/reviews", "{}")
                while not await second.records.list("access"):
                    await anext(marks)
                await first.records.delete("access", "grant/default/reviews/reviews")
                while await second.records.list("access"):
                    await anext(marks)

    trio.run(main)
