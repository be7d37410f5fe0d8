"""Round robin, weighted by earliest deadline first when weights differ (Envoy ROUND_ROBIN, EdfScheduler)."""

from __future__ import annotations

from heapq import heapify, heapreplace

from agent.upstream.balancer.picker import Picker
from agent.upstream.host import Host


class RoundRobin(Picker):
    """Equal weights: an index. Different weights: a heap of deadlines, so that a heavy host's turns are spread."""

    __slots__ = ("_at", "_deadlines", "_hosts", "_order")

    def __init__(self, hosts: list[Host], start: int) -> None:
        self._hosts = hosts
        self._at = start % len(hosts)
        self._order = 0
        self._deadlines: list[tuple[float, int, Host]] | None = None
        if len({host.weight for host in hosts}) > 1:
            turned = hosts[self._at :] + hosts[: self._at]
            self._deadlines = [(1.0 / host.weight, order, host) for order, host in enumerate(turned)]
            heapify(self._deadlines)
            self._order = len(hosts)

    def pick(self, random: int, key: int | None) -> Host:
        """See Picker."""
        deadlines = self._deadlines
        if deadlines is None:
            hosts = self._hosts
            at = self._at
            self._at = at + 1 if at + 1 < len(hosts) else 0
            return hosts[at]
        deadline, _, host = deadlines[0]
        self._order += 1
        heapreplace(deadlines, (deadline + 1.0 / host.weight, self._order, host))
        return host
