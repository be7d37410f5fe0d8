"""A worker of `hostmesh-agent proxy` with several: a child that serves the bootstrap that its parent has read.

Rule: the conversation is that of `run` (remote), except that a configuration says no more than "begin".
Not for: the parent (agent.host.proxy.workers).
"""

from __future__ import annotations

import socket

from agent.limits.region import Shares
from agent.table.bootstrap import Bootstrap
from agent.table.build import Refused
from agent.table.errors import ConfigError
from agent.worker.control import Config
from agent.worker.remote import RemoteWorker
from agent.worker.worker import Worker


class ForkedWorker(RemoteWorker):
    """See the module."""

    added_via_api = False

    def __init__(
        self, sock: socket.socket, shares: Shares, bootstrap: Bootstrap, flush_seconds: float
    ) -> None:
        super().__init__(sock, shares)
        self._bootstrap = bootstrap
        self._flush_seconds = flush_seconds

    def _new_worker(self) -> Worker:
        return Worker(
            self._region,
            self._bootstrap.node.metadata,
            flush_seconds=self._flush_seconds,
            shares=self._shares,
        )

    def _apply(self, worker: Worker, config: Config) -> dict[str, tuple[Refused, ...]]:
        """A bootstrap is used as a whole or not at all."""
        for refused in worker.apply({"": self._bootstrap.table}).get("", ()):
            raise ConfigError(refused.path, refused.reason)
        return {}
