"""Copies of requests to other clusters (Envoy request_mirror_policies): sent, never waited for.

Rule: a mirror is an exchange of its own with a client that listens to nobody; its failure is nobody's. Requests with a
body are not mirrored before their body is complete, and only if it fits the buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from agent.exchange.exchange import Exchange
    from agent.routing.plan import RoutePlan


def send_mirrors(exchange: Exchange, plan: RoutePlan) -> None:
    """Start the copies that the dice allow."""
