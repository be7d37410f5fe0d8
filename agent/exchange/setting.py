"""What one connection manager has compiled from its configuration, and the worker's services that its requests use.

Rule: made by the worker when a table is applied; an exchange reads it and changes nothing. `router` is the one field
that is replaced in place, when routes change and the listener does not; a request keeps the plan that it got.
Not for: anything about one request or one connection.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from agent.exchange.local_reply import Rewrite
from agent.http.intake import Intake
from agent.http.outgoing import Outgoing
from agent.routing.compile import Router
from agent.routing.normalise import Normaliser
from agent.table.listener import HttpManager, Listener
from agent.telemetry.outcome import Outcome
from agent.telemetry.scopes import HttpStats
from agent.upstream.cluster import ClusterRuntime
from agent.upstream.host import Host
from agent.upstream.pool import Pool


class Clock(Protocol):
    """Time as the worker reads it."""

    now: float
    """Monotonic seconds of the event being handled."""

    def wall(self) -> float:
        """Seconds since the epoch."""

    def http_date(self) -> bytes:
        """For `date` fields (RFC 9110 section 5.6.7)."""

    def timer(self, call: Callable[[], None]) -> Timer:
        """A timer that is not set."""


class Timer(Protocol):
    """One deadline; see agent/worker/timers."""

    deadline: float

    def set(self, deadline: float) -> None: ...

    def cancel(self) -> None: ...


class Setting:
    """See the module."""

    __slots__ = (
        "_silent",
        "clock",
        "clusters",
        "intake",
        "listener",
        "logs",
        "manager",
        "normalise",
        "outgoing",
        "random",
        "raw_pool",
        "record",
        "rewrite",
        "router",
        "slots",
        "stats",
        "strip_envoy_headers",
        "upgrades",
    )  # fmt: skip

    def __init__(
        self,
        manager: HttpManager,
        listener: Listener,
        router: Router,
        clusters: Mapping[str, ClusterRuntime],
        *,
        intake: Intake,
        normalise: Normaliser,
        outgoing: Outgoing,
        rewrite: Rewrite | None,
        logs: tuple[Callable[[Outcome], None], ...],
        record: Callable[[Outcome], None],
        stats: HttpStats,
        slots: memoryview,
        clock: Clock,
        random: Callable[[], int],
        raw_pool: Callable[[Host], Pool],
    ) -> None:
        self.manager = manager
        self.listener = listener
        self.router = router
        self.clusters = clusters
        self.intake = intake
        self.normalise = normalise
        self.outgoing = outgoing
        self.rewrite = rewrite
        self.logs = logs
        self.record = record
        self.stats = stats
        self.slots = slots
        self.clock = clock
        self.raw_pool = raw_pool
        """A pool of one TCP connection, for a CONNECT that ends here."""
        self.random = random
        """64 random bits."""
        self.strip_envoy_headers = manager.router is not None and manager.router.suppress_envoy_headers
        self._silent: Setting | None = None
        self.upgrades = {upgrade.type.lower().encode(): upgrade.enabled for upgrade in manager.upgrades}

    def silent(self) -> Setting:
        """The same for requests that nobody hears of (mirrors): no record, no log."""
        if self._silent is None:
            self._silent = Setting(
                self.manager,
                self.listener,
                self.router,
                self.clusters,
                intake=self.intake,
                normalise=self.normalise,
                outgoing=self.outgoing,
                rewrite=None,
                logs=(),
                record=_nothing,
                stats=self.stats,
                slots=memoryview(bytearray(len(self.slots) * 8)).cast("q"),
                clock=self.clock,
                random=self.random,
                raw_pool=self.raw_pool,
            )
        return self._silent


def _nothing(outcome: Outcome) -> None:
    """Record nothing."""
