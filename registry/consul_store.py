"""Resources and records in Consul's KV store.

Rule: a version is the key's ModifyIndex; a write names the one it replaces, so racing istiods never
overwrite each other unseen. Not for instances (registry.consul_catalog).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any
from urllib.parse import quote, unquote

from registry.consul_http import ConsulClient, Entry, kv
from registry.damage import Damage
from registry.document import decode_resource, encode_resource, next_stored, same_content
from registry.errors import ConflictError, NotARegistryError, TooManyWritesError
from registry.marks import Changes
from registry.model import ABSENT, Record, Resource, ResourceKey
from registry.store import ConfigStore, Records, Write

__all__ = ["ConsulRecords", "ConsulStore", "path_of"]


_MOST_OPERATIONS = 64
"""Of one transaction (Consul's maxTxnOps up to 1.11; 128 later)."""


def path_of(*names: str) -> str:
    """The names as one key; a slash within a name does not split it."""
    return "/".join(quote(name, safe="~@:") for name in names)


class ConsulStore(ConfigStore):
    """The keys `config/KIND/NAMESPACE/NAME`."""

    def __init__(self, client: ConsulClient, folder: str, changes: Changes, damage: Damage) -> None:
        self._client = client
        self._folder = folder
        self._changes = changes
        self._damage = damage

    def watch(self) -> AsyncIterator[int]:
        return self._changes.watch()

    async def get(self, key: ResourceKey) -> Resource | None:
        entry = await self._client.get(self._folder + path_of(*key))
        return _resource(entry) if entry else None

    async def list(self, kind: str | None = None, namespace: str | None = None) -> tuple[Resource, ...]:
        folder = self._folder
        if kind is not None:
            folder += path_of(kind) + "/"
            if namespace is not None:
                folder += path_of(namespace) + "/"
        entries = await self._client.children(folder)
        reads = [partial(_resource, entry) for entry in entries]
        keys = [self._key(entry) for entry in entries]
        resources = self._damage.readable("resource", reads, whole=folder == self._folder, keys=keys)
        return tuple(
            sorted(
                (found for found in resources if namespace in {None, found.namespace}),
                key=lambda found: found.key,
            )
        )

    def _key(self, entry: Entry) -> ResourceKey | None:
        names = [unquote(name) for name in entry.key.removeprefix(self._folder).split("/")]
        return ResourceKey(*names) if len(names) == 3 else None

    async def put(self, resource: Resource, *, expected: str | None = None) -> Resource:
        (stored,) = await self.put_all([Write(resource, expected)])
        return stored

    async def put_all(self, writes: Sequence[Write]) -> tuple[Resource, ...]:
        while True:
            results: list[Resource] = []
            operations: list[dict[str, Any]] = []
            for resource, expected in writes:
                path = self._folder + path_of(*resource.key)
                entry = await self._client.get(path)
                _expect(str(resource.key), expected, entry)
                stored = _readable(entry)
                if stored is not None and same_content(resource, stored):
                    results.append(stored)
                    continue
                new = next_stored(resource, stored, time.time())
                results.append(new)
                operations.append(kv("cas", path, encode_resource(new), index=entry.index if entry else 0))
            if not operations:
                return tuple(results)
            if len(operations) > _MOST_OPERATIONS:
                raise TooManyWritesError(
                    f"{len(operations)} resources are new or changed: Consul stores at most {_MOST_OPERATIONS}"
                    " all or nothing; apply them in several parts"
                )
            index = await self._client.transact(operations)
            if index is not None:
                return tuple(one if one.version else replace(one, version=str(index)) for one in results)

    async def delete(self, key: ResourceKey, *, expected: str | None = None) -> bool:
        return await _delete(self._client, self._folder + path_of(*key), str(key), expected)


class ConsulRecords(Records):
    """The keys `records/AREA/KEY`."""

    def __init__(self, client: ConsulClient, folder: str, changes: Changes) -> None:
        self._client = client
        self._folder = folder
        self._changes = changes

    def watch(self) -> AsyncIterator[int]:
        return self._changes.watch()

    async def get(self, area: str, key: str) -> Record | None:
        entry = await self._client.get(self._folder + path_of(area, key))
        return Record(area, key, entry.value, str(entry.index)) if entry else None

    async def list(self, area: str) -> tuple[Record, ...]:
        folder = self._folder + path_of(area) + "/"
        records = [
            Record(area, unquote(entry.key.removeprefix(folder)), entry.value, str(entry.index))
            for entry in await self._client.children(folder)
        ]
        return tuple(sorted(records, key=lambda record: record.key))

    async def put(self, area: str, key: str, value: str, *, expected: str | None = None) -> Record:
        path = self._folder + path_of(area, key)
        while True:
            entry = await self._client.get(path)
            _expect(f"{area}/{key}", expected, entry)
            index = await self._client.transact([kv("cas", path, value, index=entry.index if entry else 0)])
            if index is not None:
                return Record(area, key, value, str(index))

    async def delete(self, area: str, key: str, *, expected: str | None = None) -> bool:
        return await _delete(self._client, self._folder + path_of(area, key), f"{area}/{key}", expected)


async def _delete(client: ConsulClient, path: str, what: str, expected: str | None) -> bool:
    while True:
        entry = await client.get(path)
        _expect(what, expected, entry)
        if entry is None:
            return False
        if await client.transact([kv("delete-cas", path, index=entry.index)]) is not None:
            return True


def _expect(what: str, expected: str | None, entry: Entry | None) -> None:
    actual = str(entry.index) if entry else ABSENT
    if expected is not None and expected != actual:
        raise ConflictError(what, expected, actual)


def _readable(entry: Entry | None) -> Resource | None:
    """None also for an entry that cannot be read: it is then replaced."""
    try:
        return _resource(entry) if entry else None
    except NotARegistryError:
        return None


def _resource(entry: Entry) -> Resource:
    return decode_resource(entry.value, str(entry.index), f"Consul's key {entry.key}")
