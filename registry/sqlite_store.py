"""Resources and records in the embedded registry.

Rule: a version is the file's revision counter at the write, so no two writes ever share one. Not for
instances (registry.sqlite_catalog) nor for the connection (registry.sqlite).
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from registry.damage import Damage
from registry.document import decode_resource, encode_resource, next_stored, same_content
from registry.errors import ConflictError, NotARegistryError
from registry.marks import Changes
from registry.model import ABSENT, Record, Resource, ResourceKey
from registry.store import ConfigStore, Records, Write

if TYPE_CHECKING:
    from registry.sqlite import Database

__all__ = ["SqliteRecords", "SqliteStore"]


class SqliteStore(ConfigStore):
    """The table `resources`."""

    def __init__(self, database: Database, changes: Changes, damage: Damage) -> None:
        self._database = database
        self._changes = changes
        self._damage = damage

    def watch(self) -> AsyncIterator[int]:
        return self._changes.watch()

    async def get(self, key: ResourceKey) -> Resource | None:
        return await self._database.read(lambda connection: _resource(connection, key))

    async def list(self, kind: str | None = None, namespace: str | None = None) -> tuple[Resource, ...]:
        def read(connection: sqlite3.Connection) -> tuple[Resource, ...]:
            rows = connection.execute(
                "SELECT kind, namespace, name, version, body FROM resources"
                " WHERE (:kind IS NULL OR kind = :kind) AND (:namespace IS NULL OR namespace = :namespace)"
                " ORDER BY kind, namespace, name",
                {"kind": kind, "namespace": namespace},
            ).fetchall()
            keys = [
                ResourceKey(*row[:3]) if all(isinstance(one, str) for one in row[:3]) else None
                for row in rows
            ]
            reads = [
                partial(decode_resource, body, str(version), str(ResourceKey(*key)))
                for *key, version, body in rows
            ]
            whole = kind is None and namespace is None
            return tuple(self._damage.readable("resource", reads, whole=whole, keys=keys))

        return await self._database.read(read)

    async def put(self, resource: Resource, *, expected: str | None = None) -> Resource:
        (stored,) = await self.put_all([Write(resource, expected)])
        return stored

    async def put_all(self, writes: Sequence[Write]) -> tuple[Resource, ...]:
        def write(connection: sqlite3.Connection) -> tuple[Resource, ...]:
            return tuple(_put(connection, one.resource, one.expected) for one in writes)

        return await self._database.write(write, self._changes)

    async def delete(self, key: ResourceKey, *, expected: str | None = None) -> bool:
        def write(connection: sqlite3.Connection) -> bool:
            version = _version(connection, key)
            _expect(str(key), expected, version)
            connection.execute(
                "DELETE FROM resources WHERE kind = ? AND namespace = ? AND name = ?", tuple(key)
            )
            return version != ABSENT

        return await self._database.write(write, self._changes)


class SqliteRecords(Records):
    """The table `records`."""

    def __init__(self, database: Database, changes: Changes) -> None:
        self._database = database
        self._changes = changes

    def watch(self) -> AsyncIterator[int]:
        return self._changes.watch()

    async def get(self, area: str, key: str) -> Record | None:
        return await self._database.read(lambda connection: _record(connection, area, key))

    async def list(self, area: str) -> tuple[Record, ...]:
        def read(connection: sqlite3.Connection) -> tuple[Record, ...]:
            rows = connection.execute(
                "SELECT key, value, version FROM records WHERE area = ? ORDER BY key", (area,)
            )
            return tuple(Record(area, key, value, str(version)) for key, value, version in rows)

        return await self._database.read(read)

    async def put(self, area: str, key: str, value: str, *, expected: str | None = None) -> Record:
        def write(connection: sqlite3.Connection) -> Record:
            stored = _record(connection, area, key)
            _expect(f"{area}/{key}", expected, stored.version if stored else ABSENT)
            revision = _next_revision(connection)
            connection.execute(
                "INSERT OR REPLACE INTO records (area, key, version, value) VALUES (?, ?, ?, ?)",
                (area, key, revision, value),
            )
            return Record(area, key, value, str(revision))

        return await self._database.write(write, self._changes)

    async def delete(self, area: str, key: str, *, expected: str | None = None) -> bool:
        def write(connection: sqlite3.Connection) -> bool:
            stored = _record(connection, area, key)
            _expect(f"{area}/{key}", expected, stored.version if stored else ABSENT)
            connection.execute("DELETE FROM records WHERE area = ? AND key = ?", (area, key))
            return stored is not None

        return await self._database.write(write, self._changes)


def _put(connection: sqlite3.Connection, resource: Resource, expected: str | None) -> Resource:
    _expect(str(resource.key), expected, _version(connection, resource.key))
    try:
        stored = _resource(connection, resource.key)
    except NotARegistryError:
        stored = None
    if stored is not None and same_content(resource, stored):
        return stored
    new = next_stored(resource, stored, time.time())
    revision = _next_revision(connection)
    connection.execute(
        "INSERT OR REPLACE INTO resources (kind, namespace, name, version, body) VALUES (?, ?, ?, ?, ?)",
        (*resource.key, revision, encode_resource(new)),
    )
    return replace(new, version=str(revision))


def _version(connection: sqlite3.Connection, key: ResourceKey) -> str:
    row = connection.execute(
        "SELECT version FROM resources WHERE kind = ? AND namespace = ? AND name = ?", tuple(key)
    ).fetchone()
    return str(row[0]) if row else ABSENT


def _expect(what: str, expected: str | None, actual: str) -> None:
    if expected is not None and expected != actual:
        raise ConflictError(what, expected, actual)


def _next_revision(connection: sqlite3.Connection) -> int:
    return int(connection.execute("UPDATE revision SET number = number + 1 RETURNING number").fetchone()[0])


def _resource(connection: sqlite3.Connection, key: ResourceKey) -> Resource | None:
    row = connection.execute(
        "SELECT version, body FROM resources WHERE kind = ? AND namespace = ? AND name = ?", tuple(key)
    ).fetchone()
    return decode_resource(row[1], str(row[0]), str(key)) if row else None


def _record(connection: sqlite3.Connection, area: str, key: str) -> Record | None:
    row = connection.execute(
        "SELECT value, version FROM records WHERE area = ? AND key = ?", (area, key)
    ).fetchone()
    return Record(area, key, row[0], str(row[1])) if row else None
