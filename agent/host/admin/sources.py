"""What the admin pages read, as callables that their owner provides.

Rule: data comes in as plain values; a source that is not given makes its page empty, never an error.
Not for: formatting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from google.protobuf.message import Message

from agent.telemetry.reading import Statistics


@dataclass(frozen=True, slots=True)
class Resource:
    """One xDS resource in use: `body` is a serialised google.protobuf.Any."""

    name: str
    version: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Certificates:
    """One workload's certificate chain and trusted roots, both PEM; never a key."""

    name: str
    chain_pem: bytes
    roots_pem: bytes


Resources: TypeAlias = Mapping[str, Sequence[Resource]]
"""By type URL."""
Action: TypeAlias = Callable[[Mapping[str, str]], Awaitable[None]]
"""Gets the parameters of the page."""


async def _nobody(what: str) -> list[Any]:
    return []


async def _nothing(logger: str, level: int) -> None:
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sources:
    """Where the pages' contents come from."""

    statistics: Callable[[], Statistics] = Statistics
    ready: Callable[[], bool] = lambda: True
    """May traffic come (what /ready and 15021 say)?"""
    draining: Callable[[], bool] = lambda: False
    query: Callable[[str], Awaitable[list[Any]]] = _nobody
    """Ask every worker: `clusters` gives one list of cluster statuses a worker (agent.upstream.view)."""
    resources: Callable[[str], Resources] = lambda workload: {}
    """Resources that came by xDS, of one workload (`namespace/service`) or of all (empty)."""
    bootstrap: Callable[[], Message | None] = lambda: None
    """envoy.config.bootstrap.v3.Bootstrap, where there is one."""
    certificates: Callable[[], Sequence[Certificates]] = tuple
    runtime: Sequence[tuple[str, Mapping[str, Any]]] = ()
    """Layers of the runtime, lowest first: name, and what it sets."""
    node_id: str = ""
    started: float = 0.0
    """Seconds since the epoch."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """command_line_options of /server_info."""
    set_level: Callable[[str, int], Awaitable[None]] = _nothing
    """Have every worker's logger of this name log from that level on; this process's own is done already."""
    actions: Mapping[str, Action] = field(default_factory=dict)
    """What POST pages do: `healthcheck/fail`, `healthcheck/ok`, `drain_listeners`, `quitquitquit`,
    `reset_counters`, `reopen_logs`. A page without its action answers 501."""
    refusal: str = "this page is not served here"
    """What a page that changes something answers where it is not allowed: says where it is."""
