"""Small makers of Envoy messages that every part of the compile uses.

Rule: one line of Envoy configuration each; no Istio in here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from envoy.config.core.v3 import address_pb2, config_source_pb2
from google.protobuf import any_pb2, duration_pb2, struct_pb2, wrappers_pb2
from google.protobuf.message import Message

PREFIX = "type.googleapis.com/"
UNLIMITED = 2**32 - 1
_LONGEST = 100 * 365 * 86_400
"""Seconds. Envoy counts milliseconds and nanoseconds in 64 bits: a longer duration breaks the whole resource."""


def any_of(message: Message) -> any_pb2.Any:
    """A message in an Any, encoded deterministically."""
    return any_pb2.Any(
        type_url=PREFIX + message.DESCRIPTOR.full_name, value=message.SerializeToString(deterministic=True)
    )


def duration(seconds: float) -> duration_pb2.Duration:
    """A Duration, rounded to nanoseconds; at most a hundred years."""
    nanos = round(min(seconds, _LONGEST) * 1_000_000_000)
    return duration_pb2.Duration(seconds=nanos // 1_000_000_000, nanos=nanos % 1_000_000_000)


def uint32(value: int) -> wrappers_pb2.UInt32Value:
    """A UInt32Value; None and 0 differ. What is larger is as good as unlimited."""
    return wrappers_pb2.UInt32Value(value=min(value, UNLIMITED))


def fit_weights(weights: Sequence[int]) -> list[int]:
    """The same weights, scaled down where they add up to more than Envoy can count; none becomes 0."""
    total = sum(weights)
    if total <= UNLIMITED:
        return list(weights)
    room = UNLIMITED - len(weights)
    return [weight * room // total + 1 if weight else 0 for weight in weights]


def true() -> wrappers_pb2.BoolValue:
    """BoolValue true."""
    return wrappers_pb2.BoolValue(value=True)


def struct(values: dict[str, Any]) -> struct_pb2.Struct:
    """A Struct of a plain mapping."""
    result = struct_pb2.Struct()
    result.update(values)
    return result


def socket_address(host: str, port: int) -> address_pb2.Address:
    """host:port."""
    return address_pb2.Address(socket_address=address_pb2.SocketAddress(address=host, port_value=port))


def pipe_address(path: str) -> address_pb2.Address:
    """A Unix socket."""
    return address_pb2.Address(pipe=address_pb2.Pipe(path=path))


def ads() -> config_source_pb2.ConfigSource:
    """ "Over this very stream", waiting for the first answer without limit."""
    return config_source_pb2.ConfigSource(
        ads=config_source_pb2.AggregatedConfigSource(),
        initial_fetch_timeout=duration(0),
        resource_api_version=config_source_pb2.V3,
    )
