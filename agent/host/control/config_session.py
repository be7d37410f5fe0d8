"""One workload's configuration over ADS, sans-IO: what to ask for, when a set is complete, what to answer.

Rule: updates are gathered until every cluster has its endpoints and every listener its routes (Envoy calls it
warming); then the whole set is offered for use, and only its use or refusal answers the updates. Names that
are no longer needed are unsubscribed after the new set is in use: make before break.
Not for: the protocol's messages (`wire.xds`), the stream (`xds_client`), what resources mean (`agent.table`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wire.xds import CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE, WILDCARD, EncodedResource
from wire.xds.client import DeltaClient, Update
from wire.xds.references import endpoint_names, route_names

Held = dict[str, dict[str, EncodedResource]]
_FIRST = (CLUSTER, LISTENER, NAME_TABLE)
TYPES = (CLUSTER, ENDPOINT, LISTENER, ROUTE, NAME_TABLE)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A set of resources to be tried, and the updates that it would settle."""

    resources: Held
    updates: tuple[Update, ...]


class ConfigSession:
    """What a workload holds and has been sent. Invariant: `held()` is a set that the data plane has used."""

    def __init__(self, node: Any) -> None:
        wildcard = {CLUSTER: WILDCARD, LISTENER: WILDCARD, NAME_TABLE: WILDCARD}
        self._client = DeltaClient(node, {**wildcard, ENDPOINT: (), ROUTE: ()})
        self._pending: dict[str, Update] = {}
        self._subscribed: dict[str, set[str]] = {ENDPOINT: set(), ROUTE: set()}
        self._absent: dict[str, set[str]] = {ENDPOINT: set(), ROUTE: set()}
        """Names that istiod said do not exist: not worth waiting for."""
        self._received: set[str] = set()

    def preload(self, resources: Mapping[str, Mapping[str, EncodedResource]]) -> None:
        """Hold what was stored by a former process."""
        for type_url in TYPES:
            self._client.preload(type_url, resources.get(type_url, {}))
            if resources.get(type_url):
                self._received.add(type_url)
        self._subscribe(self.held(), exactly=True)

    def held(self) -> Held:
        """The resources in use."""
        return {type_url: dict(self._client.held(type_url)) for type_url in TYPES}

    def start(self) -> list[bytes]:
        """The first requests of a new stream; what an old stream left unanswered is forgotten."""
        self._pending.clear()
        for names in self._absent.values():
            names.clear()
        return self._client.start()

    def receive(self, data: bytes) -> list[bytes]:
        """Take a response in; the requests for what it newly refers to. XdsError ends the stream."""
        update = self._client.receive(data)
        if (earlier := self._pending.get(update.type_url)) is not None:
            update = _joined(earlier, update)
        self._pending[update.type_url] = update
        self._received.add(update.type_url)
        if update.type_url in self._absent:
            self._absent[update.type_url] |= set(update.removed)
            self._absent[update.type_url] -= set(update.resources)
        return self._subscribe(self._would_hold(), exactly=False)

    @property
    def pending(self) -> bool:
        """Whether there are updates that have not been answered."""
        return bool(self._pending)

    def candidate(self, *, complete: bool = True) -> Candidate | None:
        """The set to try; None when nothing is new or, with `complete`, when something named is missing."""
        if not self._pending:
            return None
        resources = self._would_hold()
        if complete and self._missing(resources):
            return None
        return Candidate(resources, tuple(self._pending.values()))

    def missing(self) -> list[str]:
        """The names that the updates so far refer to and that have not come."""
        return sorted(self._missing(self._would_hold()))

    def accepted(self, candidate: Candidate) -> list[bytes]:
        """The set is in use: the acknowledgements, and the end of subscriptions that nobody needs."""
        requests = [self._client.ack(update) for update in candidate.updates]
        self._settle(candidate)
        return requests + self._subscribe(self._would_hold(), exactly=True)

    def refused(self, candidate: Candidate, reason: str) -> list[bytes]:
        """The set cannot be used: the refusals. What was held stays in use."""
        requests = [self._client.nack(update, reason) for update in candidate.updates]
        self._settle(candidate)
        return requests + self._subscribe(self._would_hold(), exactly=True)

    def _settle(self, candidate: Candidate) -> None:
        for update in candidate.updates:
            if self._pending.get(update.type_url) is update:
                del self._pending[update.type_url]

    def _would_hold(self) -> Held:
        held = self.held()
        for type_url, update in self._pending.items():
            held[type_url] = self._client.would_hold(update)
        return held

    def _missing(self, resources: Held) -> set[str]:
        endpoints = endpoint_names(resources[CLUSTER].values()) - set(resources[ENDPOINT])
        routes = route_names(resources[LISTENER].values()) - set(resources[ROUTE])
        # The very first set is whole: not clusters today and listeners a moment later.
        types = {type_url.rpartition(".")[2] for type_url in _FIRST if type_url not in self._received}
        return (endpoints - self._absent[ENDPOINT]) | (routes - self._absent[ROUTE]) | types

    def _subscribe(self, resources: Held, *, exactly: bool) -> list[bytes]:
        requests = []
        for type_url, needed in (
            (ENDPOINT, endpoint_names(resources[CLUSTER].values())),
            (ROUTE, route_names(resources[LISTENER].values())),
        ):
            names = needed if exactly else needed | self._subscribed[type_url]
            if (request := self._client.subscribe(type_url, names)) is not None:
                requests.append(request)
            self._subscribed[type_url] = names
        return requests


def _joined(earlier: Update, later: Update) -> Update:
    """Two responses of a type as one, answered by the later one's nonce: that is the one istiod waits for."""
    resources = {name: value for name, value in earlier.resources.items() if name not in later.removed}
    removed = (name for name in earlier.removed if name not in later.resources)
    return Update(
        later.type_url,
        later.nonce,
        later.version,
        {**resources, **later.resources},
        tuple(dict.fromkeys((*removed, *later.removed))),
    )
