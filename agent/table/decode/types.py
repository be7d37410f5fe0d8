"""Finding the protobuf class behind a type URL.

Rule: classes come from xds-protos; the modules of a package are imported when a type of it is first met. The upb
backend is required: the pure-Python one is two hundred times slower.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.internal import api_implementation
from google.protobuf.message import DecodeError, Message

from agent.table.errors import ConfigError

if api_implementation.Type() != "upb":
    raise ImportError(f"protobuf must use its upb backend, this one is {api_implementation.Type()}")

_ROOTS = ("envoy", "google", "udpa", "xds")


@cache
def _import_package(package: str) -> None:
    """Import every message module of a protobuf package, so that its types are in the pool."""
    try:
        module = importlib.import_module(package)
    except ImportError:
        return
    for found in pkgutil.iter_modules(module.__path__):
        if found.name.endswith("_pb2"):
            importlib.import_module(f"{package}.{found.name}")


@cache
def message_class(full_name: str) -> type[Message] | None:
    """The class of a message type by its full name; None where there is none."""
    package = full_name.rpartition(".")[0]
    if package.partition(".")[0] in _ROOTS:
        _import_package(package)
    try:
        descriptor = descriptor_pool.Default().FindMessageTypeByName(full_name)
    except KeyError:
        return None
    return message_factory.GetMessageClass(descriptor)


def type_name(type_url: str) -> str:
    """`envoy.x.Y` of `type.googleapis.com/envoy.x.Y`."""
    return type_url.rpartition("/")[2]


def unpack(packed: AnyMessage, path: str) -> Message:
    """The message inside an Any. Raises ConfigError for an unknown type or undecodable bytes."""
    name = type_name(packed.type_url)
    kind = message_class(name)
    if kind is None:
        raise ConfigError(path, f"unknown type {packed.type_url!r}")
    try:
        return kind.FromString(packed.value)
    except DecodeError as error:
        raise ConfigError(path, f"not a {name}: {error}") from error
