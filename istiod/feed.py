"""From the registry's changes to numbered snapshots.

Job: watch catalog and store, wait until a burst is over, read everything, build the next snapshot, wake
the streams.
Rule: a snapshot is published only when it differs from the one before; while the registry is away, or if no
snapshot can be made of what it holds, the last one stays in force. Everybody reads `snapshot` and `number`
together, without awaiting in between.
Not for: what proxies get of it (`istiod.xds`).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterable, Mapping

import trio

from istiod.access.facts import Access
from istiod.access.records import AccessRecords, Stored
from istiod.debounce import Debounce
from istiod.log import fields
from istiod.monitoring import Metrics
from istiod.resources.mesh_config import MeshConfig
from istiod.resources.problem import Severity
from istiod.snapshot import Snapshot, build
from registry.damage import Damaged
from registry.errors import RegistryError
from registry.model import Instance, Resource, ResourceKey, Service
from registry.store import Registry

log = logging.getLogger("istiod.feed")

_RETRY_SECONDS = 1.0

Facts = tuple[tuple[Service, ...], tuple[Instance, ...], tuple[Resource, ...]]


class Feed:
    """The newest snapshot and its number (0: none yet)."""

    def __init__(
        self, registry: Registry, mesh: MeshConfig, metrics: Metrics, debounce: Debounce | None = None
    ) -> None:
        self._registry = registry
        self._mesh = mesh
        self._mesh_changed = False
        self._metrics = metrics
        self._debounce = debounce if debounce is not None else Debounce()
        self._facts: Facts = ((), (), ())
        self._by_id: dict[str, Instance] = {}
        self._access_records = AccessRecords(registry.records)
        self._access = Stored(Access.of())
        self._damage: tuple[Damaged, ...] = ()
        self._since: dict[ResourceKey, tuple[str, int]] = {}
        """The version of each resource, and the number of the first snapshot that has it."""
        self._reported: frozenset[str] = frozenset()
        self._conflicts: frozenset[str] = frozenset()
        self._published = trio.Event()
        self.number = 0
        self.snapshot: Snapshot = build((), (), (), mesh)
        self.changed_at = 0.0
        """When the first change of the newest snapshot was noticed (trio's clock)."""

    @property
    def services(self) -> tuple[Service, ...]:
        """The catalog's services."""
        return self._facts[0]

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The catalog's instances."""
        return self._facts[1]

    def instance_of(self, instance_id: str) -> Instance | None:
        """What the catalog says about an instance, None when it is not there."""
        return self._by_id.get(instance_id)

    @property
    def problems(self) -> tuple[str, ...]:
        """What the registry holds and the newest snapshot leaves out, closes, or uses although it would be refused."""
        return (*map(str, (*self._damage, *self.snapshot.problems)), *self._access.problems)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Publish snapshots until cancelled; started when the first one is there."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch, self._registry.catalog.watch())
            nursery.start_soon(self._watch, self._registry.store.watch())
            nursery.start_soon(self._watch, self._registry.records.watch())
            started = False
            while True:
                if not started and await self._read():
                    task_status.started()
                    started = True
                changed_at = await self._debounce.settled()
                self._metrics.debounced.inc(self._debounce.merged)
                if await self._read():
                    self.changed_at = changed_at
                else:
                    await trio.sleep(_RETRY_SECONDS)
                    self._debounce.poke()

    def set_mesh(self, mesh: MeshConfig) -> None:
        """Use other settings of the mesh from the next snapshot on, which comes soon."""
        if mesh != self._mesh:
            self._mesh = mesh
            self._mesh_changed = True
            self._debounce.poke()

    def imagine(self, resources: Iterable[Resource], more: Iterable[Service] = ()) -> Snapshot:
        """The snapshot that would be if these were the stored resources and there were these services, too."""
        return self._build((*self.services, *more), self.instances, resources, self._access, self._damage)

    def _build(
        self,
        services: Iterable[Service],
        instances: Iterable[Instance],
        resources: Iterable[Resource],
        access: Stored,
        damage: Iterable[Damaged],
    ) -> Snapshot:
        rows = [one.key for one in damage if one.key is not None]
        return build(services, instances, resources, self._mesh, self.snapshot, access.access, rows)

    async def newer_than(self, number: int) -> None:
        """Wait for a snapshot with a higher number."""
        while self.number <= number:
            await self._published.wait()

    async def contains(self, wanted: Mapping[ResourceKey, str]) -> tuple[int, int]:
        """Wait until these versions ("": not there) or later ones are in a snapshot; returns the number of the
        first snapshot that had them all, as far as is known, and of the newest."""
        while not self._has(wanted):
            await self._published.wait()
        first = max((self._since.get(key, ("", self.number))[1] for key in wanted), default=self.number)
        return first, self.number

    def _has(self, wanted: Mapping[ResourceKey, str]) -> bool:
        return all(_at_least(self._since.get(key, ("", 0))[0], version) for key, version in wanted.items())

    async def _watch(self, marks: AsyncIterator[int]) -> None:
        async for _ in marks:
            self._debounce.poke()

    async def _read(self) -> bool:
        """Read the registry and publish when it says something new. False: it is to be tried again."""
        registry = self._registry
        try:
            services = await registry.catalog.services()
            instances = await registry.catalog.instances()
            resources = await registry.store.list()
            access = await self._access_records.read()
        except RegistryError as error:
            log.warning("registry: %s; the last snapshot stays in force", error)
            return False
        except Exception:
            log.exception("the registry cannot be read; the last snapshot stays in force")
            self._metrics.snapshot_failures.inc()
            return False
        facts = (services, instances, resources)
        damage = registry.damage.found()
        unchanged = (facts, damage, access) == (self._facts, self._damage, self._access)
        if self.number and unchanged and not self._mesh_changed:
            return True
        try:
            snapshot = self._build(services, instances, resources, access, damage)
        except Exception:
            log.exception("no snapshot can be made of the registry; the last one stays in force")
            self._metrics.snapshot_failures.inc()
            return False
        self._mesh_changed = False
        self.snapshot, self._facts, self._damage, self._access = snapshot, facts, damage, access
        self._by_id = {instance.id: instance for instance in instances}
        self.number += 1
        self._since = {
            one.key: before
            if (before := self._since.get(one.key)) is not None and before[0] == one.version
            else (one.version, self.number)
            for one in resources
        }
        self._metrics.snapshots.inc()
        self._report_problems()
        log.debug(
            "snapshot", extra=fields(number=self.number, instances=len(instances), resources=len(resources))
        )
        self._published.set()
        self._published = trio.Event()
        return True

    def _report_problems(self) -> None:
        """Log once what the registry holds and cannot be used, or would be refused today."""
        problems = frozenset(self.problems)
        for problem in sorted(problems - self._reported):
            log.warning("of what the registry holds: %s", problem)
        conflicts = frozenset(str(conflict) for conflict in self.snapshot.conflicts)
        for conflict in sorted(conflicts - self._conflicts):
            log.warning("stored resource has no effect in part: %s", conflict)
        self._reported, self._conflicts = problems, conflicts
        tolerated = {str(one) for one in self.snapshot.problems if one.severity is Severity.WARNING}
        self._metrics.unusable.set(len(problems - tolerated))


def _at_least(stored: str, wanted: str) -> bool:
    """Whether a stored version is the wanted one or a later one; versions of both backends count upwards."""
    if stored == wanted or not wanted:
        return stored == wanted
    return stored.isdigit() and wanted.isdigit() and int(stored) >= int(wanted)
