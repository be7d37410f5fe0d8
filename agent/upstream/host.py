"""One upstream host at run time: what its endpoint says, and what we have learned of it.

Rule: counts and verdicts only; who changes them is pool.py (connections), outlier.py (ejection), cluster.py (membership).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from agent.table.cluster import Endpoint

if TYPE_CHECKING:
    from agent.upstream.pool import Pool


class Host:
    """An endpoint with its pool. Invariant: `available` is what the balancer last saw."""

    __slots__ = (
        "active",
        "checked_healthy",
        "connect_failures",
        "connects",
        "consecutive_5xx",
        "consecutive_gateway",
        "consecutive_local",
        "ejected_until",
        "ejections",
        "endpoint",
        "gone",
        "name",
        "pool",
        "requests",
        "rq_error",
        "rq_success",
        "rq_timeout",
        "rq_total",
        "successes",
        "tls",
        "tls_context",
        "weight",
    )  # fmt: skip

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.name = address_text(endpoint)
        self.weight = endpoint.weight
        self.pool: Pool
        self.tls: Any = None
        """The client context of this endpoint (transport_socket_matches), None for plaintext; the cluster sets it."""
        self.tls_context: Any = None
        """What new connections are secured with as of then; another one means other settings, secrets or roots."""
        self.connects = self.connect_failures = 0
        """Connections begun, and those that did not come up; as /clusters tells them."""
        self.rq_total = self.rq_success = self.rq_error = self.rq_timeout = 0
        """Requests begun and their ends, in the same place."""
        self.active = 0
        """Requests in flight."""
        self.gone = False
        """No longer a member: nothing new goes there."""
        self.checked_healthy = True
        """The verdict of active health checks."""
        self.ejected_until = 0.0
        """Monotonic time until which outlier detection keeps the host out, 0 when it is in."""
        self.ejections = 0
        self.consecutive_5xx = 0
        self.consecutive_gateway = 0
        self.consecutive_local = 0
        self.requests = 0
        """Since the last sweep of outlier detection."""
        self.successes = 0

    def move(self, endpoint: Endpoint) -> None:
        """The same host at another address."""
        self.endpoint = endpoint
        self.name = address_text(endpoint)
        self.weight = endpoint.weight

    @property
    def healthy(self) -> bool:
        """In rotation unless the cluster panics."""
        endpoint = self.endpoint
        return endpoint.healthy and not endpoint.draining and self.checked_healthy and not self.ejected_until


def address_text(endpoint: Endpoint) -> str:
    """`ip:port`, `[ip]:port` or a socket's path."""
    address = endpoint.address
    if address.path:
        return address.path
    return f"[{address.host}]:{address.port}" if ":" in address.host else f"{address.host}:{address.port}"
