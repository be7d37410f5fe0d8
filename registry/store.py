"""The interfaces of the config store and of the records, and what an opened registry is made of.

Rule: every write can be conditional on the version that the writer has read (compare-and-set), and the answer
carries the new version. Not for instances (registry.catalog); registry.opening picks the backend.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from registry.catalog import Catalog
from registry.damage import Damage
from registry.model import Record, Resource, ResourceKey

__all__ = ["ConfigStore", "Records", "Registry", "Write"]


class Write(NamedTuple):
    """One resource to be stored, and the version that it replaces (as in ConfigStore)."""

    resource: Resource
    expected: str | None = None


class ConfigStore(ABC):
    """The applied resources. Every method may raise RegistryUnavailableError.

    `expected` is the version that must be stored now: None for any, ABSENT for none at all.
    """

    @abstractmethod
    async def get(self, key: ResourceKey) -> Resource | None:
        """The resource, or None."""

    @abstractmethod
    async def list(self, kind: str | None = None, namespace: str | None = None) -> tuple[Resource, ...]:
        """Resources in order of kind, namespace and name; rows that cannot be read are left out (Registry.damage)."""

    @abstractmethod
    async def put(self, resource: Resource, *, expected: str | None = None) -> Resource:
        """Store it and return it with its new version, generation and creation time.

        A resource equal to the stored one is not written: it comes back with the version it has. One whose row
        cannot be read is replaced. Raises ConflictError.
        """

    @abstractmethod
    async def put_all(self, writes: Sequence[Write]) -> tuple[Resource, ...]:
        """As `put` for each, all or nothing: when one is refused, none is stored. Raises ConflictError."""

    @abstractmethod
    async def delete(self, key: ResourceKey, *, expected: str | None = None) -> bool:
        """Remove it. False: there was none. Raises ConflictError."""

    @abstractmethod
    def watch(self) -> AsyncIterator[int]:
        """Marks that resources may have changed; as Catalog.watch."""


class Records(ABC):
    """Small documents of istiod's own, by area and key; writes as in ConfigStore. Never secret in clear."""

    @abstractmethod
    async def get(self, area: str, key: str) -> Record | None:
        """The record, or None."""

    @abstractmethod
    async def list(self, area: str) -> tuple[Record, ...]:
        """The area's records in order of key."""

    @abstractmethod
    async def put(self, area: str, key: str, value: str, *, expected: str | None = None) -> Record:
        """Store it and return it with its new version. Raises ConflictError."""

    @abstractmethod
    async def delete(self, area: str, key: str, *, expected: str | None = None) -> bool:
        """Remove it. False: there was none. Raises ConflictError."""

    @abstractmethod
    def watch(self) -> AsyncIterator[int]:
        """Marks that records of any area may have changed; as Catalog.watch."""


@dataclass(frozen=True, slots=True)
class Registry:
    """An opened registry. `owner` names this process, anew at every start; `description` is for people; `damage`
    has the rows that reading all services, instances or resources has left out."""

    catalog: Catalog
    store: ConfigStore
    records: Records
    owner: str
    description: str
    damage: Damage = field(default_factory=Damage)
