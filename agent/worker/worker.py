"""A worker: the reactor, and the spaces of the workloads that it serves.

Rule: runs until drained or cancelled, in one process with nothing but its own nursery; applying a table is all or nothing
for each space. Not for: where tables come from (standalone, remote, forked).
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import trio

from agent.http.request import RANDOM_BITS
from agent.limits.region import Shares
from agent.table.build import Refused
from agent.table.listener import Direction
from agent.table.snapshot import Table
from agent.telemetry.access_log import FLUSH_SECONDS, Sinks
from agent.telemetry.series import Recorder
from agent.telemetry.stats import StatsRegion
from agent.upstream.cluster import ClusterRuntime
from agent.worker.connect import Dialer
from agent.worker.dns import Resolver
from agent.worker.memory import give_back
from agent.worker.reactor import Reactor
from agent.worker.services import Services
from agent.worker.space import Space

_SWEEP = 1.0
_BIND_AGAIN = 1.0
"""Between two tries to listen on a port that is taken."""
_PUBLISHING = 50.0
"""How many times longer than it takes to publish statistics the worker does other things before it does so again."""
_PUBLISH_SECONDS = 0.001
_GC_THRESHOLDS = (50_000, 50, 100)
"""Requests make few cycles: collect rarely, and never what was there at the start."""


class Publisher:
    """Lets readers see the worker's statistics: at once when it is at rest, and never for more than a part of its time."""

    def __init__(self, reactor: Reactor, region: StatsRegion) -> None:
        self._reactor = reactor
        self._region = region
        self._timer = reactor.timer(lambda: None)
        """Ends the rest, which begins again with `publish`."""
        self._not_before = 0.0
        self._seen = 0

    def publish(self) -> None:
        """If anything can have changed: now, or when it is time again."""
        turns = self._reactor.turns
        if turns == self._seen:
            return
        began = time.monotonic()
        if began < self._not_before:
            self._timer.set(self._not_before)
            return
        self._seen = turns
        self._region.publish()
        took = time.monotonic() - began
        self._not_before = began + max(took * _PUBLISHING, _PUBLISH_SECONDS)


class Worker:
    """See the module. Use inside `run`: `apply` needs its nursery."""

    def __init__(
        self,
        region: StatsRegion | None = None,
        node_metadata: Mapping[str, Any] | None = None,
        *,
        mark: bool = False,
        flush_seconds: float = FLUSH_SECONDS,
        shares: Shares | None = None,
        ports_may_wait: bool = False,
    ) -> None:
        """`shares`: what is counted with the host's other workers, if there are any. `ports_may_wait`: a listener whose
        port is taken is opened as soon as it is free, instead of failing the table."""
        self.reactor = Reactor()
        self._shares = shares
        self._ports_may_wait = ports_may_wait
        self.on_listening: Callable[[], None] = lambda: None
        """Called when listeners were opened, or could not be, after their table was applied."""
        self._flush_seconds = flush_seconds
        """Between two writes of the access logs."""
        self.recorder = Recorder(region, node_metadata)
        self._recorders: dict[str, Recorder] = {}
        self.sinks = Sinks()
        self.dialer = Dialer(self.reactor, mark=mark)
        self.spaces: dict[str, Space] = {}
        self._leaving: list[Space] = []
        """Of workloads that are no more, until their connections have ended."""
        self.drained = trio.Event()
        """Set once a drain is over."""
        self._services: Services | None = None
        self._resolver: Resolver | None = None
        self._settled = False
        self._draining = False

    async def run(self, task_status: trio.TaskStatus[Worker] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled."""
        draw = random.SystemRandom().getrandbits(64)
        bits = random.Random(draw).getrandbits  # noqa: S311 (splits and request ids, no secrets)
        async with trio.open_nursery() as nursery:
            self._resolver = Resolver(self.reactor, nursery, random.random)
            self._services = Services(
                self.reactor, self.recorder, self.sinks, partial(bits, RANDOM_BITS), self._resolver.resolve,
                self._resolver.forget, ports_may_wait=self._ports_may_wait,
            )  # fmt: skip
            self._every(self._flush_seconds, self.sinks.flush)
            self._every(_SWEEP, self._sweep)
            if self._ports_may_wait:
                self._every(_BIND_AGAIN, self._bind_waiting)
            self.recorder.slots[self.recorder.server.live] = 1
            self.reactor.at_rest = Publisher(self.reactor, self.recorder.region).publish
            task_status.started(self)
            try:
                await self.reactor.run()
            finally:
                for space in (*self.spaces.values(), *self._leaving):
                    space.drain()
                    space.close()
                self.sinks.close()
                self.reactor.close()
                nursery.cancel_scope.cancel()

    def apply(self, tables: Mapping[str, Table]) -> dict[str, tuple[Refused, ...]]:
        """Take one table for each workload; spaces without one drain and end. What cannot be used of each, where there is
        anything. Raises as Space.apply, nothing changed in that space."""
        assert self._services is not None, "the worker does not run"
        refused: dict[str, tuple[Refused, ...]] = {}
        for key, table in tables.items():
            space = self.spaces.get(key)
            if space is None:
                space = Space(self._services_of(key), self.dialer)
                refused[key] = space.apply(table)
                self.spaces[key] = space
            elif space.table is not table:
                refused[key] = space.apply(table)
        for key in [key for key in self.spaces if key not in tables]:
            self._leave(key)
        spaces = (*self.spaces.values(), *self._leaving)
        self.sinks.keep_only(log for space in spaces for log in space.access_logs())
        for recorder in (self.recorder, *self._recorders.values()):
            recorder.forget_configuration()
        slots = self.recorder.slots
        slots[self.recorder.server.config_applied] += 1
        gc.collect()
        if not self._settled:
            # Once: what is frozen is never collected, and clusters that leave later are cycles.
            self._settled = True
            gc.freeze()
            gc.set_threshold(*_GC_THRESHOLDS)
            give_back()
        return {key: found for key, found in refused.items() if found}

    def _leave(self, key: str) -> None:
        """A workload is no more."""
        space = self.spaces.pop(key)
        self._recorders.pop(key, None)
        self._leaving.append(space)
        space.leave(partial(self._leaving.remove, space))

    def describe(self, key: str, node_metadata: Mapping[str, Any], principal: str) -> None:
        """Whose side a workload's metrics are (metadata in Istio's keys, SPIFFE id); before its first table."""
        self._recorders[key] = Recorder(self.recorder.region, node_metadata, principal=principal)

    def listening(self) -> set[int]:
        """The ports with a listening socket on every address that the tables name."""
        spaces = self.spaces.values()
        ports = {
            key[1]
            for space in spaces
            for key, acceptor in space.acceptors.items()
            if not key[2] and acceptor.accepting
        }
        return ports - {key[1] for space in spaces for key in space.waiting}

    def waiting(self) -> dict[str, str]:
        """The addresses that cannot be listened on at present, with the reason."""
        return {
            path or f"{host}:{port}": reason
            for space in self.spaces.values()
            for (host, port, path), reason in space.waiting.items()
        }

    def _bind_waiting(self) -> None:
        changed = [space.bind_waiting() for space in self.spaces.values()]
        if any(changed):
            self.on_listening()

    def _services_of(self, key: str) -> Services:
        assert self._services is not None
        return replace(
            self._services,
            recorder=self._recorders.get(key, self.recorder),
            shares=None if self._shares is None else self._shares.of(key),
        )

    async def drain(self, seconds: float) -> None:
        """Accept no more, let connections finish for so long at most, then end `run`."""
        self.reactor.call(self._drain_spaces)
        with trio.move_on_after(seconds):
            while any(space.connections() for space in (*self.spaces.values(), *self._leaving)):  # noqa: ASYNC110 (the reactor has no events)
                await trio.sleep(0.05)
        self.drained.set()
        self.reactor.stop()

    def drain_listeners(self, *, graceful: float, inbound_only: bool, stop: bool) -> None:
        """Accept no more; the worker goes on. `graceful`: first, for so many seconds, everything is accepted and answered with
        `connection: close`; without `stop` that is all (Envoy /drain_listeners with graceful, inboundonly, skip_exit)."""
        directions = (Direction.INBOUND,) if inbound_only else tuple(Direction)
        if not graceful:
            self.reactor.call(partial(self._each_space, Space.stop_listeners, directions))
            return
        if self._draining:
            return  # Envoy too ignores a second one
        self._draining = True
        self.reactor.call(partial(self._each_space, Space.begin_drain, directions))
        if stop:
            timer = self.reactor.timer(partial(self._each_space, Space.stop_listeners, directions))
            self.reactor.call(lambda: timer.set(self.reactor.now + graceful))

    def fail_health_checks(self, failing: bool) -> None:
        """Ask clients for other connections until it is taken back (Envoy /healthcheck/fail)."""
        self.reactor.call(partial(self._each_space, Space.fail_health_checks, failing))

    def _each_space(self, act: Callable[[Space, Any], None], argument: Any) -> None:
        for space in self.spaces.values():
            act(space, argument)

    def _drain_spaces(self) -> None:
        for space in self.spaces.values():
            space.drain()

    def _every(self, seconds: float, call: Any) -> None:
        """Call again and again on the reactor's timers."""
        reactor = self.reactor

        def turn() -> None:
            call()
            timer.set(reactor.now + seconds)

        timer = reactor.timer(turn)
        timer.set(reactor.now + seconds)

    def _sweep(self) -> None:
        """Outlier detection's intervals, and ORIGINAL_DST hosts that nobody needs."""
        now = self.reactor.now
        for space in self.spaces.values():
            for cluster in space.clusters.values():
                if cluster.config.discovery == "original_dst":
                    cluster.forget_idle_destinations()
                if cluster.detector is not None:
                    self._sweep_outliers(cluster, now)

    def _sweep_outliers(self, cluster: ClusterRuntime, now: float) -> None:
        detector = cluster.detector
        assert detector is not None
        if detector.due(now):
            changed = detector.sweep(cluster.hosts, now, random.getrandbits(7) % 100)
            cluster.count_outliers()
            if changed:
                cluster.rebuild()
