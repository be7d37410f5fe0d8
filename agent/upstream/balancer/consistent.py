"""Consistent hashing: ring (Ketama-like) and Maglev (Envoy RING_HASH, MAGLEV).

Rule: a request's key always finds the same host while the set of hosts is the same, and most keys keep theirs when it
changes, and it is the host that Envoy finds: the same hash of the same names in the same order. A request without a
key is spread at random.
"""

from __future__ import annotations

from bisect import bisect_left
from math import ceil

from agent.http.request import RANDOM_BITS
from agent.http.xxhash import xxhash64
from agent.upstream.balancer.picker import Picker
from agent.upstream.host import Host


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
        scale = min(ceil(lightest * minimum) / lightest, float(maximum))
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
        targets = [0.0] * len(entries)
        filled = turn = 0
        while filled < size:
            turn += 1
            for index, host in enumerate(entries):
                if turn * host.weight / heaviest < targets[index]:
                    continue
                targets[index] += 1.0
                slot = (offsets[index] + skips[index] * nexts[index]) % size
                while table[slot] is not None:
                    nexts[index] += 1
                    slot = (offsets[index] + skips[index] * nexts[index]) % size
                table[slot] = host
                nexts[index] += 1
                filled += 1
                if filled == size:
                    break
        self._table = [host for host in table if host is not None]

    def pick(self, random: int, key: int | None) -> Host:
        """See Picker."""
        return self._table[(random if key is None else key) % self._size]
