"""Which hosts are in rotation: priorities, overprovisioning, panic, locality weights (Envoy LoadBalancerBase).

Rule: computed when membership or health changes, never per request; a request only throws one die over the loads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from agent.table.cluster import Cluster, Locality
from agent.upstream.balancer import Picker
from agent.upstream.host import Host

MakePicker = Callable[[list[Host]], Picker]


@dataclass(frozen=True, slots=True)
class Rotation:
    """Pickers with cumulated shares of a hundred thousand; `only` when there is just one; `panic` for statistics."""

    shares: tuple[tuple[int, Picker], ...] = ()
    only: Picker | None = None
    panic: bool = False

    def picker(self, random: int) -> Picker | None:
        """The picker for a request with these random bits, None when there is no host at all."""
        if self.only is not None or not self.shares:
            return self.only
        die = (random >> 3) % 100_000
        for share, picker in self.shares:
            if die < share:
                return picker
        return self.shares[-1][1]


NOBODY: Final = Rotation()


def rotation(cluster: Cluster, hosts: Sequence[Host], overprovisioning: int, make: MakePicker) -> Rotation:
    """The rotation of a cluster's hosts as they are now."""
    levels: dict[int, list[Host]] = {}
    for host in hosts:
        levels.setdefault(host.endpoint.priority, []).append(host)
    if not levels:
        return NOBODY
    order = sorted(levels)
    health = [_health(levels[priority], overprovisioning) for priority in order]
    total = min(sum(health), 100.0)
    loads = _loads(health, total, order, levels)
    shares: list[tuple[int, Picker]] = []
    cumulated = 0.0
    panicked = False
    for priority, load in zip(order, loads, strict=True):
        if load <= 0:
            continue
        members = levels[priority]
        healthy = [host for host in members if host.healthy]
        if total < 100.0 and len(healthy) * 100.0 < cluster.panic_threshold * len(members):
            panicked = True
            healthy = [host for host in members if not host.endpoint.draining] or members
        if not healthy:
            continue
        for weight, group in _localities(cluster, members, healthy, overprovisioning):
            cumulated += load * weight
            shares.append((round(cumulated * 1000), make(group)))
    if not shares:
        return NOBODY
    return Rotation(tuple(shares), shares[0][1] if len(shares) == 1 else None, panicked)


def _health(hosts: list[Host], overprovisioning: int) -> float:
    """Per cent, overprovisioned."""
    return min(100.0, sum(host.healthy for host in hosts) * overprovisioning / len(hosts))


def _loads(health: list[float], total: float, order: list[int], levels: dict[int, list[Host]]) -> list[float]:
    """Per cent of the traffic for each priority; nobody healthy: by number of hosts (total panic)."""
    if total == 0:
        everybody = sum(len(levels[priority]) for priority in order)
        return [100.0 * len(levels[priority]) / everybody for priority in order]
    left = 100.0
    loads = []
    for share in health:
        load = min(left, share * 100.0 / total)
        left -= load
        loads.append(load)
    return loads


def _localities(
    cluster: Cluster, members: list[Host], healthy: list[Host], overprovisioning: int
) -> list[tuple[float, list[Host]]]:
    """Groups with their shares of one; a single group unless locality weights are in use."""
    if not cluster.lb_config.get("locality_weighted"):
        return [(1.0, healthy)]
    groups: dict[Locality, list[Host]] = {}
    for host in healthy:
        groups.setdefault(host.endpoint.locality, []).append(host)
    sizes: dict[Locality, int] = {}
    for host in members:
        sizes[host.endpoint.locality] = sizes.get(host.endpoint.locality, 0) + 1
    effective = {
        locality: group[0].endpoint.locality_weight
        * min(1.0, len(group) * overprovisioning / 100.0 / sizes[locality])
        for locality, group in groups.items()
    }
    total = sum(effective.values())
    if total <= 0:
        return [(1.0, healthy)]
    return [(weight / total, groups[locality]) for locality, weight in effective.items() if weight > 0]
