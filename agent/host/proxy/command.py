"""`hostmesh-agent proxy` once its arguments are read: the data plane and its admin port in a process of their own.

Rule: what the command line needs for people (15 MB) is not in memory for the life of a proxy, so the command
replaces itself by `python -m agent.host.proxy CONFIG WORKERS FLUSH_MSEC`. Not for: traffic (agent.worker.standalone,
agent.worker.forked).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def replace_this_process(config: Path, workers: int, flush_msec: int) -> None:
    """Become the proxy; does not return. The process id stays, for who supervises it."""
    os.execv(  # noqa: S606 (our own interpreter and module)
        sys.executable,
        [sys.executable, "-P", "-m", "agent.host.proxy", str(config), str(workers), str(flush_msec)],
    )


def main() -> None:
    """Serve until told to stop."""
    from agent.worker import standalone

    config, workers, flush_seconds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]) / 1000
    bootstrap = standalone.read(config)
    if workers > 1:
        from agent.host.proxy import workers as proxy_workers

        proxy_workers.run(config, bootstrap, workers, flush_seconds)
    else:
        from agent.host.proxy import admin as proxy_admin

        standalone.run(bootstrap, proxy_admin.admin_of(config), flush_seconds=flush_seconds)
