"""What a worker holds at this moment, counted: connections, pools, timers, descriptors, objects.

Rule: everything that a connection or a request brings to life is in one of these counts and leaves it with its end, without
the garbage collector's help: `cycles` are the objects that only a collection has freed, and there are none.
Counting looks at every object (some 20 ms): for the admin page and the tests, never for the data plane's own use.
Not for: statistics, which say what happened (agent/telemetry).
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.upstream.cluster import ClusterRuntime
from agent.worker.worker import Worker

_COUNTED = ("agent", "ssl", "_ssl", "socket", "h11r")
"""Top-level modules whose types are counted; `agent.host` is not: the admin pages are no part of the data plane."""


def holdings(worker: Worker) -> dict[str, Any]:
    """The counts, as JSON can say them."""
    before = objects()
    gc.collect()
    after = objects()
    spaces = worker.spaces
    return {
        "pid": os.getpid(),
        "connections": sum(space.connections() for space in spaces.values()),
        "draining_chains": sum(len(space.leaving) for space in spaces.values()),
        "loop": worker.reactor.holds(),
        "pools": pools(cluster for space in spaces.values() for cluster in space.clusters.values()),
        "descriptors": descriptors(),
        "objects": dict(after),
        "cycles": dict(before - after),
    }


def pools(clusters: Iterable[ClusterRuntime]) -> dict[str, int]:
    """The connections of all pools, and who waits for one."""
    found = {"idle": 0, "connecting": 0, "busy": 0, "waiting": 0}
    for cluster in clusters:
        for host in cluster.hosts:
            pool = host.pool
            found["idle"] += len(pool.idle)
            found["connecting"] += pool.connecting
            found["busy"] += pool.total - pool.connecting - len(pool.idle)
            found["waiting"] += len(pool.waiting)
    return found


def descriptors() -> dict[str, int]:
    """Open descriptors of this process by kind: `socket`, `pipe`, `anon_inode`, `file`."""
    found: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the listing's own descriptor
            target = str(entry.readlink())
            found["file" if target.startswith("/") else target.partition(":")[0]] += 1
    return dict(found)


def objects() -> Counter[str]:
    """Objects by type: those of the data plane, of TLS and of sockets. What was there when the worker settled is not seen."""
    found: Counter[str] = Counter()
    for kind, count in Counter(map(type, gc.get_objects())).items():
        module = kind.__module__
        if module.partition(".")[0] in _COUNTED and not module.startswith("agent.host"):
            found[f"{module}.{kind.__qualname__}"] += count
    return found
