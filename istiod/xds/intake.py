"""What a proxy may ask for on one stream: types that are served, names within bounds, at a bounded rate.

Rule: a request of another type is ignored and leaves nothing behind, as real proxies ask for types that a control plane
does not have; one that breaks a bound ends the stream. Not for what a request means (wire.xds).
"""

from __future__ import annotations

from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from istiod.xds.phases import Session
from wire.rate import RateLimit
from wire.xds import (
    CLUSTER,
    ENDPOINT,
    HEALTH,
    LISTENER,
    NAME_TABLE,
    ROUTE,
    SECRET,
    DeltaSession,
    Received,
    XdsError,
)
from wire.xds.requests import parse

SERVED = frozenset({CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET, NAME_TABLE, HEALTH})
LONGEST_NAME = 1024
MOST_NAME_BYTES = 2 * 1024 * 1024
"""Of all names of one stream: about 20,000 clusters' names of 100 characters."""
BURST, RATE = 2_000, 200
"""Requests at once, and a second: a proxy answers each response with one, and one change makes four or five."""


class Intake:
    """The reading side of one stream, before its session."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._delta = isinstance(session, DeltaSession)
        self._requests = RateLimit(burst=BURST, rate=RATE)
        self._bytes = 0
        """At least the bytes of all names that are subscribed: names asked for anew count again until it is counted out."""

    def take(self, data: bytes, now: float) -> Received | None:
        """The request, understood; None for one to be ignored. Raises XdsError, after which the stream must end."""
        if not self._requests.spend(now):
            raise XdsError(f"more than {RATE} requests a second")
        request: Any = (
            discovery_pb2.DeltaDiscoveryRequest() if self._delta else discovery_pb2.DiscoveryRequest()
        )
        parse(request, data)
        if request.type_url and request.type_url not in SERVED:
            return None
        names = request.resource_names_subscribe if self._delta else request.resource_names
        if any(len(name) > LONGEST_NAME for name in names):
            raise XdsError(f"a name of more than {LONGEST_NAME} characters")
        added = sum(map(len, names))
        if self._delta:
            added += sum(map(len, request.initial_resource_versions))
        received = self._session.receive(data)
        self._bytes += added
        if self._bytes > MOST_NAME_BYTES:
            self._bytes = self._count()
            if self._bytes > MOST_NAME_BYTES:
                raise XdsError(f"more than {MOST_NAME_BYTES} bytes of names")
        return received

    def _count(self) -> int:
        interests = (self._session.interest(type_url).names for type_url in self._session.types)
        return sum(len(name) for names in interests for name in names)
