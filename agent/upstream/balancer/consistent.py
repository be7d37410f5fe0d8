"""Consistent hashing: ring (Ketama-like) and Maglev (Envoy RING_HASH, MAGLEV).

Rule: a request's key always finds the same host while the set of hosts is the same, and most keys keep theirs when it
changes, and it is the host that Envoy finds: the same hash of the same names in the same order. A request without a
key is spread at random.
"""

from __future__ import annotations

from bisect import bisect_left
from heapq import heapify, heapreplace
from math import ceil
from typing import Final

from agent.http.request import RANDOM_BITS
from agent.http.xxhash import xxhash64
from agent.upstream.balancer.picker import Picker
from agent.upstream.host import Host

MOST_POINTS: Final = 1 << 18
"""The largest ring or table. It is computed at every change of endpoints or health, 3 µs a point, while all else waits."""


def key_of(host: Host, by_name: bool) -> bytes:
    """What stands for a host: its metadata's `hash_key`, its hostname if that is wanted, its address."""
    told = host.endpoint.metadata.get("envoy.lb", {}).get("hash_key")
    if isinstance(told, str) and told:
        return told.encode()
    return (host.endpoint.hostname if by_name else host.name).encode()


class RingHash(Picker):
    """A sorted ring of points; a key belongs to the next point."""

    __slots__ = ("_hosts", "_points")

    def __init__(self, hosts: list[Host], minimum: int, maximum: int, *, by_name: bool = False) -> None:
        total = sum(host.weight for host in hosts)
        lightest = min(host.weight for host in hosts) / total
        scale = min(ceil(lightest * minimum) / lightest, float(min(maximum, MOST_POINTS)))
        points: list[tuple[int, Host]] = []
        target = 0.0
        for host in hosts:
            key = key_of(host, by_name)
            target += scale * host.weight / total
            number = 0
            while len(points) < target:
                points.append((xxhash64(b"%s_%d" % (key, number)), host))
                number += 1
        points.sort(key=lambda point: point[0])
        self._points = [point for point, _ in points]
        self._hosts = [host for _, host in points]

    def pick(self, random: int, key: int | None) -> Host:
        """See Picker."""
        at = bisect_left(self._points, random << (64 - RANDOM_BITS) if key is None else key)
        return self._hosts[at if at < len(self._hosts) else 0]


class Maglev(Picker):
    """Google's Maglev table: every host fills slots by its own permutation, in turns by weight."""

    __slots__ = ("_size", "_table")

    def __init__(self, hosts: list[Host], size: int, *, by_name: bool = False) -> None:
        self._size = size
        entries = sorted(hosts, key=lambda host: key_of(host, by_name))
        keys = [key_of(host, by_name) for host in entries]
        offsets = [xxhash64(key) % size for key in keys]
        skips = [xxhash64(key, 1) % (size - 1) + 1 for key in keys]
        heaviest = max(host.weight for host in entries)
        table: list[Host | None] = [None] * size
        nexts = [0] * len(entries)
        taken = [0] * len(entries)
        # Envoy goes round all hosts in turns, and passes over those whose weight has no slot due. Here each host waits
        # in a heap for its next turn, so that many light hosts beside a heavy one cost nothing.
        due = [(1, index) for index in range(len(entries))]
        heapify(due)
        for _ in range(size):
            turn, index = due[0]
            slot = (offsets[index] + skips[index] * nexts[index]) % size
            while table[slot] is not None:
                nexts[index] += 1
                slot = (offsets[index] + skips[index] * nexts[index]) % size
            table[slot] = entries[index]
            nexts[index] += 1
            taken[index] += 1
            heapreplace(due, (_next_turn(turn, entries[index].weight, heaviest, taken[index]), index))
        self._table = [host for host in table if host is not None]

    def pick(self, random: int, key: int | None) -> Host:
        """See Picker."""
        return self._table[(random if key is None else key) % self._size]


def _next_turn(turn: int, weight: int, heaviest: int, taken: int) -> int:
    """The first turn after this one in which `turn * weight / heaviest` reaches what the host has taken."""
    after = max(turn + 1, taken * heaviest // weight)
    while after * weight / heaviest < taken:
        after += 1
    return after
