"""Incremental xDS, the server's side of one ADS stream, sans-IO.

Rule: per type at most one response is outstanding, unless the client asks for more names meanwhile (then the
last nonce counts); while it is, newer content only replaces what is to come, so a slow client gets the latest
and not every step. What the client has is known name by name, also after a refusal (`refusals`); a response holds
the difference. Order: what is
referred to first (PUSH_ORDER), clusters and endpoints that go away last. Source: xDS protocol, "Incremental
xDS". Not for compiling resources nor for choosing who gets which.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from wire.xds.refusals import UNKNOWN, Refusals
from wire.xds.requests import Interest, Kind, Nack, Received, TypeState, XdsError, parse
from wire.xds.types import (
    CLUSTER,
    ENDPOINT,
    HEALTH,
    LEGACY_WILDCARD_TYPES,
    LISTENER,
    ROUTE,
    WILDCARD,
    EncodedResource,
    Resources,
    in_push_order,
    length_delimited,
    set_version,
    version_digest,
)

_MAX_NAMES = 100_000


@dataclass(frozen=True, slots=True)
class _Sent:
    """A response that is not answered: what it held, and the version of all that the client then has."""

    nonce: str
    version: str
    entries: Mapping[str, str]
    removed: tuple[str, ...]


@dataclass(slots=True)
class _Type:
    """One type on the stream. Invariant: `known` is what the client has or is being sent, by its version; UNKNOWN
    where it has refused what it was sent."""

    refusals: Refusals
    wildcard: bool = False
    names: set[str] = field(default_factory=set)
    known: dict[str, str] = field(default_factory=dict)
    digest: int = 0
    """Sum of the digests of `known`: its version without reading it all."""
    must_send: set[str] = field(default_factory=set)
    """Names to be answered even if the client has them: it asked anew, or warms a cluster."""
    asked: bool = False
    """Names were asked for since the last response: they are answered even while it is outstanding, because a client
    may need them before it can answer (a set of clusters waits for its endpoints)."""
    must_answer: bool = False
    """A wildcard was asked for: even an empty answer is one (Envoy waits for it to start)."""
    sent: list[_Sent] = field(default_factory=list)
    """The responses that are not answered, in order; an answer counts for its response and those before it."""
    nonce: str = ""
    in_flight: str = ""
    acked: str = ""
    nack: Nack | None = None
    settled_with: Resources | None = None
    """Content of which there was nothing to send, as long as the client asks for nothing else."""

    @property
    def interest(self) -> Interest:
        return Interest(self.wildcard, frozenset(self.names))

    @property
    def outstanding(self) -> bool:
        return bool(self.sent)

    def know(self, name: str, version: str) -> None:
        self.forget(name)
        self.known[name] = version
        self.digest += version_digest(name, version)

    def doubt(self, name: str) -> None:
        """The client may hold any version of it: whatever is right must be sent, or its removal."""
        self.digest -= version_digest(name, self.known[name]) if name in self.known else 0
        self.known[name] = UNKNOWN
        self.digest += version_digest(name, UNKNOWN)

    def forget(self, name: str) -> None:
        self.refusals.drop(name)
        version = self.known.pop(name, None)
        if version is not None:
            self.digest -= version_digest(name, version)


class DeltaSession:
    """Feed it requests (`receive`) and content (`update`); after either, send what `next_response` gives.

    A name asked for that the latest content lacks is answered as removed: where resources are made on
    demand, update the type between `receive` and `next_response`. Content is compared by identity first: pass
    the same mapping again when nothing changed, and never change one that was passed.

    Endpoint resources are named as their clusters (Istio's way): that is how it knows which of them a
    changed cluster waits for. A response is kept below `max_response` bytes where resources allow; the rest
    follows when it is acknowledged.
    """

    def __init__(self, *, control_plane: str = "", max_response: int = 2 * 1024 * 1024) -> None:
        self.node: Any = None
        self._types: dict[str, _Type] = {}
        self._latest: dict[str, Resources] = {}
        self._responses = 0
        self._max_response = max_response
        # DeltaDiscoveryResponse.control_plane = 7, ControlPlane.identifier = 1.
        self._control_plane = length_delimited(7, length_delimited(1, control_plane.encode()))

    def receive(self, data: bytes) -> Received:
        """Take a DeltaDiscoveryRequest. Raises XdsError, after which the stream must end."""
        request = discovery_pb2.DeltaDiscoveryRequest()
        parse(request, data)
        if request.HasField("node") and self.node is None:
            self.node = request.node
        error = request.error_detail if request.HasField("error_detail") else None
        if request.type_url == HEALTH:
            ill = None if error is None else (error.code, error.message)
            return Received(HEALTH, Kind.REPORT, self.node, error=ill)
        if not request.type_url:
            raise XdsError("a request on an aggregated stream without type_url")
        state = self._types.get(request.type_url)
        if state is None:
            state = self._types[request.type_url] = _Type(Refusals(request.type_url))
            self._begin(state, request)
            return Received(request.type_url, Kind.FIRST, self.node)
        kind, nack = Kind.CHANGE, None
        answered = _answered(state, request.response_nonce)
        if answered:
            version = answered[-1].version
            if error is None:
                kind, state.acked, state.nack = Kind.ACK, version, None
            else:
                nack = state.nack = Nack(version, error.code, error.message)
                kind = Kind.NACK
                _refuse(state, answered, error.message)
        if request.resource_names_subscribe or request.resource_names_unsubscribe:
            self._subscribe(state, request.resource_names_subscribe)
            self._unsubscribe(state, request.resource_names_unsubscribe)
            state.settled_with = None
        return Received(request.type_url, kind, self.node, nack)

    def update(self, resources: Mapping[str, Resources]) -> None:
        """Replace the content of the given types, each as a whole; other types keep theirs."""
        self._latest.update(resources)

    def next_response(self) -> bytes | None:
        """The next DeltaDiscoveryResponse that may be sent now, None when there is none for the moment."""
        for type_url in in_push_order(self._types):
            state = self._types[type_url]
            if (state.asked or not state.outstanding) and type_url in self._latest:
                response = self._response(type_url, state, self._latest[type_url])
                if response is not None:
                    return response
        return None

    def interest(self, type_url: str) -> Interest:
        """What the client wants of a type."""
        state = self._types.get(type_url)
        return Interest(False, frozenset()) if state is None else state.interest

    @property
    def types(self) -> list[str]:
        """The types that the client has asked for."""
        return list(self._types)

    def state(self, type_url: str) -> TypeState:
        """Where the client stands with a type."""
        state = self._types.get(type_url)
        if state is None:
            return TypeState(self.interest(type_url))
        return TypeState(
            state.interest, state.in_flight, state.acked, state.nonce, state.outstanding, state.nack,
            state.refusals.refused,
        )  # fmt: skip

    def retry_refused(self) -> bool:
        """Have what is refused sent once more: what it depends on may have changed. False: nothing is refused."""
        found = [state for state in self._types.values() if state.refusals.refused]
        for state in found:
            state.refusals.retry()
            state.settled_with = None
        return bool(found)

    def _begin(self, state: _Type, request: Any) -> None:
        self._limit(len(request.initial_resource_versions))
        for name, version in request.initial_resource_versions.items():
            state.know(name, version)
        names = set(request.resource_names_subscribe)
        if not names and request.type_url in LEGACY_WILDCARD_TYPES:
            state.wildcard = True
        if WILDCARD in names:
            state.wildcard = True
            names.discard(WILDCARD)
        self._limit(len(names))
        state.names = names
        # Names that the client already has are sent only if they changed: that is what its versions are for.
        state.must_send = names - state.known.keys()
        state.must_answer = state.wildcard and not state.known

    def _subscribe(self, state: _Type, asked: Any) -> None:
        names = set(asked)
        if WILDCARD in names:
            names.discard(WILDCARD)
            state.wildcard = state.must_answer = True
        self._limit(len(state.names) + len(names))
        state.names |= names
        # Asked anew means: send it, whatever we think the client has (a warming cluster asks so).
        state.must_send |= names
        state.asked = state.asked or bool(names)

    def _unsubscribe(self, state: _Type, asked: Any) -> None:
        names = set(asked)
        if WILDCARD in names:
            names.discard(WILDCARD)
            state.wildcard = False
            for name in state.known.keys() - state.names:
                state.forget(name)
        state.names -= names
        for name in names:
            if state.wildcard:
                # It may still be covered: say what it is now, or that it is gone.
                if name in state.known:
                    state.must_send.add(name)
            else:
                state.forget(name)
                state.must_send.discard(name)

    def _response(self, type_url: str, state: _Type, latest: Resources) -> bytes | None:
        state.asked = False
        if state.settled_with is latest and not state.must_send:
            return None
        changed, removed = _difference(state, latest)
        later = bool(removed) and type_url in (CLUSTER, ENDPOINT) and not self._routing_settled()
        if later:
            # Break after make: routes that still point there are replaced first.
            removed = set()
        removed |= {name for name in state.must_send if not _exists(state, latest, name)}
        apart = False
        if removed and state.refusals.doubting:
            # Alone, so that the refusal of what else is in doubt does not touch them again.
            changed, apart = [], True
        elif state.refusals:
            changed, apart = state.refusals.due(changed, state.must_send)
        if not changed and not removed and not state.must_answer:
            state.settled_with = None if later or apart else latest
            return None
        entries: list[EncodedResource] = []
        size = 0
        for resource in changed:
            size += len(resource.delta_entry)
            if entries and size > self._max_response:
                break
            entries.append(resource)
        complete = not later and not apart and len(entries) == len(changed)
        if type_url == CLUSTER:
            self._warm([resource.name for resource in entries if resource.name in state.known])
        for resource in entries:
            state.know(resource.name, resource.version)
            state.must_send.discard(resource.name)
        for name in removed:
            state.forget(name)
            state.must_send.discard(name)
        state.settled_with = latest if complete else None
        return self._encode(type_url, state, entries, sorted(removed))

    def _routing_settled(self) -> bool:
        """Whether the client has answered all there is to say about listeners and routes."""
        for type_url in (LISTENER, ROUTE):
            state, latest = self._types.get(type_url), self._latest.get(type_url)
            if state is None or latest is None:
                continue
            if state.outstanding:
                return False
            if state.settled_with is not latest:
                changed, removed = _difference(state, latest)
                if removed or not all(state.refusals.stand(one.name, one.version) for one in changed):
                    return False
        return True

    def _warm(self, clusters: list[str]) -> None:
        """A changed cluster warms and waits for its endpoints, which Envoy does not ask for a second time."""
        endpoints = self._types.get(ENDPOINT)
        if endpoints is not None:
            endpoints.must_send |= endpoints.names.intersection(clusters)

    def _encode(
        self, type_url: str, state: _Type, entries: list[EncodedResource], removed: list[str]
    ) -> bytes:
        self._responses += 1
        state.nonce = f"{self._responses:x}"
        state.must_answer = False
        state.in_flight = set_version(state.digest)
        versions = {resource.name: resource.version for resource in entries}
        state.sent.append(_Sent(state.nonce, state.in_flight, versions, tuple(removed)))
        # DeltaDiscoveryResponse: system_version_info = 1, resources = 2, type_url = 4, nonce = 5,
        # removed_resources = 6.
        return b"".join(
            (
                length_delimited(1, state.in_flight.encode()),
                *(resource.delta_entry for resource in entries),
                length_delimited(4, type_url.encode()),
                length_delimited(5, state.nonce.encode()),
                *(length_delimited(6, name.encode()) for name in removed),
                self._control_plane,
            )
        )

    @staticmethod
    def _limit(names: int) -> None:
        if names > _MAX_NAMES:
            raise XdsError(f"more than {_MAX_NAMES} names of one type")


def _answered(state: _Type, nonce: str) -> list[_Sent]:
    """The responses that an answer with this nonce is for, which are then no longer outstanding."""
    for position, response in enumerate(state.sent):
        if response.nonce == nonce:
            answered = state.sent[: position + 1]
            del state.sent[: position + 1]
            return answered
    return []


def _refuse(state: _Type, answered: list[_Sent], reason: str) -> None:
    """Note what the client may not have taken of these responses; a later one that is outstanding may mend it."""
    entries: dict[str, str] = {}
    removed: set[str] = set()
    for response in answered:
        entries.update(response.entries)
        removed |= set(response.removed)
    underway = {name for response in state.sent for name in (*response.entries, *response.removed)}
    entries = {name: version for name, version in entries.items() if name not in underway}
    removed -= entries.keys() | underway
    state.settled_with = None
    if not entries:
        return
    for name in entries:
        state.refusals.drop(name)
    unknown = state.refusals.note(entries, reason, alone=not removed)
    for name in unknown:
        state.doubt(name)
    if not unknown <= state.refusals.refused.keys():
        # Whoever does not say what is wrong may not have taken the removals either.
        for name in removed:
            state.doubt(name)


def _exists(state: _Type, latest: Resources, name: str) -> bool:
    """Whether there is such a resource for this client."""
    resource = latest.get(name)
    return resource is not None and (name in state.names or (state.wildcard and resource.wildcard))


def _difference(state: _Type, latest: Resources) -> tuple[list[EncodedResource], set[str]]:
    """What the client lacks, by name, and the names that it has and should have no longer.

    Read for every client at every change: one pass, the rest by set operations.
    """
    known, names, must_send = state.known, state.names, state.must_send
    gone = known.keys() - latest.keys()
    if state.wildcard:
        changed = [
            resource
            for name, resource in latest.items()
            if (known.get(name) != resource.version or name in must_send)
            and (resource.wildcard or name in names)
        ]
        gone |= {
            name
            for name, resource in latest.items()
            if not resource.wildcard and name in known and name not in names
        }
    else:
        changed = [
            resource
            for name in names
            if (resource := latest.get(name)) is not None
            and (known.get(name) != resource.version or name in must_send)
        ]
        gone |= known.keys() - names
    return sorted(changed, key=lambda resource: resource.name), gone
