"""The metrics port (15020): all workers' statistics for Prometheus. Not for: anything that changes or tells secrets."""

from __future__ import annotations

from collections.abc import Callable

import trio

from agent.host.admin.page import Page
from agent.telemetry.prometheus import CONTENT_TYPE, exposition
from agent.telemetry.reading import Statistics

_PATHS = ("/metrics", "/stats/prometheus")


class MetricsPages:
    """`/metrics` and `/stats/prometheus`: the counters of all workers; `/healthz/ready` as on 15021."""

    def __init__(self, statistics: Callable[[], Statistics], ready: Callable[[], bool]) -> None:
        self._statistics = statistics
        self._ready = ready

    async def respond(self, method: str, path: str, body: bytes) -> Page:
        """One answer; `path` may have a query."""
        await trio.lowlevel.checkpoint()
        page = path.partition("?")[0]
        if method not in ("GET", "HEAD"):
            return Page(405, "text/plain", b"GET or HEAD\n")
        if page in _PATHS:
            return Page(200, CONTENT_TYPE, exposition(self._statistics(), used_only=True).encode())
        if page == "/healthz/ready":
            return (
                Page(200, "text/plain", b"ready\n")
                if self._ready()
                else Page(503, "text/plain", b"not ready\n")
            )
        return Page(404, "text/plain", b"/metrics, /stats/prometheus or /healthz/ready\n")
