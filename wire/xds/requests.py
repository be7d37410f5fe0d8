"""What a client's message on an ADS stream said, the same for both protocol variants.

Rule: a message is either the first of its type on the stream, an answer (ACK, NACK) to the response that is
outstanding, or a change of what the client wants. Not for keeping state (sotw, delta).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from google.protobuf.message import DecodeError, Message

from wire.xds.refusals import Refusal


class XdsError(ValueError):
    """A message that breaks the protocol; the stream is to be ended with INVALID_ARGUMENT."""


class Kind(Enum):
    """What a request is, beside the change of subscription that it may carry."""

    FIRST = "first"
    """The first of its type on this stream."""
    ACK = "ack"
    NACK = "nack"
    CHANGE = "change"
    """Neither: a changed subscription, or the same one again."""
    STALE = "stale"
    """Answers a response that is no longer the last one (state of the world only); has no effect."""
    REPORT = "report"
    """No subscription at all: a health report."""


@dataclass(frozen=True, slots=True)
class Nack:
    """A response that the client refused."""

    version: str
    """The response's version: content hash of all it covers."""
    code: int
    reason: str


@dataclass(frozen=True, slots=True)
class Received:
    """One request, understood.

    `node` is the stream's envoy.config.core.v3.Node as the client named it in its first request (None
    before). `nack` is set with Kind.NACK, `error` (code, text) with Kind.REPORT when the client reports ill
    health.
    """

    type_url: str
    kind: Kind
    node: Any
    nack: Nack | None = None
    error: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class Interest:
    """What a client wants of a type: all that a wildcard covers, and these names."""

    wildcard: bool
    names: frozenset[str]

    def covers(self, name: str, *, by_wildcard: bool) -> bool:
        """Whether a resource is wanted; `by_wildcard` is the resource's own `wildcard` mark."""
        return name in self.names or (self.wildcard and by_wildcard)


@dataclass(frozen=True, slots=True)
class TypeState:
    """Where a client stands with a type, for `proxy-status`.

    `sent` and `acked` are versions of the whole type (content hashes, "" for none); SYNCED is `sent == acked`
    with nothing outstanding and nothing refused. `nack` is the refusal of the last response that was answered, None
    after an ACK; `refused` has every resource whose present version the client does not use.
    """

    interest: Interest
    sent: str = ""
    acked: str = ""
    nonce: str = ""
    outstanding: bool = False
    nack: Nack | None = None
    refused: Mapping[str, Refusal] = field(default_factory=dict)


def parse(message: Message, data: bytes) -> None:
    """Parse into `message`; raises XdsError."""
    try:
        message.ParseFromString(data)
    except DecodeError as error:
        raise XdsError(f"not a {message.DESCRIPTOR.full_name}: {error}") from error
