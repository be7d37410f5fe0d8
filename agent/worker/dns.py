"""Names of strict_dns and logical_dns clusters, resolved again and again as Envoy does.

Rule: each name has a task of its own: one that cannot be resolved holds up no other, and keeps what it had. An answer
replaces the hosts of its name, also one without addresses (but a logical_dns cluster never falls back to nobody). The
next question follows after dns_refresh_rate, the answer's lifetime (respect_dns_ttl) or, after a failure,
dns_failure_refresh_rate. Everything ends with `forget`.
Not for: asking (dns_lookup), the DNS that the agent serves (agent/host/dns).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from typing import TYPE_CHECKING

import trio

from agent.table.cluster import Assignment, Cluster, Endpoint
from agent.upstream.cluster import ClusterRuntime
from agent.worker.reactor import Reactor

if TYPE_CHECKING:
    from agent.worker.dns_lookup import Answer, Lookup

_log = logging.getLogger("hostmesh.worker")
_AT_ONCE = 512
"""Questions that are out at a time."""
_SHORTEST = 0.05


class Resolver:
    """The tasks of one worker."""

    def __init__(self, reactor: Reactor, nursery: trio.Nursery, chance: Callable[[], float]) -> None:
        """`chance` draws from 0 to 1."""
        self._reactor = reactor
        self._nursery = nursery
        self._chance = chance
        self._lookup: Lookup | None = None
        self._limit = trio.CapacityLimiter(_AT_ONCE)
        self._names: dict[ClusterRuntime, _Names] = {}

    def resolve(self, runtime: ClusterRuntime, settled: Callable[[], None]) -> None:
        """Keep the hosts of this cluster resolved; does nothing more if that is happening for the same configuration.

        `settled` is called once, when the first name has been resolved, or could not be."""
        known = self._names.get(runtime)
        if known is not None:
            if known.config is runtime.config:
                settled()
                return
            known.scope.cancel()
        names = self._names[runtime] = _Names(runtime, settled)
        if not names.endpoints:
            names.settle()
            return
        self._nursery.start_soon(self._keep, names)

    def forget(self, runtime: ClusterRuntime) -> None:
        """The cluster is no more."""
        known = self._names.pop(runtime, None)
        if known is not None:
            known.scope.cancel()

    @property
    def clusters(self) -> int:
        """How many clusters are kept resolved."""
        return len(self._names)

    async def _keep(self, names: _Names) -> None:
        with names.scope:
            async with trio.open_nursery() as nursery:
                for index in range(len(names.endpoints)):
                    nursery.start_soon(self._keep_name, names, index)

    async def _keep_name(self, names: _Names, index: int) -> None:
        config = names.config
        name = names.endpoints[index].address.host
        backoff = _Backoff(config, self._chance)
        reason = ""
        while True:
            answer, failed = await self._ask(name, config)
            if failed and failed != reason:
                _log.warning("cluster %s: %s cannot be resolved: %s", config.name, name, failed)
            reason = failed
            self._reactor.call(partial(names.take, index, answer))
            if answer is None or (names.logical and not answer.addresses):
                delay = backoff.next()
            else:
                backoff.reset()
                held = answer.ttl if config.dns_respect_ttl else inf
                delay = held if 0 < held < inf else config.dns_refresh
            await trio.sleep(max(delay + config.dns_jitter * self._chance(), _SHORTEST))

    async def _ask(self, name: str, config: Cluster) -> tuple[Answer | None, str]:
        """The answer, or why there is none."""
        # Imported at the first name: most workers have none, and it costs 3 MB.
        from agent.worker.dns_lookup import Lookup, LookupFailed

        async with self._limit:
            if self._lookup is None:
                self._lookup = Lookup()
            try:
                return await self._lookup.addresses(name, config.dns_family, tcp=config.dns_tcp), ""
            except LookupFailed as error:
                return None, str(error)
            except Exception as error:
                _log.exception("cluster %s: %s", config.name, name)
                return None, repr(error)


class _Names:
    """The names of one cluster, and what each was last resolved to."""

    def __init__(self, runtime: ClusterRuntime, settled: Callable[[], None]) -> None:
        self.runtime = runtime
        self.config = runtime.config
        self.assignment = self.config.assignment or Assignment(self.config.name)
        self.endpoints: Sequence[Endpoint] = self.assignment.endpoints
        self.logical = self.config.discovery == "logical_dns"
        self.scope = trio.CancelScope()
        self._settled: Callable[[], None] | None = settled
        self._found: list[tuple[Endpoint, ...]] = [()] * len(self.endpoints)
        self._unasked = set(range(len(self.endpoints)))
        self._had = bool(runtime.hosts)
        """The cluster had hosts by an earlier configuration: they stay until every name has been asked for."""

    def settle(self) -> None:
        """Whoever waits for the first answer waits no longer."""
        settled, self._settled = self._settled, None
        if settled is not None:
            settled()

    def take(self, index: int, answer: Answer | None) -> None:
        """A name was resolved, or (None) could not be."""
        if self.scope.cancel_called:
            return
        self._unasked.discard(index)
        if answer is not None and (answer.addresses or not self.logical):
            self._found[index] = self._hosts(self.endpoints[index], answer)
        if not (self._had and self._unasked):
            self._update()
        self.settle()

    def _hosts(self, endpoint: Endpoint, answer: Answer) -> tuple[Endpoint, ...]:
        addresses = answer.addresses[:1] if self.logical else answer.addresses
        name = endpoint.hostname or endpoint.address.host
        return tuple(
            replace(endpoint, address=replace(endpoint.address, host=address), hostname=name)
            for address in addresses
        )

    def _update(self) -> None:
        """Every address once. Members keep their places, however the answer is ordered."""
        hosts: dict[object, Endpoint] = {}
        for found in self._found:
            for endpoint in found:
                hosts.setdefault((endpoint.address, endpoint.priority), endpoint)
        if self.logical and hosts:
            self.runtime.relocate(next(iter(hosts.values())), self.assignment.overprovisioning)
        elif not self.logical:
            places = [(host.endpoint.address, host.endpoint.priority) for host in self.runtime.hosts]
            kept = [hosts.pop(place) for place in places if place in hosts]
            self.runtime.update_hosts([*kept, *hosts.values()], self.assignment.overprovisioning)


class _Backoff:
    """Pauses after failures: full jitter under a doubling bound, or the refresh rate where nothing is configured (Envoy
    prepareDnsRefreshStrategy)."""

    def __init__(self, config: Cluster, chance: Callable[[], float]) -> None:
        self._config, self._chance = config, chance
        self._next = 0.0

    def next(self) -> float:
        """Seconds until the next try."""
        if self._config.dns_failure_refresh is None:
            return self._config.dns_refresh
        base, most = self._config.dns_failure_refresh
        bound = self._next or base
        self._next = min(2 * bound, most)
        return self._chance() * bound

    def reset(self) -> None:
        """It went well."""
        self._next = 0.0
