"""Rows that somebody damaged: they are skipped and reported, and written anew by whoever owns them."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable

import pytest
import trio

from registry.consul_catalog import ConsulCatalog
from registry.errors import NotARegistryError
from registry.model import Health, Instance, Port, Resource, ResourceKey
from registry.opening import ConsulSettings, SqliteSettings, open_registry
from registry.store import Registry, Write

Settings = SqliteSettings | ConsulSettings
ONE = Instance("default/one", "web", "default", ("10.0.0.1",), (Port("http", 80),), health=Health.HEALTHY)
TWO = Instance("default/two", "api", "default", ("10.0.0.2",), (Port("http", 80),), health=Health.HEALTHY)
ROUTE = Resource("VirtualService", "default", "a", "networking.istio.io/v1", {"hosts": ["a"]})
OTHER = Resource("VirtualService", "default", "b", "networking.istio.io/v1", {"hosts": ["b"]})


def with_registry(settings: Settings, body: Callable[[Registry], Awaitable[None]]) -> None:
    async def main() -> None:
        with trio.fail_after(30):
            async with open_registry(settings) as registry:
                await body(registry)

    trio.run(main)


async def damage(settings: Settings, registry: Registry, what: str, text: str = "{") -> None:
    """Write nonsense over the row of ONE, of its service, or of ROUTE, past all that checks."""
    if isinstance(settings, SqliteSettings):
        where = {
            "instance": "UPDATE instances SET body = ? WHERE id = 'default/one'",
            "service": "UPDATE services SET body = ? WHERE name = 'web'",
            "resource": "UPDATE resources SET body = ? WHERE name = 'a'",
        }
        with sqlite3.connect(settings.path) as rows:
            rows.execute(where[what], (text,))
        rows.close()
        return
    catalog = registry.catalog
    assert isinstance(catalog, ConsulCatalog)
    key = {
        "instance": f"{settings.prefix}/catalog/instances/default%2Fone",
        "service": f"{settings.prefix}/catalog/services/default/web",
        "resource": f"{settings.prefix}/config/VirtualService/default/a",
    }[what]
    client = catalog._client
    entry = await client.get(key)
    assert entry is not None, key
    await client.call(client._consul.kv.put(key, text))


@pytest.mark.parametrize("text", ["{", "[]", "{}", "null", '{"id": 7}', '{"spec": "x"}', "[" * 100_000])
def test_damaged_rows_are_left_out_and_reported(settings: Settings, text: str) -> None:
    async def body(registry: Registry) -> None:
        for one in (ONE, TWO):
            await registry.catalog.register(one)
        for route in (ROUTE, OTHER):
            await registry.store.put(route)
        for what in ("instance", "service", "resource"):
            await damage(settings, registry, what, text)
        assert [one.id for one in await registry.catalog.instances()] == ["default/two"]
        assert [one.name for one in await registry.catalog.services()] == ["api"]
        assert [one.name for one in await registry.store.list()] == ["b"]
        assert [one.area for one in registry.damage.found()] == ["instance", "resource", "service"]
        assert [one.key for one in registry.damage.found()] == [None, ROUTE.key, None], (
            "policies fail closed by it"
        )
        with pytest.raises(NotARegistryError):
            await registry.store.get(ROUTE.key)

    with_registry(settings, body)


def test_damaged_rows_are_written_anew_by_their_owners(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        await registry.catalog.register(ONE)
        await registry.store.put(ROUTE)
        for what in ("instance", "service", "resource"):
            await damage(settings, registry, what)
        assert not await registry.catalog.set_health(ONE.id, Health.UNHEALTHY)
        await registry.catalog.register(ONE)
        await registry.store.put(ROUTE)
        assert await registry.catalog.instances() == (ONE,)
        assert [one.name for one in await registry.catalog.services()] == ["web"]
        assert [one.name for one in await registry.store.list()] == ["a"]
        assert not registry.damage.found()

    with_registry(settings, body)


def test_damaged_rows_can_be_removed(settings: Settings) -> None:
    async def body(registry: Registry) -> None:
        await registry.catalog.register(ONE)
        await registry.store.put(ROUTE)
        for what in ("instance", "resource"):
            await damage(settings, registry, what)
        assert await registry.catalog.deregister(ONE.id)
        assert await registry.store.delete(ROUTE.key)
        assert not await registry.catalog.instances()
        assert not await registry.store.list()
        assert not registry.damage.found()

    with_registry(settings, body)


def test_many_resources_are_stored_all_or_none(settings: Settings) -> None:
    from dataclasses import replace

    from registry.errors import ConflictError

    async def body(registry: Registry) -> None:
        stored = await registry.store.put(ROUTE)
        changed = replace(ROUTE, spec={"hosts": ["c"]})
        with pytest.raises(ConflictError):
            await registry.store.put_all([Write(changed), Write(OTHER, "999")])
        assert await registry.store.list() == (stored,)
        both = await registry.store.put_all([Write(changed, stored.version), Write(OTHER, "")])
        assert await registry.store.list() == both
        assert both[0].generation == 2
        assert await registry.store.put_all([Write(changed), Write(OTHER)]) == both
        assert await registry.store.get(ResourceKey("VirtualService", "default", "b")) == both[1]

    with_registry(settings, body)
