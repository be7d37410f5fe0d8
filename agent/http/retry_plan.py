"""What a route says about retries, compiled (Envoy RetryPolicy): made by routing, followed by the upstream.

Here because neither of those two may know the other. Not for: deciding (agent/upstream/retry).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from agent.http.request import RequestContext, ResponseHead


@dataclass(frozen=True, slots=True)
class RetryPlan:
    """Envoy RetryPolicy, compiled. Times in seconds."""

    on: frozenset[str]
    """`5xx`, `gateway-error`, `reset`, `connect-failure`, `refused-stream`, `retriable-status-codes`, …"""
    attempts: int
    """Retries after the first attempt (Envoy num_retries)."""
    per_try_timeout: float = 0.0
    statuses: frozenset[int] = frozenset()
    retriable_headers: Callable[[ResponseHead], bool] | None = None
    retriable_request: Callable[[RequestContext], bool] | None = None
    base_interval: float = 0.025
    max_interval: float = 0.25
    previous_hosts: bool = False
    """Avoid endpoints that were tried (envoy.retry_host_predicates.previous_hosts)."""
    avoid: Callable[[Mapping[str, Any]], bool] | None = None
    """Endpoints with such metadata are avoided, too."""
    previous_priorities: int = 0
    reset_headers: tuple[tuple[bytes, bool], ...] = ()
    max_reset: float = 300.0
    host_selection_attempts: int = 1
    per_try_idle_timeout: float = 0.0
