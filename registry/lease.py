"""Keeps this istiod's lease, and cleans up after istiods that died: what nobody vouches for leaves after a grace.

Rule: `Orphans` only decides (time is an argument); `hold` and `sweep` do it, on any catalog. An instance
without an owner is nobody's to remove. Not for an agent's broken connection: istiod has its
own grace period for that.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable

import trio

from registry.catalog import Catalog
from registry.errors import RegistryError
from registry.model import Instance

__all__ = ["Orphans", "hold", "sweep"]

_log = logging.getLogger(__name__)
_SWEEPS_PER_GRACE = 4
_LONGEST_PAUSE = 10.0
_GIVE_UP_SECONDS = 2.0


class Orphans:
    """Remembers since when each owner was seen without a lease. Times and `grace` are in seconds."""

    def __init__(self, grace: float) -> None:
        self._grace = grace
        self._missing_since: dict[str, float] = {}

    def observe(
        self, instances: Iterable[Instance], owners: Collection[str], now: float
    ) -> list[tuple[str, str]]:
        """The (instance id, owner) pairs to remove now, having seen this at `now`."""
        by_owner: dict[str, list[str]] = {}
        for instance in instances:
            if instance.owner and instance.owner not in owners:
                by_owner.setdefault(instance.owner, []).append(instance.id)
        self._missing_since = {owner: self._missing_since.get(owner, now) for owner in by_owner}
        return [
            (instance_id, owner)
            for owner, ids in sorted(by_owner.items())
            if now - self._missing_since[owner] >= self._grace
            for instance_id in ids
        ]

    def forget(self) -> None:
        """Start every grace anew: the registry was away, so nobody could renew a lease."""
        self._missing_since.clear()


async def hold(
    catalog: Catalog,
    renew: Callable[[], Awaitable[bool]],
    give_up: Callable[[], Awaitable[None]],
    *,
    grace: float,
    period: float,
    task_status: trio.TaskStatus[None],
) -> None:
    """What Catalog.hold_lease promises, by a backend's own `renew` (False: not held yet) and `give_up`.

    The lease is renewed every `period` seconds, tried for more often until it is held.
    """
    started = False
    try:
        async with trio.open_nursery() as nursery:
            while True:
                try:
                    held = await renew()
                except RegistryError as error:
                    _log.warning("this istiod's lease is not renewed: %s", error)
                else:
                    if held and not started:
                        started = True
                        task_status.started()
                        nursery.start_soon(sweep, catalog, grace)
                await trio.sleep(period if started else period / 10)
    finally:
        with trio.move_on_after(_GIVE_UP_SECONDS, shield=True):
            try:
                await give_up()
            except RegistryError as error:
                _log.info("the lease ends by itself later: %s", error)


async def sweep(catalog: Catalog, grace: float) -> None:
    """Remove orphans of `catalog` until cancelled."""
    orphans = Orphans(grace)
    while True:
        try:
            overdue = orphans.observe(await catalog.instances(), await catalog.owners(), trio.current_time())
            for instance_id, owner in overdue:
                if await catalog.deregister(instance_id, owner=owner):
                    _log.warning(
                        "instance %s removed: its istiod (%s) is gone for %g s", instance_id, owner, grace
                    )
        except RegistryError as error:
            _log.info("cleaning up waits for the registry: %s", error)
            orphans.forget()
        await trio.sleep(min(grace / _SWEEPS_PER_GRACE, _LONGEST_PAUSE))
