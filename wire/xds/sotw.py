"""State-of-the-world xDS, the server's side of one ADS stream, sans-IO.

Rule: as in `delta`, one response per type is outstanding and the latest content wins. A response of
listeners or clusters is complete (what is missing is gone); of other types it holds what changed or was
asked for. A request that answers an older response is stale and has no effect. A refused response of listeners or
clusters cannot be taken apart: it stays refused until it changes (or `retry_refused`). Source: xDS protocol, "Basic
Protocol Overview".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from wire.xds.refusals import UNKNOWN, Refusal, Refusals
from wire.xds.requests import Interest, Kind, Nack, Received, TypeState, XdsError, parse
from wire.xds.types import (
    CLUSTER,
    ENDPOINT,
    HEALTH,
    LEGACY_WILDCARD_TYPES,
    LISTENER,
    WILDCARD,
    EncodedResource,
    Resources,
    in_push_order,
    length_delimited,
    version_of,
)

_COMPLETE_TYPES = frozenset({LISTENER, CLUSTER})
_MAX_NAMES = 100_000
_WHOLE = "*"
"""As a refused name: the complete response."""


@dataclass(slots=True)
class _Type:
    """One type on the stream. Invariant: `known` is what the client has or is being sent, by its version; UNKNOWN
    where it has refused what it was sent."""

    interest: Interest
    refusals: Refusals
    known: dict[str, str] = field(default_factory=dict)
    named: bool = False
    """The client has named resources before: an empty list then means none, no longer all."""
    must_send: set[str] = field(default_factory=set)
    """Names to be sent even if the client has them: it asked anew, or warms a cluster."""
    must_answer: bool = True
    """Even an empty answer is one (Envoy waits for it to start)."""
    nonce: str = ""
    outstanding: bool = False
    entries: dict[str, str] = field(default_factory=dict)
    """What the last response held, by its version."""
    in_flight: str = ""
    acked: str = ""
    nack: Nack | None = None


class SotwSession:
    """Feed it requests (`receive`) and content (`update`); after either, send what `next_response` gives."""

    def __init__(self, *, control_plane: str = "") -> None:
        self.node: Any = None
        self._types: dict[str, _Type] = {}
        self._latest: dict[str, Resources] = {}
        self._responses = 0
        # DiscoveryResponse.control_plane = 6, ControlPlane.identifier = 1.
        self._control_plane = length_delimited(6, length_delimited(1, control_plane.encode()))

    def receive(self, data: bytes) -> Received:
        """Take a DiscoveryRequest. Raises XdsError, after which the stream must end."""
        request = discovery_pb2.DiscoveryRequest()
        parse(request, data)
        if request.HasField("node") and self.node is None:
            self.node = request.node
        error = request.error_detail if request.HasField("error_detail") else None
        type_url = request.type_url
        if type_url == HEALTH:
            ill = None if error is None else (error.code, error.message)
            return Received(HEALTH, Kind.REPORT, self.node, error=ill)
        if not type_url:
            raise XdsError("a request on an aggregated stream without type_url")
        names = set(request.resource_names)
        if len(names) > _MAX_NAMES:
            raise XdsError(f"more than {_MAX_NAMES} names of one type")
        state = self._types.get(type_url)
        if state is None:
            state = self._types[type_url] = _Type(Interest(False, frozenset()), Refusals(type_url))
            self._subscribe(type_url, state, names)
            return Received(type_url, Kind.FIRST, self.node)
        if state.nonce and request.response_nonce != state.nonce:
            return Received(type_url, Kind.STALE, self.node)
        kind, nack = Kind.CHANGE, None
        if state.outstanding:
            state.outstanding = False
            if error is None:
                kind, state.acked, state.nack = Kind.ACK, state.in_flight, None
                state.refusals.refused.pop(_WHOLE, None)
            else:
                nack = state.nack = Nack(state.in_flight, error.code, error.message)
                kind = Kind.NACK
                _refuse(type_url, state, error.message)
        unchanged = self._subscribe(type_url, state, names)
        if unchanged and kind is Kind.CHANGE:
            # No answer and nothing new: it asks for the same again (Envoy, for a warming cluster).
            state.must_send |= names
            state.must_answer = True
        return Received(type_url, kind, self.node, nack)

    def update(self, resources: Mapping[str, Resources]) -> None:
        """Replace the content of the given types, each as a whole; other types keep theirs."""
        self._latest.update(resources)

    def next_response(self) -> bytes | None:
        """The next DiscoveryResponse that may be sent now, None when there is none for the moment."""
        for type_url in in_push_order(self._types):
            state = self._types[type_url]
            if not state.outstanding and type_url in self._latest:
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
            if state.refusals.refused.pop(_WHOLE, None) is not None:
                state.must_answer = True
            state.refusals.retry()
        return bool(found)

    def _subscribe(self, type_url: str, state: _Type, names: set[str]) -> bool:
        """Take over what the client wants now; whether that is what it wanted before."""
        wildcard = WILDCARD in names or (not names and not state.named and type_url in LEGACY_WILDCARD_TYPES)
        state.named = state.named or bool(names)
        names.discard(WILDCARD)
        before = state.interest
        state.interest = Interest(wildcard, frozenset(names))
        added = names - before.names
        state.must_send |= added
        state.must_send &= names
        if (wildcard and not before.wildcard) or added:
            state.must_answer = True
        for name in before.names - names:
            if not wildcard:
                state.known.pop(name, None)
        return state.interest == before

    def _response(self, type_url: str, state: _Type, latest: Resources) -> bytes | None:
        wanted = {
            name: resource
            for name, resource in latest.items()
            if state.interest.covers(name, by_wildcard=resource.wildcard)
        }
        versions = {name: resource.version for name, resource in wanted.items()}
        for name in [name for name in state.refusals.refused if name != _WHOLE and name not in wanted]:
            state.refusals.drop(name)
        complete = type_url in _COMPLETE_TYPES
        changed = [
            wanted[name]
            for name in sorted(wanted)
            if name in state.must_send or state.known.get(name) != versions[name]
        ]
        if not complete and state.refusals:
            changed, _ = state.refusals.due(changed, state.must_send)
        lost = complete and not state.known.keys() <= wanted.keys()
        answer_empty = state.must_answer and (complete or state.interest.wildcard)
        doubtful = (
            {name for name in versions if state.known.get(name) == UNKNOWN} if state.refusals else set()
        )
        doubtful -= {resource.name for resource in changed}
        if not changed and not lost and not answer_empty:
            state.known = versions | dict.fromkeys(doubtful, UNKNOWN)
            return None
        if type_url == CLUSTER and (endpoints := self._types.get(ENDPOINT)) is not None:
            # A changed cluster warms until it is told its endpoints again.
            warming = {resource.name for resource in changed if resource.name in state.known}
            endpoints.must_send |= endpoints.interest.names & warming
        state.known = versions | dict.fromkeys(doubtful, UNKNOWN)
        state.must_send -= versions.keys() - doubtful
        state.must_answer = False
        self._responses += 1
        state.nonce = f"{self._responses:x}"
        state.outstanding = True
        state.in_flight = version_of(versions)
        entries = [wanted[name] for name in sorted(wanted)] if complete else changed
        state.entries = {resource.name: resource.version for resource in entries}
        for name in (_WHOLE, *state.entries):
            state.refusals.drop(name)
        return self._encode(type_url, state, entries)

    def _encode(self, type_url: str, state: _Type, entries: list[EncodedResource]) -> bytes:
        # DiscoveryResponse: version_info = 1, resources = 2, type_url = 4, nonce = 5.
        return b"".join(
            (
                length_delimited(1, state.in_flight.encode()),
                *(resource.sotw_entry for resource in entries),
                length_delimited(4, type_url.encode()),
                length_delimited(5, state.nonce.encode()),
                self._control_plane,
            )
        )


def _refuse(type_url: str, state: _Type, reason: str) -> None:
    if type_url in _COMPLETE_TYPES:
        state.refusals.refused[_WHOLE] = Refusal(state.in_flight, reason)
        return
    for name in state.refusals.note(state.entries, reason, alone=True) if state.entries else ():
        if name in state.known:
            state.known[name] = UNKNOWN
