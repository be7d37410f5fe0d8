"""What everything in a worker shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from agent.limits.region import Shares
from agent.telemetry.access_log import Sinks
from agent.telemetry.series import Recorder
from agent.upstream.cluster import ClusterRuntime
from agent.worker.reactor import Reactor


@dataclass(frozen=True, slots=True)
class Services:
    """Loop, statistics, logs, chance, names."""

    reactor: Reactor
    recorder: Recorder
    sinks: Sinks
    random: Callable[[], int]
    """RANDOM_BITS random bits."""
    resolve: Callable[[ClusterRuntime, Callable[[], None]], None]
    """Begin (or go on) to resolve the names of a DNS cluster; the second argument is called after the first answer."""
    forget: Callable[[ClusterRuntime], None]
    """End that: the cluster has gone."""
    shares: Shares | None = None
    """What limits is counted with the host's other workers; None where there are none."""
    ports_may_wait: bool = False
    """A listener whose port cannot be had waits for it instead of failing the table (see Space.bind_waiting)."""
