"""`hostmesh-agent proxy` once its arguments are read: the data plane and its admin port in a process of their own.

Rule: what the command line needs for people (15 MB) is not in memory for the life of a proxy, so the command
replaces itself by `python -m agent.host.proxy CONFIG WORKERS FLUSH_MSEC`; so does a proxy that begins anew, with what was
before as a fourth argument. Not for: traffic (agent.worker.standalone,
agent.worker.forked).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def replace_this_process(config: Path, workers: int, flush_msec: int, *former: str) -> None:
    """Become the proxy; does not return. The process id stays, for who supervises it."""
    os.execv(  # noqa: S606 (our own interpreter and module)
        sys.executable,
        [sys.executable, "-P", "-m", "agent.host.proxy", str(config), str(workers), str(flush_msec), *former],
    )


def main() -> None:
    """Serve until told to stop."""
    from agent.worker import standalone

    config, workers, flush_msec = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    bootstrap = standalone.read(config)
    if workers > 1:
        from agent.host.proxy import workers as proxy_workers

        former = proxy_workers.Former.of_text(sys.argv[4]) if len(sys.argv) > 4 else proxy_workers.Former()
        again = proxy_workers.run(config, bootstrap, workers, flush_msec / 1000, former)
        if again is not None:
            replace_this_process(config, workers, flush_msec, again.text())
    else:
        from agent.host.proxy import admin as proxy_admin

        standalone.run(bootstrap, proxy_admin.admin_of(config), flush_seconds=flush_msec / 1000)
