"""Where grants, revocations and evictions are kept: one record each in the registry's area `access`.

Rule: a record that cannot be read is skipped and named, never the reason for losing the others; for revocations that
would open what was closed, so their subject is in the key. Not for decisions (istiod.access.facts).
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from istiod.access.facts import OWN, Access, Eviction, Grant, Revocation
from registry.errors import ConflictError
from registry.model import ABSENT, Instance, Record, Resource
from registry.store import Records, Registry
from wire.spiffe import SpiffeId

__all__ = ["AccessRecords", "Stored", "block", "upgrade"]

_AREA = "access"
_UPGRADED = "upgraded"


@dataclass(frozen=True, slots=True)
class Stored:
    """What is kept now. `problems` name the records that cannot be read."""

    access: Access
    problems: tuple[str, ...] = ()


class AccessRecords:
    """The area `access`. Every method may raise RegistryError."""

    def __init__(self, records: Records) -> None:
        self._records = records

    async def read(self) -> Stored:
        """All of them."""
        grants: list[Grant] = []
        revocations: list[Revocation] = []
        evictions: list[Eviction] = []
        problems: list[str] = []
        for record in await self._records.list(_AREA):
            kind, _, rest = record.key.partition("/")
            try:
                if kind == "grant":
                    grants.append(_grant(record, rest))
                elif kind == "revoked":
                    revocations.append(Revocation(_subject(rest), **_notes(record)))
                elif kind == "evicted":
                    evictions.append(Eviction(rest, **_notes(record)))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                problems.append(f"access record {record.key} is not used: {error}")
        return Stored(Access.of(grants, revocations, evictions), tuple(problems))

    async def grant(self, grant: Grant, *, widen: bool = True) -> None:
        """Let the identity serve the service; with `widen`, addresses that it has already stay granted."""
        key = _key(grant)
        while True:
            record = await self._records.get(_AREA, key)
            new = grant
            if record is not None and widen:
                try:
                    old = _grant(record, key.removeprefix("grant/"))
                except (ValueError, KeyError, TypeError, AttributeError):
                    old = grant  # damaged: written anew
                new = replace(grant, addresses=tuple(sorted({*old.addresses, *grant.addresses})))
            body = json.dumps(
                {"addresses": list(new.addresses), "source": new.source, "created": new.created}
            )
            try:
                await self._records.put(
                    _AREA, key, body, expected=record.version if record is not None else ABSENT
                )
            except ConflictError:
                continue  # another administrator was first: judge what is stored now
            return

    async def withdraw(
        self, namespace: str, service: str, account: str, *, source: str | None = None
    ) -> bool:
        """Remove a grant (of that source only, when one is named). False: there is none."""
        key = _key(Grant(namespace, service, account))
        if source is not None:
            record = await self._records.get(_AREA, key)
            if record is None or _grant(record, key.removeprefix("grant/")).source != source:
                return False
        return await self._records.delete(_AREA, key)

    async def revoke(self, revocation: Revocation) -> None:
        """Let an identity or a certificate count no more."""
        await self._note(f"revoked/{revocation.subject}", revocation)

    async def restore(self, subject: str) -> bool:
        """Undo `revoke`. False: it was not revoked."""
        return await self._records.delete(_AREA, f"revoked/{subject}")

    async def evict(self, eviction: Eviction) -> None:
        """Keep an instance out of the catalog."""
        await self._note(f"evicted/{eviction.instance}", eviction)

    async def readmit(self, instance: str) -> bool:
        """Undo `evict`. False: it was not evicted."""
        return await self._records.delete(_AREA, f"evicted/{instance}")

    async def _note(self, key: str, what: Revocation | Eviction) -> None:
        body = json.dumps({"reason": what.reason, "created": what.created})
        await self._records.put(_AREA, key, body)


async def upgrade(registry: Registry, now: float) -> int:
    """Once in a registry's life: grant what its instances serve already. The number of grants made.

    Registries of versions without grants have instances that nobody granted; without this an upgrade would end them.
    """
    records = registry.records
    if await records.get(_AREA, _UPGRADED) is not None:
        return 0
    instances = await registry.catalog.instances()
    granted = [*Access.of_instances(instances).grants]
    for entry in await registry.store.list("ServiceEntry"):
        granted += _of_selected(entry, instances)
    access = AccessRecords(records)
    for grant in granted:
        await access.grant(replace(grant, created=now))
    # Noted last: an istiod that ends in between leaves the work to the next one, and granting twice changes nothing.
    await records.put(_AREA, _UPGRADED, json.dumps({"created": now}))
    return len(granted)


def _of_selected(entry: Resource, instances: Iterable[Instance]) -> Iterator[Grant]:
    """The grants of the instances that a ServiceEntry selects by their labels."""
    selector = entry.spec.get("workloadSelector")
    wanted = selector.get("labels") if isinstance(selector, dict) else None
    hosts = entry.spec.get("hosts")
    if not isinstance(wanted, dict) or not isinstance(hosts, list):
        return
    for instance in instances:
        if instance.namespace == entry.namespace and wanted.items() <= dict(instance.labels).items():
            for host in hosts:
                yield Grant(entry.namespace, str(host).lower(), instance.service_account, source="upgrade")


def block(text: str) -> str:
    """A CIDR block or an address in canonical form, or OWN. Raises ValueError."""
    return OWN if text == OWN else str(ipaddress.ip_network(text, strict=False))


def _key(grant: Grant) -> str:
    return f"grant/{grant.namespace}/{grant.service}/{grant.service_account}"


def _grant(record: Record, rest: str) -> Grant:
    namespace, service, account = rest.split("/")
    value = _object(record)
    addresses: Iterable[str] = value["addresses"]
    return Grant(
        namespace,
        service,
        account,
        tuple(block(text) for text in addresses),
        str(value.get("source", "")),
        float(value.get("created", 0.0)),
    )


def _subject(text: str) -> str:
    """Checked here, so that one damaged record cannot end the reading of all (SpiffeError is a ValueError)."""
    return str(SpiffeId.parse(text)) if text.startswith("spiffe://") else f"{int(text, 16):x}"


def _notes(record: Record) -> dict[str, Any]:
    try:
        value = _object(record)
        return {"reason": str(value.get("reason", "")), "created": float(value.get("created", 0.0))}
    except (ValueError, TypeError):
        return {"reason": "", "created": 0.0}  # the key says what counts


def _object(record: Record) -> dict[str, Any]:
    value = json.loads(record.value)
    if not isinstance(value, dict):
        raise TypeError("a JSON object is expected")
    return value
