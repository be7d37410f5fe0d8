"""Incremental xDS, the agent's side of one ADS stream, sans-IO.

Rule: what is held is what was acknowledged; a refused response changes nothing, and a new stream goes on from
what is held. Every response is answered, by `ack` or `nack`, in the order in which they came. Not for what
resources mean, nor for keeping them on disk.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from envoy.service.discovery.v3 import discovery_pb2

from wire.xds.requests import XdsError, parse
from wire.xds.types import HEALTH, LEGACY_WILDCARD_TYPES, WILDCARD, EncodedResource

_INVALID_ARGUMENT = 3


@dataclass(frozen=True, slots=True)
class Update:
    """One response: resources that are new or changed, and names that are gone."""

    type_url: str
    nonce: str
    version: str
    resources: Mapping[str, EncodedResource]
    removed: tuple[str, ...]


class DeltaClient:
    """One node's subscriptions and what it holds, across streams.

    `node` is an envoy.config.core.v3.Node; `subscriptions` maps a type URL to names, or to WILDCARD for all.
    """

    def __init__(self, node: Any, subscriptions: Mapping[str, Iterable[str] | str]) -> None:
        self.node = node
        self._wanted: dict[str, set[str]] = {}
        for type_url, names in subscriptions.items():
            self._wanted[type_url] = {WILDCARD} if names == WILDCARD else set(names)
        self._held: dict[str, dict[str, EncodedResource]] = {type_url: {} for type_url in self._wanted}
        self._started: set[str] = set()
        self._node_sent = False
        self._streaming = False

    def start(self) -> list[bytes]:
        """The first requests of a new stream, one for each type with subscriptions."""
        self._started.clear()
        self._node_sent = False
        self._streaming = True
        return [self._first(type_url) for type_url, names in self._wanted.items() if names]

    def receive(self, data: bytes) -> Update:
        """Understand a DeltaDiscoveryResponse; raises XdsError, after which the stream must end."""
        response = discovery_pb2.DeltaDiscoveryResponse()
        parse(response, data)
        if response.type_url not in self._wanted:
            raise XdsError(f"a response of a type that was not asked for: {response.type_url!r}")
        resources = {}
        for resource in response.resources:
            if resource.resource.type_url != response.type_url:
                raise XdsError(f"{resource.name!r} is of type {resource.resource.type_url!r}")
            body = resource.resource.SerializeToString(deterministic=True)
            resources[resource.name] = EncodedResource(resource.name, resource.version, body)
        removed = tuple(response.removed_resources)
        return Update(response.type_url, response.nonce, response.system_version_info, resources, removed)

    def would_hold(self, update: Update) -> dict[str, EncodedResource]:
        """What would be held of the update's type if it were acknowledged."""
        held = {**self._held[update.type_url], **update.resources}
        for name in update.removed:
            held.pop(name, None)
        wanted = self._wanted[update.type_url]
        if WILDCARD in wanted:
            return held
        return {name: resource for name, resource in held.items() if name in wanted}

    def ack(self, update: Update) -> bytes:
        """Hold the update's content; the request that says so."""
        self._held[update.type_url] = self.would_hold(update)
        return self._answer(update).SerializeToString()  # type: ignore[no-any-return]

    def nack(self, update: Update, reason: str) -> bytes:
        """Keep what was held; the request that says so, and why."""
        answer = self._answer(update)
        answer.error_detail.code = _INVALID_ARGUMENT
        answer.error_detail.message = reason
        return answer.SerializeToString()  # type: ignore[no-any-return]

    def subscribe(self, type_url: str, names: Iterable[str]) -> bytes | None:
        """Want exactly these names of a type from now on; the request to send, None when there is none.

        What is no longer wanted is no longer held. Not for types with a wildcard.
        """
        wanted, before = set(names), self._wanted.setdefault(type_url, set())
        held = self._held.setdefault(type_url, {})
        if wanted == before:
            return None
        self._wanted[type_url] = wanted
        for name in before - wanted:
            held.pop(name, None)
        if not self._streaming:
            return None
        if type_url not in self._started:
            return self._first(type_url)
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url,
            resource_names_subscribe=sorted(wanted - before),
            resource_names_unsubscribe=sorted(before - wanted),
        )
        return request.SerializeToString()  # type: ignore[no-any-return]

    def ask_again(self, type_url: str, names: Iterable[str]) -> bytes:
        """Ask for resources that were refused and are in use now, so that the server hears it in the next answer."""
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url, resource_names_subscribe=sorted(names)
        )
        return request.SerializeToString()  # type: ignore[no-any-return]

    def held(self, type_url: str) -> Mapping[str, EncodedResource]:
        """What was acknowledged of a type."""
        return self._held.get(type_url, {})

    def preload(self, type_url: str, resources: Mapping[str, EncodedResource]) -> None:
        """Hold what a former process held, before the first stream."""
        self._held[type_url] = dict(resources)

    def _first(self, type_url: str) -> bytes:
        wanted = self._wanted[type_url]
        legacy = wanted == {WILDCARD} and type_url in LEGACY_WILDCARD_TYPES
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url,
            resource_names_subscribe=() if legacy else sorted(wanted),
            initial_resource_versions={
                name: resource.version for name, resource in self._held.get(type_url, {}).items()
            },
        )
        self._started.add(type_url)
        if not self._node_sent:
            self._node_sent = True
            request.node.CopyFrom(self.node)
        return request.SerializeToString()  # type: ignore[no-any-return]

    def _answer(self, update: Update) -> Any:
        return discovery_pb2.DeltaDiscoveryRequest(type_url=update.type_url, response_nonce=update.nonce)


def health_request(healthy: bool, message: str = "") -> bytes:
    """The request by which an agent reports its workload's health (Istio's way).

    The message says what is wrong; "leaving" says that the workload goes on purpose.
    """
    request = discovery_pb2.DeltaDiscoveryRequest(type_url=HEALTH)
    if not healthy:
        request.error_detail.code = 1
        request.error_detail.message = message
    return request.SerializeToString()  # type: ignore[no-any-return]
