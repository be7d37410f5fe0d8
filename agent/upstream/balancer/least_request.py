"""Least request by the power of N choices (Envoy LEAST_REQUEST).

Equal weights: of N hosts drawn at random, the one with the fewest requests in flight. Different weights: earliest
deadline first, a host's weight divided by its requests in flight.
"""

from __future__ import annotations

from heapq import heapify, heapreplace

from agent.upstream.balancer.picker import Picker
from agent.upstream.host import Host


class LeastRequest(Picker):
    """See Picker."""

    __slots__ = ("_choices", "_deadlines", "_hosts", "_order")

    def __init__(self, hosts: list[Host], choices: int) -> None:
        self._hosts = hosts
        self._choices = max(choices, 2)
        self._order = len(hosts)
        self._deadlines: list[tuple[float, int, Host]] | None = None
        if len({host.weight for host in hosts}) > 1:
            self._deadlines = [(1.0 / host.weight, order, host) for order, host in enumerate(hosts)]
            heapify(self._deadlines)

    def pick(self, random: int, key: int | None) -> Host:
        """See Picker."""
        hosts = self._hosts
        count = len(hosts)
        if count == 1:
            return hosts[0]
        if self._deadlines is not None:
            deadline, _, host = self._deadlines[0]
            self._order += 1
            heapreplace(self._deadlines, (deadline + (host.active + 1) / host.weight, self._order, host))
            return host
        best = hosts[random % count]
        for draw in range(1, self._choices):
            other = hosts[(random >> (draw * 11 + 7)) % count]
            if other.active < best.active:
                best = other
        return best
