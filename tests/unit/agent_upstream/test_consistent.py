"""Rings and tables cost what their size says, whatever the weights, and are Envoy's."""

from __future__ import annotations

import time

from agent.http.xxhash import xxhash64
from agent.table.cluster import Endpoint
from agent.table.listener import Address
from agent.upstream.balancer.consistent import MOST_POINTS, Maglev, RingHash, key_of
from agent.upstream.host import Host


def hosts(*weights: int) -> list[Host]:
    """One host for each weight."""
    return [
        Host(Endpoint(Address(f"10.0.{number >> 8}.{number & 255}", 80), weight=weight))
        for number, weight in enumerate(weights)
    ]


def in_turns(members: list[Host], size: int) -> list[Host | None]:
    """Envoy's MaglevTable, word for word: all hosts, turn by turn."""
    entries = sorted(members, key=lambda host: key_of(host, False))
    keys = [key_of(host, False) for host in entries]
    offsets = [xxhash64(key) % size for key in keys]
    skips = [xxhash64(key, 1) % (size - 1) + 1 for key in keys]
    heaviest = max(host.weight for host in entries)
    table: list[Host | None] = [None] * size
    nexts, targets, turn = [0] * len(entries), [0.0] * len(entries), 0
    while None in table:
        turn += 1
        for index, host in enumerate(entries):
            if turn * host.weight / heaviest < targets[index] or None not in table:
                continue
            targets[index] += 1.0
            while table[slot := (offsets[index] + skips[index] * nexts[index]) % size] is not None:
                nexts[index] += 1
            table[slot] = host
            nexts[index] += 1
    return table


def test_a_maglev_table_is_envoys_for_all_weights() -> None:
    for weights in ((1, 1, 1), (1, 2, 3), (7, 1, 1000), (5,), (3, 3, 2, 2, 1), (999, 1000, 1001)):
        members = hosts(*weights)
        assert Maglev(members, 509)._table == in_turns(members, 509), weights


def test_many_light_hosts_beside_a_heavy_one_cost_no_more_than_the_table() -> None:
    members = hosts(1 << 30, *[1] * 20_000)
    began = time.process_time()
    Maglev(members, 65537)
    assert time.process_time() - began < 5.0  # all hosts in all turns: minutes


def test_a_ring_of_extreme_weights_is_bounded() -> None:
    ring = RingHash(hosts(1, 1 << 31), 1024, 8 << 20)
    assert len(ring._points) <= MOST_POINTS + 2
