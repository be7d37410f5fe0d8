"""One workload's configuration over ADS, sans-IO: what to ask for, when a set is complete, what to answer.

Rule: updates are gathered until every cluster has its endpoints and every listener its routes (Envoy calls it
warming); then the whole set is offered for use. What of it is in use is held, also where the rest of the same update
is refused; a refused resource is offered again with every set until istiod changes or removes it. Names that are no
longer needed are unsubscribed after the new set is in use: make before break.
Not for: the protocol's messages (`wire.xds`), the stream (`xds_client`), what resources mean (`agent.table`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError

from agent.table.build import Refused
from wire.xds import CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE, WILDCARD, EncodedResource
from wire.xds.client import DeltaClient, Update
from wire.xds.references import endpoint_names, route_names

Held = dict[str, dict[str, EncodedResource]]
_FIRST = (CLUSTER, LISTENER, NAME_TABLE)
_LONGEST_LINE = 500
TYPES = (CLUSTER, ENDPOINT, LISTENER, ROUTE, NAME_TABLE)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A set of resources to be tried, and the updates that it would settle."""

    resources: Held
    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a candidate: what is in use now, and why the rest is not (its last good version is, if any)."""

    in_use: Held
    refused: tuple[Refused, ...] = ()
    again: bool = False
    """The host may be to blame (a file, a port): worth trying again."""


class ConfigSession:
    """What a workload holds and has been sent. Invariant: `held()` is what the data plane uses."""

    def __init__(self, node: Any) -> None:
        wildcard = {CLUSTER: WILDCARD, LISTENER: WILDCARD, NAME_TABLE: WILDCARD}
        self._client = DeltaClient(node, {**wildcard, ENDPOINT: (), ROUTE: ()})
        self._pending: dict[str, Update] = {}
        self._subscribed: dict[str, set[str]] = {ENDPOINT: set(), ROUTE: set()}
        self._absent: dict[str, set[str]] = {ENDPOINT: set(), ROUTE: set()}
        """Names that istiod said do not exist: not worth waiting for."""
        self._received: set[str] = set()
        self._refused: Held = {}
        """What istiod wants and the data plane does not use."""
        self.worth_trying_again = False

    def become(self, node: Any) -> None:
        """The next stream is this node's; what is held stays."""
        self._client.node = node

    def preload(self, resources: Mapping[str, Mapping[str, EncodedResource]]) -> None:
        """Hold what was stored by a former process."""
        self._refused = {}
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

    def once_more(self) -> Candidate:
        """What is wanted, as far as it has been offered before."""
        return Candidate(self._would_hold(), ())

    def settle(self, candidate: Candidate, applied: Applied) -> list[bytes]:
        """What can be used of the set is in use: an answer to each update, which names what of it cannot be used, one a
        line; and the end of subscriptions that are no longer referenced."""
        for type_url in TYPES:
            self._client.preload(type_url, applied.in_use.get(type_url, {}))
        self.worth_trying_again = applied.again
        before, self._refused = self._refused, {}
        for one in applied.refused:
            wanted = candidate.resources.get(one.type_url, {}).get(one.name)
            if wanted is not None and not one.in_use:
                self._refused.setdefault(one.type_url, {})[one.name] = wanted
        requests = []
        for update in candidate.updates:
            reasons = [
                _line(one)
                for one in applied.refused
                if one.type_url == update.type_url and one.name in update.resources
            ]
            if reasons:
                requests.append(self._client.nack(update, "\n".join(reasons)))
            else:
                requests.append(self._client.ack(update))
        self._settle(candidate)
        sent = {(update.type_url, name) for update in candidate.updates for name in update.resources}
        for type_url, names in before.items():
            usable = {
                name
                for name, resource in names.items()
                if applied.in_use.get(type_url, {}).get(name) == resource and (type_url, name) not in sent
            }
            if usable:
                requests.append(self._client.ask_again(type_url, usable))
        return requests + self._subscribe(self._would_hold(), exactly=True)

    def rejected(self, candidate: Candidate, reason: str) -> list[bytes]:
        """Nothing of the set can be used: the refusals. What was held stays in use."""
        requests = [self._client.nack(update, reason) for update in candidate.updates]
        self._settle(candidate)
        return requests + self._subscribe(self._would_hold(), exactly=True)

    def _settle(self, candidate: Candidate) -> None:
        for update in candidate.updates:
            if self._pending.get(update.type_url) is update:
                del self._pending[update.type_url]

    def _would_hold(self) -> Held:
        """What istiod wants, as far as it has come."""
        wanted = self.held()
        for type_url, update in self._pending.items():
            wanted[type_url] = self._client.would_hold(update)
        for type_url, refused in self._refused.items():
            pending = self._pending.get(type_url)
            for name, resource in refused.items():
                told = pending is not None and (name in pending.resources or name in pending.removed)
                named = type_url not in self._subscribed or name in self._subscribed[type_url]
                if named and not told:
                    wanted[type_url][name] = resource
        return wanted

    def _missing(self, resources: Held) -> set[str]:
        endpoints = _names(endpoint_names, resources[CLUSTER]) - set(resources[ENDPOINT])
        routes = _names(route_names, resources[LISTENER]) - set(resources[ROUTE])
        # The very first set is whole: not clusters today and listeners a moment later.
        types = {type_url.rpartition(".")[2] for type_url in _FIRST if type_url not in self._received}
        return (endpoints - self._absent[ENDPOINT]) | (routes - self._absent[ROUTE]) | types

    def _subscribe(self, resources: Held, *, exactly: bool) -> list[bytes]:
        requests = []
        for type_url, needed in (
            (ENDPOINT, _names(endpoint_names, resources[CLUSTER])),
            (ROUTE, _names(route_names, resources[LISTENER])),
        ):
            names = needed if exactly else needed | self._subscribed[type_url]
            if (request := self._client.subscribe(type_url, names)) is not None:
                requests.append(request)
            self._subscribed[type_url] = names
        return requests


def _names(
    find: Callable[[Iterable[EncodedResource]], set[str]], resources: Mapping[str, EncodedResource]
) -> set[str]:
    """What the resources name; one that cannot be decoded names nothing, and is refused when it is tried."""
    found: set[str] = set()
    for resource in resources.values():
        try:
            found |= find((resource,))
        except DecodeError:
            continue
    return found


def _line(refused: Refused) -> str:
    """One line of a NACK: istiod reads the names from the lines."""
    return str(refused).replace("\n", " ")[:_LONGEST_LINE]


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
