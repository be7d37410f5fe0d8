"""Consistent hashing: ring (Ketama-like) and Maglev (Envoy RING_HASH, MAGLEV).

Rule: a request's key always finds the same host while the set of hosts is the same, and most keys keep theirs when it
changes. A request without a key is spread at random. The hash is BLAKE2b where Envoy has xxHash: the same key may go to
another host than with Envoy, which no configuration can see.
"""

from __future__ import annotations

from bisect import bisect_left
from hashlib import blake2b

from agent.http.request import RANDOM_BITS
from agent.upstream.balancer.picker import Picker
from agent.upstream.host import Host


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


class RingHash(Picker):
    """A sorted ring of points; a key belongs to the next point."""

    __slots__ = ("_hosts", "_points")

    def __init__(self, hosts: list[Host], minimum: int, maximum: int) -> None:
        total = sum(host.weight for host in hosts)
        lightest = min(host.weight for host in hosts) / total
        scale = min(-(-lightest * minimum // 1) / lightest, float(maximum))
        points: list[tuple[int, Host]] = [
            (_hash(f"{host.name}_{number}"), host)
            for host in hosts
            for number in range(max(1, round(scale * host.weight / total)))
        ]
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

    def __init__(self, hosts: list[Host], size: int) -> None:
        self._size = size
        entries = sorted(hosts, key=lambda host: host.name)
        offsets = [_hash(f"{host.name}#offset") % size for host in entries]
        skips = [_hash(f"{host.name}#skip") % (size - 1) + 1 for host in entries]
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
