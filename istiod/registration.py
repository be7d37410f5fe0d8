"""Workloads in the catalog: they come with their agent's stream, follow its probe, and leave with it.

Job: one claim for each instance that is or was connected here: what the catalog should say about it, and one
task that makes the catalog say so, however often the backend goes away meanwhile.
Rule: events only change what is wanted (no I/O, never blocks a stream); the claim's task writes. A clean
leave removes at once; a broken connection keeps the instance as it was for the grace period. A claim is its holder's
(identity, name, address): a newer connection of the same holder takes it over, so that the older one's end changes
nothing; another holder of the same name gets a name of its own.
Not for: instances of istiods that died: `Catalog.hold_lease` looks after those.
"""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Set
from dataclasses import replace

import trio

from istiod.log import fields
from registry.catalog import Catalog
from registry.errors import HeldError, RegistryError
from registry.model import Health, Instance

log = logging.getLogger("istiod.registration")

GRACE = 30.0
"""Seconds that an instance outlives its broken connection (`registration.graceSeconds`)."""
_RETRY = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts while the registry is away; the last one repeats."""


class _Claim:
    """What is wanted for one instance. `wanted` None: it shall not be in the catalog."""

    def __init__(self, instance: Instance, connection: int, lose: Callable[[], None]) -> None:
        self.connection = connection
        self.lose = lose
        """Tells the stream that another istiod has the id for another holder."""
        self.wanted: Instance | None = instance
        self.reported: tuple[bool, str] | None = None
        self.expires = math.inf
        self.written = False
        self.missing = False
        self.changed = trio.Event()

    def touch(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


class Registration:
    """All claims of this istiod. `run` must be running for anything to be written."""

    def __init__(
        self,
        catalog: Catalog,
        owner: str,
        known: Callable[[str], Instance | None],
        grace: float = GRACE,
    ) -> None:
        self._catalog = catalog
        self._known = known
        self._owner = owner
        self._grace = grace
        self._claims: dict[str, _Claim] = {}
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold this istiod's lease and serve the claims until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._hold_lease)
            task_status.started()
            await trio.sleep_forever()

    async def _hold_lease(self, *, task_status: trio.TaskStatus[None]) -> None:
        await self._catalog.hold_lease(grace=self._grace, task_status=task_status)

    def name_for(self, instance: Instance) -> str:
        """The id under which the instance is registered: its own, or one beside it when another holder has that.

        Cloned hosts have one name and one identity; what tells them apart is their address. A holder keeps the id that
        it has.
        """
        mark = hashlib.sha256("/".join(instance.holder).encode()).hexdigest()
        names = [instance.id, *(f"{instance.id}-{mark[at : at + 8]}" for at in range(0, 64, 8))]
        holders = {name: self._holder(name) for name in names}
        mine = (name for name in names if holders[name] == instance.holder)
        free = (name for name in names if holders[name] is None)
        return next(mine, None) or next(free, names[1])

    def _holder(self, instance_id: str) -> tuple[str, str, str] | None:
        claim = self._claims.get(instance_id)
        if claim is not None:
            return claim.wanted.holder if claim.wanted is not None else None
        known = self._known(instance_id)
        return known.holder if known is not None else None

    def connected(self, instance: Instance, connection: int, lose: Callable[[], None] = lambda: None) -> None:
        """An agent's stream for this instance began; `connection` tells streams apart.

        `lose` is called when the id turns out to be another holder's.
        """
        assert self._nursery is not None, "run() is running"
        claim = self._claims.get(instance.id)
        if claim is None:
            # After a restart of ours, or coming from another istiod: keep what its probe said there.
            known = self._known(instance.id)
            if known is not None:
                instance = replace(instance, health=known.health)
            claim = self._claims[instance.id] = _Claim(instance, connection, lose)
            self._nursery.start_soon(self._serve, instance.id, claim)
        else:
            # It came back: what its probe said before still holds until the agent reports again.
            health = claim.wanted.health if claim.wanted is not None else instance.health
            claim.wanted = replace(instance, health=health)
            claim.connection, claim.expires, claim.lose = connection, math.inf, lose
            claim.touch()
        log.info("workload connected", extra=fields(workload=instance.id, service=instance.service))

    def reported(self, instance_id: str, connection: int, healthy: bool, reason: str) -> None:
        """Whether the workload serves, as its agent sees it: its proxy does, and its probe passes."""
        claim = self._claims.get(instance_id)
        if claim is None or claim.connection != connection or claim.wanted is None:
            return
        health = Health.HEALTHY if healthy else Health.UNHEALTHY
        if claim.wanted.health is not health or claim.reported != (healthy, reason):
            log.info("workload is %s", health, extra=fields(workload=instance_id, reason=reason))
        claim.reported = healthy, reason
        claim.wanted = replace(claim.wanted, health=health)
        claim.touch()

    def left(self, instance_id: str, connection: int) -> None:
        """The agent said goodbye: the instance leaves at once."""
        claim = self._claims.get(instance_id)
        if claim is None or claim.connection != connection:
            return
        log.info("workload left", extra=fields(workload=instance_id))
        claim.wanted, claim.expires = None, math.inf
        claim.touch()

    def lost(self, instance_id: str, connection: int, *, ended_by_us: bool = False) -> None:
        """The stream ended without a goodbye: the grace period begins."""
        claim = self._claims.get(instance_id)
        if claim is None or claim.connection != connection or claim.wanted is None:
            return
        if not ended_by_us:
            log.warning(
                "workload's connection broke", extra=fields(workload=instance_id, grace_seconds=self._grace)
            )
        claim.expires = trio.current_time() + self._grace
        claim.touch()

    def seen(self, instance_ids: Set[str]) -> None:
        """What the catalog holds now: an instance of ours that somebody removed is written again."""
        for instance_id, claim in self._claims.items():
            if claim.wanted is not None and claim.written and instance_id not in instance_ids:
                claim.missing = True
                claim.touch()

    async def _serve(self, instance_id: str, claim: _Claim) -> None:
        """Make the catalog say what is wanted, until the instance is gone."""
        written: Instance | None = None
        attempt = 0
        while True:
            changed = claim.changed
            wanted = claim.wanted
            if claim.missing:
                written, claim.missing = None, False
            try:
                if wanted is None:
                    await self._catalog.deregister(instance_id, owner=self._owner)
                elif written is None or replace(wanted, health=written.health) != written:
                    await self._catalog.register(wanted, takeover=False)
                    written, claim.written = wanted, True
                elif wanted.health is not written.health:
                    if await self._catalog.set_health(instance_id, wanted.health, owner=self._owner):
                        written = wanted
                    else:
                        # Somebody removed it (an operator, or a cleanup after a long pause of ours).
                        written = None
                        continue
            except HeldError as error:
                log.warning("registry: %s", error, extra=fields(workload=instance_id))
                claim.lose()
                del self._claims[instance_id]
                return
            except RegistryError as error:
                pause = _RETRY[min(attempt, len(_RETRY) - 1)]
                attempt += 1
                log.warning("registry: %s; trying again", error, extra=fields(workload=instance_id))
                await trio.sleep(pause)
                continue
            attempt = 0
            if wanted is None and claim.wanted is None:
                del self._claims[instance_id]
                return
            if claim.changed is not changed:
                continue
            with trio.move_on_at(claim.expires):
                await changed.wait()
            if trio.current_time() >= claim.expires and claim.changed is changed:
                log.warning("workload did not come back", extra=fields(workload=instance_id))
                claim.wanted, claim.expires = None, math.inf

    def hold(self) -> None:
        """Shutdown: leave every instance as it is; agents reconnect elsewhere or to our successor."""
        for claim in self._claims.values():
            claim.expires = math.inf
            claim.connection = -1
