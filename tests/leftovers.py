"""Nothing is left: what a worker holds after a case is what it held before.

`Leftovers(read)` remembers what `read` says now (agent.worker.holdings, as the admin page `/memory?workers` shows it, and the
gauges of `/stats`); `check()` waits until it says so again, and fails with the difference. Objects are compared by type, so
a new type that leaks is found without anybody naming it here; what may stay is named in KEPT, with its bound.
Objects that only the garbage collector frees are a fault too: `cycles`.
"""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any

Held = dict[str, int]
"""A count by its name."""

KEPT = {
    "objects agent.http.request.PeerIdentity": 64,  # certificates.identity remembers what it has read
    "objects agent.worker.tls_sessions._Kept": 64,  # one a host
    "objects _ssl.SSLSession": 64,
    "objects agent.exchange.setting.Setting": 8,  # the silent one of a connection manager that mirrors
    "objects agent.table.cluster.Cluster": 64,  # substitution._named: the names that headers were made with
    "objects agent.table.cluster.Endpoint": 64,  # destinations of ORIGINAL_DST clusters, for a while
    "objects agent.table.listener.Address": 64,
    "objects agent.upstream.host.Host": 64,
    "objects agent.upstream.pool.Pool": 64,
    "objects agent.upstream.priorities.Rotation": 64,  # one for each priority and subset, made with the first pick
    "objects agent.upstream.balancer.round_robin.RoundRobin": 64,
    "objects agent.filters.token_bucket.Bucket": 64,  # one for each value that a rate limit saw; the filter bounds them
    "objects agent.http.request.LocalReply": 64,  # answers that filters make once
    "host: descriptor netlink": 1,  # asks conntrack where DNS questions went, opened with the first that is not of the mesh
    "loop timers": 1,  # statistics are published with a delay while somebody reads them
}
"""What the first use makes and keeps, not each: how many more than before the cases of one test may bring."""
_IGNORED = ("pid", "loop timer_places")
"""Places of cancelled timers go when they are the majority: memory without an owner."""
_GAUGES = ("cx_active", "rq_active", "pending_active", "_buffered", "_open", "remaining")
"""How the names of gauges end that a connection or a request raises."""
_PATIENCE = 10.0


class Leftovers:
    """See the module."""

    def __init__(self, read: Callable[[], list[Held]]) -> None:
        self._read = read
        self._before = self._settled()

    def check(self) -> None:
        """Fails with what is more than it was. (Less is well: connections of before may have ended.)"""
        deadline = time.monotonic() + _PATIENCE
        cycles: Held = {}
        while True:
            now = self._read()
            for held in now:
                cycles |= {name: count for name, count in held.items() if name.startswith("cycles ")}
            different = [
                f"worker {number}: {name}: {before.get(name, 0)} before, {held.get(name, 0)} after"
                for number, (before, held) in enumerate(zip(self._before, now, strict=True))
                for name in sorted(before.keys() | held.keys())
                if not _as_before(name, before.get(name, 0), held.get(name, 0))
            ]
            if not different:
                break
            assert time.monotonic() < deadline, "left behind:\n" + "\n".join(different)
            time.sleep(0.05)
        assert not cycles, f"freed by the garbage collector only: {cycles}"

    def _settled(self) -> list[Held]:
        """What is held once two looks in a row agree: connections that asked whether somebody listens have gone."""
        deadline = time.monotonic() + _PATIENCE
        last = self._read()
        while True:
            time.sleep(0.05)
            now = self._read()
            if [_comparable(held) for held in now] == [_comparable(held) for held in last]:
                return now
            assert time.monotonic() < deadline, "the worker does not come to rest before the case"
            last = now


def of_proxy(admin_port: int) -> Leftovers:
    """Of a proxy whose admin pages are, or soon will be, on this loopback port."""
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:
        with suppress(urllib.error.URLError):
            page(admin_port, "ready")
            break
        time.sleep(0.02)
    return Leftovers(lambda: of_pages(admin_port))


def _as_before(name: str, before: int, after: int) -> bool:
    if name in _IGNORED or name.startswith("cycles "):
        return True
    return after <= before + KEPT.get(name, 0)


def _comparable(held: Held) -> Held:
    return {name: count for name, count in held.items() if name not in _IGNORED and name[:7] != "cycles "}


def flat(holdings: dict[str, Any]) -> Held:
    """`agent.worker.holdings` with one level of names."""
    found: Held = {}
    for name, value in holdings.items():
        if isinstance(value, dict):
            found |= {f"{name} {inner}": count for inner, count in value.items()}
        else:
            found[name] = value
    return found


def of_pages(port: int) -> list[Held]:
    """What each worker holds, and the gauges of all."""
    held = [flat(one) for one in json.loads(page(port, "memory?workers"))["workers"]]
    gauges = {}
    for line in page(port, "stats?type=Gauges").splitlines():
        name, _, value = line.rpartition(": ")
        if name.endswith(_GAUGES) and not name.startswith(("listener.admin", "http.admin")):
            gauges[f"gauge {name}"] = int(value)
    return [*held, gauges]


def page(port: int, path: str) -> str:
    """One admin page."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=10) as answer:
        return str(answer.read().decode())
