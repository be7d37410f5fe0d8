"""xDS resources to a table.

Rule: the table is built whole or not at all; the first resource that cannot be used raises ConfigError, and the agent
answers the control plane with its text. A resource whose bytes did not change stays the same object, so that a
worker sees by identity what changed and keeps its connections, pools and buckets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError

from agent.table.decode.clusters import cluster
from agent.table.decode.constraints import check_constraints
from agent.table.decode.endpoints import assignment
from agent.table.decode.listeners import listener
from agent.table.decode.message import Context, Reader, read_bytes
from agent.table.decode.routes import route_configuration
from agent.table.decode.tls import secret
from agent.table.decode.types import type_name, unpack
from agent.table.errors import ConfigError
from agent.table.snapshot import Table

T = TypeVar("T")
Resources = Mapping[str, Mapping[str, bytes]]

LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - a type's name


class TableBuilder:
    """Builds tables one after the other; remembers what each resource was decoded to."""

    def __init__(self, read_file: Callable[[str], bytes] = read_bytes) -> None:
        self._read_file = read_file
        self._known: dict[tuple[str, str], tuple[bytes, Any]] = {}

    def build(self, resources: Resources) -> Table:
        """The table of these resources (type URL to name to serialised google.protobuf.Any).

        Type URLs that are not the data plane's are passed over. Raises ConfigError, keeping what was known before.
        """
        known: dict[tuple[str, str], tuple[bytes, Any]] = {}
        digest = hashlib.sha256()

        def every(url: str, decode: Callable[[Reader], T]) -> dict[str, T]:
            found: dict[str, T] = {}
            for name, body in sorted(resources.get(url, {}).items()):
                digest.update(b"%s\0%s\0" % (url.encode(), name.encode()))
                digest.update(hashlib.sha256(body).digest())
                before = self._known.get((url, name))
                value = (
                    before[1]
                    if before is not None and before[0] == body
                    else self._decode(url, name, body, decode)
                )
                known[(url, name)] = (body, value)
                found[name] = value
            return found

        table = Table(
            listeners=every(LISTENER, listener),
            routes=every(ROUTE, route_configuration),
            clusters=every(CLUSTER, cluster),
            assignments=every(ENDPOINT, assignment),
            secrets=every(SECRET, secret),
            version=digest.hexdigest()[:16],
        )
        self._known = known
        return table

    def _decode(self, url: str, name: str, body: bytes, decode: Callable[[Reader], T]) -> T:
        path = f"{type_name(url).rpartition('.')[2]}[{name}]"
        try:
            packed = AnyMessage.FromString(body)
        except DecodeError as error:
            raise ConfigError(path, f"not a google.protobuf.Any: {error}") from error
        if packed.type_url != url:
            raise ConfigError(path, f"has type {packed.type_url!r}")
        message = unpack(packed, path)
        check_constraints(message, path)
        return decode(Reader(message, path, Context(self._read_file)))


def build(resources: Resources) -> Table:
    """One table on its own, without memory of an earlier one."""
    return TableBuilder().build(resources)
