"""What the admin pages ask of a worker, or have it do.

Rule: the same in the worker's own process (`proxy` with one worker) and over the socketpair (all others); what is
unknown is answered with None. Not for: configuration, the end (remote).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from agent.upstream.view import cluster_view
from agent.worker.holdings import holdings
from agent.worker.worker import Worker

CLUSTERS = "clusters"
CONNECTIONS = "connections"
HOLDINGS = "holdings"
DRAIN_LISTENERS = "drain_listeners"
FAIL_HEALTH_CHECKS = "fail_health_checks"
RESET_COUNTERS = "reset_counters"
REOPEN_LOGS = "reopen_logs"
SET_LEVEL = "set_level"


def obey(worker: Worker, what: str, arguments: Mapping[str, Any], *, added_via_api: bool) -> Any:
    """The answer, which JSON can say. An order's is what went wrong, a text each."""
    if what == CLUSTERS:
        return [
            cluster_view(cluster, added_via_api=added_via_api)
            for space in worker.spaces.values()
            for cluster in space.clusters.values()
        ]
    if what == CONNECTIONS:
        return {key: space.connections() for key, space in worker.spaces.items()}
    if what == HOLDINGS:
        return [holdings(worker)]
    if what == DRAIN_LISTENERS:
        worker.drain_listeners(
            graceful=float(arguments.get("graceful", 0.0)),
            inbound_only=bool(arguments.get("inbound_only")),
            stop=bool(arguments.get("stop", True)),
        )
        return []
    if what == FAIL_HEALTH_CHECKS:
        worker.fail_health_checks(bool(arguments["failing"]))
        return []
    if what == RESET_COUNTERS:
        worker.recorder.region.reset_counters()
        return []
    if what == REOPEN_LOGS:
        return [str(error) for error in worker.sinks.reopen()]
    if what == SET_LEVEL:
        logging.getLogger(str(arguments["logger"])).setLevel(int(arguments["level"]))
        return []
    return None
