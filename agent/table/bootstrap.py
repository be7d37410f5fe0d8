"""An Envoy v3 bootstrap file to a table (the data plane alone, without a control plane).

Rule: what this build does not do is refused with its path at start, never ignored. Not for: opening anything.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from envoy.config.bootstrap.v3 import bootstrap_pb2

from agent.table.checks import check_references
from agent.table.cluster import Cluster
from agent.table.decode.access_logs import access_logs
from agent.table.decode.clusters import cluster
from agent.table.decode.constraints import check_constraints
from agent.table.decode.listeners import listener
from agent.table.decode.matchers import address
from agent.table.decode.message import Context, Reader, read_bytes, tree
from agent.table.decode.text import parse
from agent.table.decode.tls import secret
from agent.table.errors import ConfigError
from agent.table.listener import Address, Listener
from agent.table.snapshot import Table
from agent.table.tls import Secret


@dataclass(frozen=True, slots=True)
class Node:
    """Envoy core.Node."""

    id: str = ""
    cluster: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    region: str = ""
    zone: str = ""
    sub_zone: str = ""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """What a bootstrap file says."""

    table: Table
    admin: Address | None = None
    node: Node = Node()
    runtime: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """Layers of the runtime in their order: name, and what it sets (nothing for an admin layer)."""


def load(
    text: str,
    source: str = "bootstrap",
    *,
    read_file: Callable[[str], bytes] = read_bytes,
    environment: Mapping[str, str] | None = None,
) -> Bootstrap:
    """Parse YAML or JSON text. `source` names it in errors. Raises ConfigError with the field's path."""
    try:
        return _load(text, source, Context(read_file=read_file, environment=environment or {}))
    except RecursionError:
        raise ConfigError("", f"{source}: nested too deeply") from None


def _load(text: str, source: str, context: Context) -> Bootstrap:
    message = parse(text, bootstrap_pb2.Bootstrap, source)
    check_constraints(message)
    with Reader(message, "", context) as r:
        runtime = _runtime(r)
        r.without_effect(
            "stats_flush_interval", "enable_dispatcher_stats"
        )  # there are no sinks; Envoy's own threads
        _watchdogs(r)
        r.without_effect("node_context_params", "memory_allocator_manager")  # xDS requests; Envoy's allocator
        node = _node(r.child("node"))
        context.node_cluster, context.node_id = node.cluster, node.id
        admin = _admin(r.child("admin"))
        listeners: dict[str, Listener] = {}
        clusters: dict[str, Cluster] = {}
        secrets: dict[str, Secret] = {}
        if (static := r.child("static_resources")) is not None:
            with static as s:
                for position, item in enumerate(s.children("clusters")):
                    found = cluster(item)
                    if found.protocol == "http2":
                        s.fail(
                            f"clusters[{position}].typed_extension_protocol_options",
                            "HTTP/2 is not supported yet",
                        )
                    if found.name in clusters:
                        s.fail(f"clusters[{position}].name", f"duplicate cluster {found.name}")
                    clusters[found.name] = found
                for item in s.children("secrets"):
                    one = secret(item)
                    secrets[one.name] = one
                for position, item in enumerate(s.children("listeners")):
                    heard = listener(item)
                    name = heard.name or f"listener_{position}"
                    if name in listeners:
                        s.fail(f"listeners[{position}].name", f"duplicate listener {name}")
                    listeners[name] = heard
        unused = [key for key in context.runtime if key not in context.runtime_used]
        if unused:
            r.fail("layered_runtime", f"the runtime key {unused[0]} is not supported")
    table = Table(listeners=listeners, clusters=clusters, secrets=secrets, version="bootstrap")
    check_references(table)
    return Bootstrap(table, admin, node, runtime)


def _watchdogs(r: Reader) -> None:
    """How long Envoy's threads may be stuck before it counts that; ending the process for it is refused."""
    dogs = [r.child("watchdog")]
    if (both := r.child("watchdogs")) is not None:
        with both as b:
            dogs += [b.child("main_thread_watchdog"), b.child("worker_watchdog")]
    for dog in dogs:
        if dog is not None:
            with dog as d:
                d.without_effect("miss_timeout", "megamiss_timeout")  # statistics only
                for name in ("kill_timeout", "multikill_timeout"):
                    if d.seconds(name):
                        d.fail(name, "unsupported field")


def _runtime(reader: Reader) -> tuple[tuple[str, Mapping[str, Any]], ...]:
    """The layers. Later ones win; what they set is read as the fields that name it are."""
    layered = reader.child("layered_runtime")
    if layered is None:
        return ()
    layers: list[tuple[str, Mapping[str, Any]]] = []
    values: dict[str, Any] = {}
    with layered as runtime:
        for item in runtime.children("layers"):
            with item as layer:
                name = layer.text("name")
                kind = layer.which("layer_specifier")
                if kind == "static_layer":
                    layers.append((name, _flat(tree(layer.take(kind)), "")))
                elif kind == "admin_layer":
                    layer.take(kind)  # runtime changes by the admin page: there is no such page here
                    layers.append((name, {}))
                else:
                    layer.fail(kind, "unsupported field" if kind else "a layer must say what it is")
                values.update(layers[-1][1])
    reader.context.runtime = values
    # Switches of Envoy's own code and its process-wide limits that have no counterpart here.
    for key in values:
        if key.startswith(("envoy.reloadable_features.", "envoy.restart_features.", "re2.")):
            reader.context.runtime_used.add(key)
    return tuple(layers)


def _flat(node: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in node.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and "numerator" not in value:
            flat.update(_flat(value, name + "."))
        else:
            flat[name] = value
    return flat


def _node(reader: Reader | None) -> Node:
    if reader is None:
        return Node()
    with reader as r:
        r.without_effect(
            "user_agent_name", "user_agent_version", "user_agent_build_version", "client_features", "extensions",
            "dynamic_parameters", "listening_addresses",
        )  # fmt: skip
        place = {"region": "", "zone": "", "sub_zone": ""}
        if (locality := r.child("locality")) is not None:
            with locality as given:
                place = {name: given.text(name) for name in place}
        return Node(r.text("id"), r.text("cluster"), r.tree("metadata"), **place)


def _admin(reader: Reader | None) -> Address | None:
    if reader is None:
        return None
    with reader as r:
        r.without_effect("profile_path", "ignore_global_conn_limit")  # no profiler; no such limit
        r.only("access_log_path", "/dev/null")
        where = r.child("address")
        for position, log in enumerate(access_logs(r, "access_log")):
            if log.path != "/dev/null":
                r.fail(f"access_log[{position}]", "the admin page writes no log: only /dev/null is supported")
        return None if where is None else address(where)
