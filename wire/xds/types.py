"""Type URLs, the order of pushes, and resources encoded once and shared between all streams.

Rule: a resource's version is a hash of its content, so equal content is never sent twice, not even by a
restarted control plane. Not for what is in a resource: bodies are opaque here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.internal import api_implementation
from google.protobuf.message import Message

PREFIX = "type.googleapis.com/"
LISTENER = PREFIX + "envoy.config.listener.v3.Listener"
ROUTE = PREFIX + "envoy.config.route.v3.RouteConfiguration"
CLUSTER = PREFIX + "envoy.config.cluster.v3.Cluster"
ENDPOINT = PREFIX + "envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET = PREFIX + "envoy.extensions.transport_sockets.tls.v3.Secret"
NAME_TABLE = PREFIX + "istio.networking.nds.v1.NameTable"
HEALTH = PREFIX + "istio.v1.HealthInformation"
"""No resource: a request of this type reports the workload's health (error_detail set: unhealthy)."""

WILDCARD = "*"

PUSH_ORDER = (CLUSTER, ENDPOINT, LISTENER, ROUTE, SECRET)
"""Make before break: what is referred to is sent before what refers to it; types not named here come last."""

LEGACY_WILDCARD_TYPES = frozenset({CLUSTER, LISTENER, NAME_TABLE})
"""Types of which a first request without names asks for all (the protocol's "legacy wildcard")."""

# The pure-Python backend is two hundred times slower: better not to start at all.
if api_implementation.Type() != "upb":
    raise ImportError(f"protobuf must run on upb, not on {api_implementation.Type()}")


@dataclass(frozen=True, slots=True)
class EncodedResource:
    """One resource as it goes over the wire, encoded once for all proxies.

    `body` is a serialised google.protobuf.Any, `version` its content hash. With `wildcard` false the resource
    is sent to those only who ask for its name (grpcio's api_listener must never reach Envoy's LDS).
    """

    name: str
    version: str
    body: bytes
    wildcard: bool = True
    # The resource as field 2 of a (Delta)DiscoveryResponse, ready to be joined to others.
    sotw_entry: bytes = field(init=False, repr=False, compare=False)
    delta_entry: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # envoy.service.discovery.v3.Resource: version = 1, resource = 2, name = 3.
        resource = (
            length_delimited(1, self.version.encode())
            + length_delimited(2, self.body)
            + length_delimited(3, self.name.encode())
        )
        object.__setattr__(self, "sotw_entry", length_delimited(2, self.body))
        object.__setattr__(self, "delta_entry", length_delimited(2, resource))


def encode(name: str, message: Message, *, wildcard: bool = True) -> EncodedResource:
    """Encode a resource; equal messages give equal versions, in every process."""
    packed = AnyMessage(
        type_url=PREFIX + message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True)
    )
    body = packed.SerializeToString(deterministic=True)
    return EncodedResource(name, hashlib.sha256(body).hexdigest()[:16], body, wildcard)


Resources = Mapping[str, EncodedResource]
"""All resources of a type, by name."""


def version_digest(name: str, version: str) -> int:
    """What one resource contributes to the version of a set (`set_version` of the sum)."""
    return int.from_bytes(hashlib.blake2b(f"{name}\0{version}".encode(), digest_size=8).digest())


def set_version(digests: int) -> str:
    """The version of a set of resources from the sum of their digests: equal for equal names and versions."""
    return f"{digests % 2**64:016x}"


def version_of(versions: Mapping[str, str]) -> str:
    """The version of a set of resources, given as names and versions."""
    return set_version(sum(version_digest(name, version) for name, version in versions.items()))


def in_push_order(type_urls: Iterable[str]) -> list[str]:
    """The types in the order in which they are to be pushed."""
    rank = {type_url: position for position, type_url in enumerate(PUSH_ORDER)}
    return sorted(type_urls, key=lambda type_url: (rank.get(type_url, len(PUSH_ORDER)), type_url))


def length_delimited(number: int, value: bytes) -> bytes:
    """A protobuf field of wire type 2 (string, bytes, message)."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
