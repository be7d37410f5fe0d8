"""xDS resources to a table, each resource for itself.

Rule: a resource that cannot be used harms nothing but itself: it is reported with its path and reason, its last good
version stays in use if there is one, and every other resource is taken. A resource whose bytes did not change stays the
same object, so that a worker sees by identity what changed and keeps its connections, pools and buckets.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

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

Resources = Mapping[str, Mapping[str, bytes]]
"""Type URL, name, serialised google.protobuf.Any."""
Bodies = dict[str, dict[str, bytes]]

LISTENER = "type.googleapis.com/envoy.config.listener.v3.Listener"
ROUTE = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
CLUSTER = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
ENDPOINT = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
SECRET = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105 - a type's name

_DECODERS: Mapping[str, Callable[[Reader], Any]] = {
    LISTENER: listener,
    ROUTE: route_configuration,
    CLUSTER: cluster,
    ENDPOINT: assignment,
    SECRET: secret,
}
_log = logging.getLogger("hostmesh.table")


@dataclass(frozen=True, slots=True)
class Refused:
    """One resource that cannot be used. `path` begins with the resource (`Cluster[reviews].lb_policy`)."""

    type_url: str
    name: str
    path: str
    reason: str
    in_use: bool = False
    """It is in use all the same, without the part at `path`."""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Built:
    """A table, and what was left out of it. `bodies` is what the table was made from: with the last good version in
    place of a refused resource, and without those that have none."""

    table: Table
    bodies: Bodies
    refused: tuple[Refused, ...]


class TableBuilder:
    """Builds tables one after the other; remembers what each resource was decoded to."""

    def __init__(self, read_file: Callable[[str], bytes] = read_bytes) -> None:
        self._read_file = read_file
        self._known: dict[tuple[str, str], tuple[bytes, Any]] = {}
        self._before: dict[tuple[str, str], tuple[bytes, Any]] = {}

    def build(self, resources: Resources, *, again: bool = False) -> Built:
        """The table of these resources. Type URLs that are not the data plane's are passed over. `again`: the last ones,
        less what was rejected."""
        known: dict[tuple[str, str], tuple[bytes, Any]] = {}
        digest = hashlib.sha256()
        bodies: Bodies = {}
        refused: list[Refused] = []
        values: dict[str, dict[str, Any]] = {}
        for url, decode_one in _DECODERS.items():
            found = values[url] = {}
            if url in resources:
                bodies[url] = {}
            for name, body in sorted(resources.get(url, {}).items()):
                use: tuple[bytes, Any] | None = self._known.get((url, name))
                if use is None or use[0] != body:
                    try:
                        use = body, self._decode(url, name, body, decode_one)
                    except ConfigError as error:
                        refused.append(Refused(url, name, error.path, error.reason))
                if use is None:
                    continue
                known[(url, name)] = use
                found[name], bodies[url][name] = use[1], use[0]
                digest.update(b"%s\0%s\0" % (url.encode(), name.encode()))
                digest.update(hashlib.sha256(use[0]).digest())
        if not again:
            self._before = self._known
        self._known = known
        table = Table(
            listeners=values[LISTENER],
            routes=values[ROUTE],
            clusters=values[CLUSTER],
            assignments=values[ENDPOINT],
            secrets=values[SECRET],
            version=digest.hexdigest()[:16],
        )
        return Built(table, bodies, tuple(refused))

    def reject(self, type_url: str, name: str) -> None:
        """A resource of the last table failed at its use: what was good before it stays the last good version."""
        before = self._before.get((type_url, name))
        if before is None:
            self._known.pop((type_url, name), None)
        else:
            self._known[(type_url, name)] = before

    def last_good(self, resources: Resources, left: Collection[tuple[str, str]]) -> Bodies:
        """The resources with the last good version in place of those of `left` (type URL, name), or without them."""
        found: Bodies = {}
        for url, bodies in resources.items():
            found[url] = {}
            for name, body in bodies.items():
                if (url, name) not in left:
                    found[url][name] = body
                elif (url, name) in self._known:
                    found[url][name] = self._known[(url, name)][0]
        return found

    def _decode(self, url: str, name: str, body: bytes, decode_one: Callable[[Reader], Any]) -> Any:
        path = resource_path(url, name)
        try:
            packed = AnyMessage.FromString(body)
        except DecodeError as error:
            raise ConfigError(path, f"not a google.protobuf.Any: {error}") from error
        if packed.type_url != url:
            raise ConfigError(path, f"has type {packed.type_url!r}")
        try:
            message = unpack(packed, path)
            check_constraints(message, path)
            return decode_one(Reader(message, path, Context(self._read_file)))
        except ConfigError:
            raise
        except RecursionError:
            raise ConfigError(path, "nested too deeply") from None
        except Exception as error:
            # A fault of the decoder must not cost more than this resource.
            _log.exception("%s cannot be decoded", path)
            raise ConfigError(path, f"cannot be decoded: {type(error).__name__}: {error}") from error


def resource_path(type_url: str, name: str) -> str:
    """How errors name a resource: `Cluster[reviews]`."""
    return f"{type_name(type_url).rpartition('.')[2]}[{name}]"


def unread(name: str) -> bytes:
    """For judging a configuration away from the host that has its files: every file is there, and empty."""
    return b""


def decode(resources: Resources) -> tuple[Bodies, tuple[Refused, ...]]:
    """What an agent without any earlier configuration would take, and what it would refuse and why.

    Pure: opens no file; files that a resource names are the host's and count as readable.
    """
    built = TableBuilder(unread).build(resources)
    return built.bodies, built.refused


def build(resources: Resources) -> Table:
    """One table on its own. Raises ConfigError for the first resource that cannot be used."""
    built = TableBuilder().build(resources)
    for refused in built.refused:
        raise ConfigError(refused.path, refused.reason)
    return built.table
