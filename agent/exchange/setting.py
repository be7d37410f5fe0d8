"""What one connection manager has compiled from its configuration, and the worker's services that its requests use.

Rule: made by the worker when a table is applied; an exchange reads it and changes nothing. `router` is the one field
that is replaced in place, when routes change and the listener does not; a request keeps the plan that it got.
Not for: anything about one request or one connection.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping

from mypy_extensions import trait

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


@trait
class Clock:
    """Time as the worker reads it."""

    now: float
    """Monotonic seconds of the event being handled."""

    @abstractmethod
    def wall(self) -> float:
        """Seconds since the epoch."""

    @abstractmethod
    def http_date(self) -> bytes:
        """For `date` fields (RFC 9110 section 5.6.7)."""

    @abstractmethod
    def timer(self, call: Callable[[], None]) -> Timer:
        """A timer that is not set."""


@trait
class Timer:
    """One deadline; see agent/worker/timers."""

    deadline: float

    @abstractmethod
    def set(self, deadline: float) -> None: ...

    @abstractmethod
    def cancel(self) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


class Setting:
    """See the module."""

    __slots__ = (
        "_silent",
        "clock", "clusters", "host_address", "intake", "listener", "logs", "manager", "normalise", "outgoing", "random",
        "raw_pool", "record", "rewrite", "router", "rq_active", "rq_http1", "rq_routed", "rq_total", "rx_bytes", "slots", "stats",
        "strip_envoy_headers", "tx_bytes", "upgrades",
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
        slots: list[int],
        clock: Clock,
        random: Callable[[], int],
        raw_pool: Callable[[Host], Pool],
        host_address: str = "",
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
        self.rq_total: int = stats.downstream_rq_total
        self.rq_active: int = stats.downstream_rq_active
        self.rq_http1: int = stats.downstream_rq_http1_total
        self.rq_routed: int = stats.rq_total
        self.rx_bytes: int = stats.downstream_cx_rx_bytes_total
        self.tx_bytes: int = stats.downstream_cx_tx_bytes_total
        """Slots that every request counts in, as compiled integers."""
        self.slots = slots
        self.clock = clock
        self.host_address = host_address
        """What this proxy says is its own address, where it makes requests itself."""
        self.raw_pool = raw_pool
        """A pool of one TCP connection, for a CONNECT that ends here."""
        self.random = random
        """RANDOM_BITS random bits."""
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
                slots=[0] * len(self.slots),
                clock=self.clock,
                random=self.random,
                raw_pool=self.raw_pool,
                host_address=self.host_address,
            )
        return self._silent


def _nothing(outcome: Outcome) -> None:
    """Record nothing."""
