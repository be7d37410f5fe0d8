"""Instances, services, VIPs and leases in the embedded registry.

Rule: every method is one transaction, so nothing needs compare-and-set here. Leases are wall-clock times: all
processes that share the file share the machine's clock. Not for the connection (registry.sqlite).
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from registry.catalog import Catalog
from registry.damage import Damage
from registry.document import (
    ServiceEntry,
    check_holder,
    decode_instance,
    decode_service,
    encode_instance,
    encode_service,
    served,
)
from registry.errors import ConflictError, NotARegistryError, RegistryError
from registry.lease import hold
from registry.marks import Changes
from registry.model import ABSENT, Health, Instance, Service, VirtualIps
from registry.vips import CAPACITY, QUARANTINE_SECONDS, candidates, virtual_ips

if TYPE_CHECKING:
    from registry.sqlite import Database

__all__ = ["SqliteCatalog"]

_log = logging.getLogger(__name__)
_LEASE_SECONDS = 10.0
_RENEW_SECONDS = _LEASE_SECONDS / 4


class SqliteCatalog(Catalog):
    """The tables `instances`, `services`, `vips` and `leases`."""

    def __init__(self, database: Database, changes: Changes, owner: str, damage: Damage) -> None:
        self._database = database
        self._changes = changes
        self._damage = damage
        self._owner = owner

    def watch(self) -> AsyncIterator[int]:
        return self._changes.watch()

    async def register(self, instance: Instance, *, takeover: bool = True) -> Service:
        def write(connection: sqlite3.Connection) -> Service:
            if not takeover:
                check_holder(instance, _instance_or_none(connection, instance.id))
            entry = _service_or_none(connection, instance.namespace, instance.service)
            if entry is None:
                slot = _take_slot(connection, f"{instance.service}.{instance.namespace}", host=None)
                entry = ServiceEntry(instance.namespace, instance.service, (), slot)
            latest = entry.with_ports(instance.ports)
            _put_if_changed(
                connection,
                "SELECT body FROM services WHERE namespace = ? AND name = ?",
                "INSERT OR REPLACE INTO services (namespace, name, body) VALUES (?, ?, ?)",
                (instance.namespace, instance.service),
                encode_service(latest),
            )
            connection.execute(
                "INSERT INTO instances (id, namespace, service, body) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
                " namespace = excluded.namespace, service = excluded.service, body = excluded.body"
                " WHERE body != excluded.body",
                (instance.id, instance.namespace, instance.service, encode_instance(instance)),
            )
            return served(latest, ())

        return await self._database.write(write, self._changes)

    async def set_health(self, instance_id: str, health: Health, *, owner: str | None = None) -> bool:
        def write(connection: sqlite3.Connection) -> bool:
            # Of a row that cannot be read: whoever registers the instance again writes it anew.
            instance = _instance_or_none(connection, instance_id)
            if instance is None or (owner is not None and instance.owner != owner):
                return False
            if instance.health is not health:
                connection.execute(
                    "UPDATE instances SET body = ? WHERE id = ?",
                    (encode_instance(replace(instance, health=health)), instance_id),
                )
            return True

        return await self._database.write(write, self._changes)

    async def deregister(self, instance_id: str, *, owner: str | None = None) -> bool:
        def write(connection: sqlite3.Connection) -> bool:
            try:
                instance = _instance(connection, instance_id)
                if instance is None or (owner is not None and instance.owner != owner):
                    return False
            except NotARegistryError as error:
                _log.warning("removed with its instance: %s", error)
            connection.execute("DELETE FROM instances WHERE id = ?", (instance_id,))
            return True

        return await self._database.write(write, self._changes)

    async def instances(self) -> tuple[Instance, ...]:
        def read(connection: sqlite3.Connection) -> tuple[Instance, ...]:
            rows = connection.execute("SELECT id, body FROM instances ORDER BY id")
            reads = [partial(decode_instance, body, f"instance {key}") for key, body in rows]
            return tuple(self._damage.readable("instance", reads))

        return await self._database.read(read)

    async def services(self) -> tuple[Service, ...]:
        def read(connection: sqlite3.Connection) -> tuple[Service, ...]:
            rows = connection.execute("SELECT namespace, name, body FROM services ORDER BY namespace, name")
            reads = [
                partial(decode_service, body, f"service {namespace}/{name}") for namespace, name, body in rows
            ]
            found = self._damage.readable("service", reads)
            members: dict[tuple[str, str], list[Instance]] = {}
            rows = connection.execute("SELECT id, body FROM instances")
            every = [partial(decode_instance, body, f"instance {key}") for key, body in rows]
            for instance in self._damage.readable("instance", every, whole=False):
                members.setdefault((instance.namespace, instance.service), []).append(instance)
            return tuple(served(entry, members.get((entry.namespace, entry.name), ())) for entry in found)

        return await self._database.read(read)

    async def forget_service(self, namespace: str, name: str) -> bool:
        def write(connection: sqlite3.Connection) -> bool:
            entry = _service(connection, namespace, name)
            if entry is None:
                return False
            count = len(_instances_of(connection, namespace, name))
            if count:
                raise ConflictError(f"service {namespace}/{name}", ABSENT, f"with {count} instances")
            connection.execute("DELETE FROM services WHERE namespace = ? AND name = ?", (namespace, name))
            _release_slot(connection, entry.slot, f"{name}.{namespace}")
            return True

        return await self._database.write(write, self._changes)

    async def allocate(self, host: str) -> VirtualIps:
        def write(connection: sqlite3.Connection) -> VirtualIps:
            row = connection.execute("SELECT slot FROM vips WHERE host = ?", (host,)).fetchone()
            return virtual_ips(row[0] if row else _take_slot(connection, host, host=host))

        return await self._database.write(write, self._changes)

    async def release(self, host: str) -> bool:
        def write(connection: sqlite3.Connection) -> bool:
            row = connection.execute("SELECT slot FROM vips WHERE host = ?", (host,)).fetchone()
            if row is not None:
                _release_slot(connection, row[0], host)
            return row is not None

        return await self._database.write(write, self._changes)

    async def allocations(self) -> Mapping[str, VirtualIps]:
        def read(connection: sqlite3.Connection) -> Mapping[str, VirtualIps]:
            rows = connection.execute("SELECT host, slot FROM vips WHERE host IS NOT NULL ORDER BY host")
            return {host: virtual_ips(slot) for host, slot in rows}

        return await self._database.read(read)

    async def owners(self) -> frozenset[str]:
        def read(connection: sqlite3.Connection) -> frozenset[str]:
            rows = connection.execute("SELECT owner FROM leases WHERE expires > ?", (time.time(),))
            return frozenset(owner for (owner,) in rows)

        return await self._database.read(read)

    async def hold_lease(
        self, *, grace: float, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await hold(
            self, self._renew, self._give_up, grace=grace, period=_RENEW_SECONDS, task_status=task_status
        )

    async def _renew(self) -> bool:
        def write(connection: sqlite3.Connection) -> bool:
            now = time.time()
            connection.execute("DELETE FROM leases WHERE expires <= ?", (now,))
            lease = (self._owner, now + _LEASE_SECONDS)
            connection.execute("INSERT OR REPLACE INTO leases VALUES (?, ?)", lease)
            return True

        return await self._database.write(write)

    async def _give_up(self) -> None:
        await self._database.write(
            lambda connection: connection.execute("DELETE FROM leases WHERE owner = ?", (self._owner,))
        )


def _instance(connection: sqlite3.Connection, instance_id: str) -> Instance | None:
    row = connection.execute("SELECT body FROM instances WHERE id = ?", (instance_id,)).fetchone()
    return decode_instance(row[0], f"instance {instance_id}") if row else None


def _instances_of(connection: sqlite3.Connection, namespace: str, service: str) -> tuple[Instance, ...]:
    rows = connection.execute(
        "SELECT id, body FROM instances WHERE namespace = ? AND service = ?", (namespace, service)
    )
    return tuple(decode_instance(body, f"instance {key}") for key, body in rows)


def _service(connection: sqlite3.Connection, namespace: str, name: str) -> ServiceEntry | None:
    row = connection.execute(
        "SELECT body FROM services WHERE namespace = ? AND name = ?", (namespace, name)
    ).fetchone()
    return decode_service(row[0], f"service {namespace}/{name}") if row else None


def _instance_or_none(connection: sqlite3.Connection, instance_id: str) -> Instance | None:
    try:
        return _instance(connection, instance_id)
    except NotARegistryError as error:
        _log.warning("nobody's: %s", error)
        return None


def _service_or_none(connection: sqlite3.Connection, namespace: str, name: str) -> ServiceEntry | None:
    """As `_service`; None for a row that cannot be read, which is then written anew."""
    try:
        return _service(connection, namespace, name)
    except NotARegistryError as error:
        _log.warning("a service is registered anew with other virtual addresses: %s", error)
        return None


def _put_if_changed(
    connection: sqlite3.Connection, select: str, insert: str, key: tuple[str, ...], body: str
) -> None:
    """Write only what differs: a write that changes nothing must not wake the watchers."""
    row = connection.execute(select, key).fetchone()
    if row is None or row[0] != body:
        connection.execute(insert, (*key, body))


def _release_slot(connection: sqlite3.Connection, slot: int, name: str) -> None:
    """Free the slot: for `name` at once, for any other name after the quarantine."""
    connection.execute(
        "UPDATE vips SET host = NULL, name = ?, released = ? WHERE slot = ?", (name, time.time(), slot)
    )


def _take_slot(connection: sqlite3.Connection, name: str, *, host: str | None) -> int:
    over = time.time() - QUARANTINE_SECONDS
    taken = {
        slot
        for slot, former, released in connection.execute("SELECT slot, name, released FROM vips")
        if released is None or (released > over and former != name)
    }
    for slot in candidates(name):
        if slot not in taken:
            connection.execute("INSERT OR REPLACE INTO vips (slot, host) VALUES (?, ?)", (slot, host))
            return slot
    raise RegistryError(f"all {CAPACITY} virtual addresses are in use; remove services that are gone")
