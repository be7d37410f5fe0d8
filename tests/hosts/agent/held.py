"""What one agent holds: its workers (tests/leftovers.py), and its host process's descriptors and tasks, each by what it is."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.leftovers import Held, of_pages, page

_OF_WORKERS = ("connections", "draining_chains", "loop ", "pools ", "descriptors ", "gauge ", "cycles ")
"""Not objects: configurations come and go in these tests, and what they are made of with them."""
_LISTENING = "0A"
_TO_ISTIOD = (
    "descriptor tcp to istiod",
    "task agent.host.admin.own_pages.OwnPages._attach",
    "task agent.host.control.xds_client.XdsClient._report_health",
    "task agent.host.control.xds_client.XdsClient._use_updates",
    "task wire.grpc.client.open_channel.<locals>.run",
    "task wire.http2.Http2Connection._keep_time",
    "task wire.http2.Http2Connection._read",
    "task wire.http2.Http2Connection._write",
)
"""What the connection of the one workload to istiod is made of: it comes and goes with istiod, so one of each is not counted."""


def of_agent(pid: int, admin: int, istiod: int) -> list[Held]:
    """`pid`: the host process's; `admin`, `istiod`: ports."""
    host = {f"descriptor {name}": count for name, count in _descriptors(pid, istiod).items()}
    tasks = json.loads(page(admin, "memory?tasks"))["tasks"]
    host |= {f"task {name}": count for name, count in tasks.items()}
    host |= {name: host[name] - 1 for name in _TO_ISTIOD if name in host}
    workers = [
        {name: count for name, count in held.items() if name.startswith(_OF_WORKERS)}
        for held in of_pages(admin)
    ]
    return [*workers, {f"host: {name}": count for name, count in host.items()}]


def resident(pid: int) -> int:
    """Bytes."""
    pages = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def _descriptors(pid: int, istiod: int) -> Counter[str]:
    sockets = dict(_sockets(pid, istiod))
    found: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since
            target = str(entry.readlink())
            inode = target.removeprefix("socket:[").removesuffix("]")
            kind = "file" if target.startswith("/") else target.partition(":[")[0]
            found[sockets.get(inode, kind)] += 1
    return found


def _sockets(pid: int, istiod: int) -> Iterator[tuple[str, str]]:
    """What each socket of the network namespace is, by inode."""
    for protocol in ("tcp", "tcp6", "udp", "udp6"):
        for row in _rows(pid, protocol):
            local, remote = (int(row[column].rpartition(":")[2], 16) for column in (1, 2))
            if row[3] == _LISTENING or protocol.startswith("udp"):
                yield row[9], f"{protocol} on {local}"
            else:
                yield row[9], f"{protocol} {'to istiod' if remote == istiod else 'connection'}"
    yield from ((row[9], "netlink") for row in _rows(pid, "netlink"))
    yield from ((row[6], "unix") for row in _rows(pid, "unix"))


def _rows(pid: int, table: str) -> list[list[str]]:
    with suppress(FileNotFoundError):  # no IPv6
        text = Path(f"/proc/{pid}/net/{table}").read_text(encoding="utf-8", errors="replace")
        return [line.split() for line in text.splitlines()[1:]]
    return []
