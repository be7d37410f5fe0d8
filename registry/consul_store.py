"""Resources and records in Consul's KV store.

Rule: a version is the key's ModifyIndex; a write names the one it replaces, so racing istiods never
overwrite each other unseen. Not for instances (registry.consul_catalog).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from urllib.parse import quote, unquote

from registry.consul_http import ConsulClient, Entry, kv
from registry.document import decode_resource, encode_resource, next_stored, same_content
from registry.errors import ConflictError
from registry.marks import Changes
from registry.model import ABSENT, Record, Resource, ResourceKey
from registry.store import ConfigStore, Records

__all__ = ["ConsulRecords", "ConsulStore", "path_of"]


def path_of(*names: str) -> str:
    """The names as one key; a slash within a name does not split it."""
    return "/".join(quote(name, safe="~@:") for name in names)


class ConsulStore(ConfigStore):
    """The keys `config/KIND/NAMESPACE/NAME`."""

    def __init__(self, client: ConsulClient, folder: str, changes: Changes) -> None:
        self._client = client
        self._folder = folder
        self._changes = changes

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
        resources = [_resource(entry) for entry in await self._client.children(folder)]
        return tuple(
            sorted(
                (found for found in resources if namespace in {None, found.namespace}),
                key=lambda found: found.key,
            )
        )

    async def put(self, resource: Resource, *, expected: str | None = None) -> Resource:
        path = self._folder + path_of(*resource.key)
        while True:
            entry = await self._client.get(path)
            stored = _resource(entry) if entry else None
            _expect(str(resource.key), expected, entry)
            if stored is not None and same_content(resource, stored):
                return stored
            new = next_stored(resource, stored, time.time())
            index = await self._client.transact(
                [kv("cas", path, encode_resource(new), index=entry.index if entry else 0)]
            )
            if index is not None:
                return replace(new, version=str(index))

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


def _resource(entry: Entry) -> Resource:
    return decode_resource(entry.value, str(entry.index), f"Consul's key {entry.key}")
