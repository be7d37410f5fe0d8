"""Instances, services, VIPs and leases in Consul.

Rule: each method reads, decides and writes one transaction that holds only if nothing it has read was
changed; else it starts again (somebody else then got ahead, so the istiods together always do). Leases
are Consul sessions: their time is Consul's, not this host's. Not for how Consul's catalog shows it
(registry.consul_mirror).

Keys below the prefix: `catalog/instances/ID`, `catalog/services/NAMESPACE/NAME`, `catalog/hosts/HOST` are
watched; `vips/SLOT` (who has it), `nodes/NODE` (its instances' ids) and `owners/ISTIOD` are not.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import unquote

import trio

from registry.catalog import Catalog
from registry.consul_http import ConsulClient, Entry, kv
from registry.consul_mirror import node_name, remove_node, remove_service, show
from registry.consul_store import path_of
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

__all__ = ["ConsulCatalog"]

T = TypeVar("T")

_log = logging.getLogger(__name__)
_LEASE_SECONDS = 15
_RENEW_SECONDS = _LEASE_SECONDS / 3
_RELEASED = "released "
"""Begins the value of a slot's key that nobody has any more: `released SECONDS NAME`."""
_CLOSING = 1
"""Flags of a service that somebody is about to forget: whoever registers must write it, and so save it."""


class ConsulCatalog(Catalog):
    """The catalog below `root`; `owner` is this process."""

    def __init__(self, client: ConsulClient, root: str, changes: Changes, owner: str, damage: Damage) -> None:
        self._client = client
        self._damage = damage
        self._root = root
        self._changes = changes
        self._owner = owner
        self._session: str | None = None

    def watch(self) -> AsyncIterator[int]:
        return self._changes.watch()

    async def register(self, instance: Instance, *, takeover: bool = True) -> Service:
        body = encode_instance(instance)
        path, service_path = self._instance_path(instance.id), self._service_path(instance)
        while True:
            old = await self._client.get(path)
            if not takeover:
                check_holder(instance, _instance(old))
            known = await self._client.get(service_path)
            stored = _service(known)
            if stored is None:
                slot, former = await self._free_slot(f"{instance.service}.{instance.namespace}")
                entry = ServiceEntry(instance.namespace, instance.service, (), slot)
                user = f"service {instance.namespace}/{instance.service}"
                operations = [kv("cas", self._slot_path(slot), user, index=former)]
            else:
                entry, operations = stored, []
            latest = entry.with_ports(instance.ports)
            operations += [
                _write(service_path, encode_service(latest), known),
                _write(path, body, old),
                *await self._leave_old_place(instance, old),
                *await self._on_node(instance),
                *show(self._root, instance),
            ]
            if await self._client.transact(operations) is not None:
                return served(latest, ())

    async def set_health(self, instance_id: str, health: Health, *, owner: str | None = None) -> bool:
        while True:
            found = await self._find(instance_id, owner)
            if found is None:
                return False
            entry, instance = found
            if instance is None:
                return False  # whoever registers it again writes the row anew
            if instance.health is health:
                return True
            changed = replace(instance, health=health)
            write = kv("cas", entry.key, encode_instance(changed), index=entry.index)
            if await self._client.transact([write, *show(self._root, changed)]) is not None:
                return True

    async def deregister(self, instance_id: str, *, owner: str | None = None) -> bool:
        while True:
            found = await self._find(instance_id, owner)
            if found is None:
                return False
            entry, instance = found
            operations = [kv("delete-cas", entry.key, index=entry.index)]
            if instance is not None:
                operations += await self._off_node(instance)
            if await self._client.transact(operations) is not None:
                return True

    async def instances(self) -> tuple[Instance, ...]:
        entries = await self._client.children(f"{self._root}/catalog/instances/")
        found = self._damage.readable("instance", [_read(decode_instance, entry) for entry in entries])
        return tuple(sorted(found, key=lambda instance: instance.id))

    async def services(self) -> tuple[Service, ...]:
        by_service: dict[tuple[str, str], list[Instance]] = {}
        of_services: list[Callable[[], ServiceEntry]] = []
        of_instances: list[Callable[[], Instance]] = []
        for entry in await self._client.children(f"{self._root}/catalog/"):
            kind = entry.key.removeprefix(f"{self._root}/catalog/").partition("/")[0]
            if kind == "instances":
                of_instances.append(_read(decode_instance, entry))
            elif kind == "services":
                of_services.append(_read(decode_service, entry))
        for instance in self._damage.readable("instance", of_instances, whole=False):
            by_service.setdefault((instance.namespace, instance.service), []).append(instance)
        services = self._damage.readable("service", of_services)
        services.sort(key=lambda service: (service.namespace, service.name))
        return tuple(served(entry, by_service.get((entry.namespace, entry.name), ())) for entry in services)

    async def forget_service(self, namespace: str, name: str) -> bool:
        path = f"{self._root}/catalog/services/{path_of(namespace, name)}"
        entry = await self._client.get(path)
        if entry is None:
            return False
        # First say so, then look: an instance that registered before is seen, a later one must write the
        # entry.
        closing = await self._client.transact(
            [kv("cas", path, entry.value, index=entry.index, flags=_CLOSING)]
        )
        users = [i for i in await self.instances() if (i.namespace, i.service) == (namespace, name)]
        removed = None
        if closing is not None and not users:
            slot = decode_service(entry.value, path).slot
            removed = await self._client.transact(
                [kv("delete-cas", path, index=closing), self._released(slot, f"{name}.{namespace}")]
            )
        if removed is None:
            raise ConflictError(f"service {namespace}/{name}", ABSENT, f"with {len(users)} instances")
        return True

    async def allocate(self, host: str) -> VirtualIps:
        path = f"{self._root}/catalog/hosts/{path_of(host)}"
        while True:
            entry = await self._client.get(path)
            if entry is not None:
                return virtual_ips(_number(entry))
            slot, former = await self._free_slot(host)
            operations = [
                kv("cas", self._slot_path(slot), f"host {host}", index=former),
                kv("cas", path, str(slot), index=0),
            ]
            if await self._client.transact(operations) is not None:
                return virtual_ips(slot)

    async def release(self, host: str) -> bool:
        path = f"{self._root}/catalog/hosts/{path_of(host)}"
        while True:
            entry = await self._client.get(path)
            if entry is None:
                return False
            operations = [
                kv("check-index", path, index=entry.index),
                kv("delete-cas", path, index=entry.index),
                self._released(_number(entry), host),
            ]
            if await self._client.transact(operations) is not None:
                return True

    async def allocations(self) -> Mapping[str, VirtualIps]:
        folder = f"{self._root}/catalog/hosts/"
        entries = await self._client.children(folder)
        reads = [partial(_host, entry, folder) for entry in entries]
        return dict(self._damage.readable("host", reads))

    async def owners(self) -> frozenset[str]:
        return frozenset(unquote(name) for name in await self._client.names(f"{self._root}/owners/"))

    async def hold_lease(
        self, *, grace: float, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        await hold(
            self, self._renew, self._give_up, grace=grace, period=_RENEW_SECONDS, task_status=task_status
        )

    async def _renew(self) -> bool:
        if self._session is None or not await self._client.renew_session(self._session):
            self._session = await self._client.create_session(self._owner, _LEASE_SECONDS)
        return await self._client.acquire(self._owner_path, self._owner, self._session)

    async def _give_up(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await self._client.destroy_session(session)

    @property
    def _owner_path(self) -> str:
        return f"{self._root}/owners/{path_of(self._owner)}"

    def _instance_path(self, instance_id: str) -> str:
        return f"{self._root}/catalog/instances/{path_of(instance_id)}"

    def _service_path(self, instance: Instance) -> str:
        return f"{self._root}/catalog/services/{path_of(instance.namespace, instance.service)}"

    def _node_path(self, instance: Instance) -> str:
        return f"{self._root}/nodes/{path_of(node_name(self._root, instance))}"

    def _slot_path(self, slot: int) -> str:
        return f"{self._root}/vips/{slot}"

    def _released(self, slot: int, name: str) -> dict[str, Any]:
        """Free the slot: for `name` at once, for any other name after the quarantine."""
        return kv("set", self._slot_path(slot), f"{_RELEASED}{time.time():.0f} {name}")

    async def _free_slot(self, name: str) -> tuple[int, int]:
        """A slot for `name`, and the ModifyIndex of its key (0: there is none)."""
        folder = f"{self._root}/vips/"
        known = {entry.key.removeprefix(folder): entry for entry in await self._client.children(folder)}
        for slot in candidates(name):
            entry = known.get(str(slot))
            if entry is None or _is_free(entry.value, name, time.time()):
                return slot, entry.index if entry is not None else 0
        raise RegistryError(f"all {CAPACITY} virtual addresses are in use; remove services that are gone")

    async def _find(self, instance_id: str, owner: str | None) -> tuple[Entry, Instance | None] | None:
        """The entry of an instance (of `owner`) and the instance, None when the entry cannot be read."""
        entry = await self._client.get(self._instance_path(instance_id))
        if entry is None:
            return None
        instance = _instance(entry)
        if instance is not None and owner is not None and instance.owner != owner:
            return None
        return entry, instance

    async def _leave_old_place(self, instance: Instance, old: Entry | None) -> list[dict[str, Any]]:
        """Unshow what an earlier registration of the id showed under another node or service."""
        before = _instance(old)
        if before is None:
            return []
        if node_name(self._root, before) != node_name(self._root, instance):
            return await self._off_node(before)
        return [remove_service(self._root, before)] if before.service != instance.service else []

    async def _on_node(self, instance: Instance) -> list[dict[str, Any]]:
        path = self._node_path(instance)
        entry = await self._client.get(path)
        ids = _ids(entry) | {instance.id}
        return [_write(path, json.dumps(sorted(ids)), entry)]

    async def _off_node(self, instance: Instance) -> list[dict[str, Any]]:
        path = self._node_path(instance)
        entry = await self._client.get(path)
        rest = _ids(entry) - {instance.id}
        if rest:
            return [remove_service(self._root, instance), _write(path, json.dumps(sorted(rest)), entry)]
        # The check keeps a second workload, which registers now, from being swept away with its host.
        guard = (
            [kv("check-index", path, index=entry.index), kv("delete", path)]
            if entry
            else [kv("check-not-exists", path)]
        )
        return [*guard, remove_node(self._root, instance)]


def _write(path: str, value: str, known: Entry | None) -> dict[str, Any]:
    """Write, if `known` is still what is stored; only check that when it would write the same."""
    if known is not None and known.value == value and known.flags == 0:
        return kv("check-index", path, index=known.index)
    return kv("cas", path, value, index=known.index if known else 0)


def _is_free(value: str, name: str, now: float) -> bool:
    """Whether a released slot's key leaves the slot to `name`."""
    if not value.startswith(_RELEASED):
        return False
    released, _, former = value.removeprefix(_RELEASED).partition(" ")
    return former == name or (released.isdecimal() and now - int(released) >= QUARANTINE_SECONDS)


def _read(decode: Callable[[str, str], T], entry: Entry) -> Callable[[], T]:
    return partial(decode, entry.value, entry.key)


def _service(entry: Entry | None) -> ServiceEntry | None:
    """None also for an entry that cannot be read: it is then written anew."""
    try:
        return decode_service(entry.value, entry.key) if entry else None
    except NotARegistryError as error:
        _log.warning("a service is registered anew with other virtual addresses: %s", error)
        return None


def _instance(entry: Entry | None) -> Instance | None:
    """None also for an entry that cannot be read: it is nobody's."""
    try:
        return decode_instance(entry.value, entry.key) if entry else None
    except NotARegistryError as error:
        _log.warning("replaced or removed: %s", error)
        return None


def _ids(entry: Entry | None) -> frozenset[str]:
    try:
        found = json.loads(entry.value) if entry else []
        return frozenset(one for one in found if isinstance(one, str))
    except (ValueError, TypeError):
        return frozenset()  # only the mirror in Consul's own catalog depends on it


def _host(entry: Entry, folder: str) -> tuple[str, VirtualIps]:
    return unquote(entry.key.removeprefix(folder)), virtual_ips(_number(entry))


def _number(entry: Entry) -> int:
    if not entry.value.isdecimal() or int(entry.value) >= CAPACITY:
        raise NotARegistryError(
            f"Consul's key {entry.key} holds {entry.value!r}, not the number of an address"
        )
    return int(entry.value)
