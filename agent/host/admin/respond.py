"""One request to the admin pages, one answer. Paths, parameters and formats are Envoy's.

Rule: pages that change something want POST, and answer only on the host's own port, never to istiod. A page never
fails for what a worker does not answer. Not for: sockets (agent.host.admin.pages) or the contents of big pages.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Awaitable, Callable, Container
from typing import Any
from urllib.parse import parse_qs

import re2
import trio
from google.protobuf.any_pb2 import Any as AnyMessage

import agent.host.admin.config_dump as dumps
from agent.host.admin import clusters
from agent.host.admin.page import Page
from agent.host.admin.sources import Sources
from agent.host.admin.tasks import tasks
from agent.table.build import LISTENER
from agent.telemetry.prometheus import CONTENT_TYPE, exposition, stats_json, stats_text

_TEXT = "text/plain; charset=UTF-8"
_JSON = "application/json"
_LEVELS = ("debug", "info", "warning", "error", "critical")

_FROM_ISTIOD = frozenset({"/logging"})
"""Changing pages that istiod may ask for (`meshctl proxy-config log`): they change what is logged, not what is done."""

Query = dict[str, str]
Handler = Callable[[Query], Awaitable[Page]]


class _BadRequest(Exception):
    """What is wrong with the parameters."""


class AdminPages:
    """Envoy's admin pages over `Sources`."""

    def __init__(self, sources: Sources, clock: Callable[[], float] = time.time) -> None:
        self._sources = sources
        self._clock = clock
        self._failing = False
        self._reading: dict[str, tuple[Handler, str]] = {
            "/": (self._help, "this list"),
            "/certs": (self._certs, "print certs on machine"),
            "/clusters": (self._clusters, "upstream cluster status (filter, format=json)"),
            "/config_dump": (
                self._config_dump,
                "configuration in use (resource, name_regex, include_eds, workload)",
            ),
            "/contention": (self._contention, "dump current contention stats (if enabled)"),
            "/hot_restart_version": (
                self._hot_restart_version,
                "print the hot restart compatibility version",
            ),
            "/init_dump": (self._init_dump, "dump current init manager information"),
            "/runtime": (self._runtime, "print runtime values"),
            "/help": (self._help, "print out list of admin commands"),
            "/listeners": (self._listeners, "listeners and their addresses (format=json)"),
            "/memory": (
                self._memory,
                "memory of this process (workers: what each worker holds, by kind; tasks)",
            ),
            "/ready": (self._ready, "print server state, return 200 if LIVE, otherwise return 503"),
            "/server_info": (self._server_info, "print server version/status information"),
            "/stats": (self._stats, "print server stats (filter, usedonly, type, format=json|prometheus)"),
            "/stats/prometheus": (self._prometheus, "print server stats in prometheus format"),
        }
        self._changing: dict[str, tuple[Handler, str]] = {
            "/logging": (self._logging, "query/change logging levels (level, paths)"),
            "/healthcheck/fail": (self._fail, "cause the server to fail health checks"),
            "/healthcheck/ok": (self._ok, "cause the server to pass health checks"),
            **{
                f"/{name}": (self._action(name), text)
                for name, text in (
                    ("drain_listeners", "drain listeners (graceful, skip_exit, inboundonly)"),
                    ("quitquitquit", "exit the server"),
                    ("reset_counters", "reset all counters to zero"),
                    ("reopen_logs", "reopen access logs"),
                )
            },
        }

    @property
    def ready(self) -> bool:
        """LIVE: ready and not failing on demand (/healthcheck/fail)."""
        return self._sources.ready() and not self._failing

    async def respond(self, method: str, path: str, body: bytes) -> Page:
        """Answer one request; `path` with its query."""
        return await self._respond(method, path, self._changing)

    async def respond_to_istiod(self, method: str, path: str, body: bytes) -> Page:
        """The same for istiod: of the pages that change something only the log's levels."""
        return await self._respond(method, path, _FROM_ISTIOD)

    async def respond_reading(self, method: str, path: str, body: bytes) -> Page:
        """The same for everybody on the host: nothing that changes something."""
        return await self._respond(method, path, frozenset())

    async def _respond(self, method: str, path: str, changes: Container[str]) -> Page:
        await trio.lowlevel.checkpoint()
        name, _, query = path.partition("?")
        name = name.rstrip("/") or "/"
        if not name.startswith("/"):
            name = "/" + name
        parameters = {key: values[-1] for key, values in parse_qs(query, keep_blank_values=True).items()}
        try:
            if name in self._reading:
                return await self._reading[name][0](parameters)
            if name in self._changing:
                if name not in changes:
                    return Page(403, _TEXT, self._sources.refusal.encode() + b"\n")
                if method != "POST":
                    return Page(405, _TEXT, f"Method {method} not allowed, POST required.".encode())
                return await self._changing[name][0](parameters)
        except _BadRequest as error:
            return Page(400, _TEXT, str(error).encode())
        return Page(404, _TEXT, f"invalid path {name}\n\n".encode() + self._help_text())

    def _help_text(self) -> bytes:
        lines = [f"  {name}: {text}" for name, (_, text) in self._reading.items()]
        lines += [f"  {name} (POST): {text}" for name, (_, text) in self._changing.items()]
        return ("admin commands are:\n" + "\n".join(sorted(lines)) + "\n").encode()

    async def _help(self, query: Query) -> Page:
        return Page(200, _TEXT, self._help_text())

    def _state(self) -> str:
        if self._sources.draining() or self._failing:
            return "DRAINING"
        return "LIVE" if self._sources.ready() else "PRE_INITIALIZING"

    async def _ready(self, query: Query) -> Page:
        state = self._state()
        return Page(200 if state == "LIVE" else 503, _TEXT, f"{state}\n".encode())

    async def _server_info(self, query: Query) -> Page:
        from importlib import metadata  # brings the whole of `email` with it

        up = f"{max(0, int(self._clock() - self._sources.started))}s"
        return _json(
            {
                "version": f"hostmesh/{metadata.version('hostmesh')}",
                "state": self._state(),
                "uptime_current_epoch": up,
                "uptime_all_epochs": up,
                "command_line_options": dict(self._sources.options),
                "node": {"id": self._sources.node_id, "user_agent_name": "hostmesh"},
            }
        )

    async def _memory(self, query: Query) -> Page:
        size = str(resident())
        told: dict[str, Any] = {"allocated": size, "heap_size": size, "total_physical_bytes": size}
        if "workers" in query:
            told["workers"] = [held for answer in await self._sources.query("holdings") for held in answer]
        if "tasks" in query:
            told["tasks"] = tasks()
        return _json(told)

    async def _runtime(self, query: Query) -> Page:
        layers = self._sources.runtime
        entries = {}
        for key in sorted({key for _, values in layers for key in values}):
            told = [_runtime_text(values[key]) if key in values else "" for _, values in layers]
            entries[key] = {
                "final_value": next(text for text in reversed(told) if text),
                "layer_values": told,
            }
        return _json({"layers": [name for name, _ in layers], "entries": entries})

    async def _init_dump(self, query: Query) -> Page:
        return _json({})

    async def _contention(self, query: Query) -> Page:
        text = (
            b"Mutex contention tracing is not enabled. To enable, run Envoy with flag --enable-mutex-tracing."
        )
        return Page(200, _TEXT, text)

    async def _hot_restart_version(self, query: Query) -> Page:
        return Page(200, _TEXT, b"disabled")

    async def _stats(self, query: Query) -> Page:
        used_only = "usedonly" in query
        form = query.get("format", "text")
        if form == "prometheus":
            return await self._prometheus(query)
        if form not in ("text", "json"):
            return Page(400, _TEXT, b"usage: /stats?format=(html|active-html|json|prometheus|text)\n\n")
        wanted = _filter(query, "filter")
        statistics = self._sources.statistics()
        kind = query.get("type", "All").lower()
        if kind not in ("all", "counters", "gauges", "histograms"):
            return Page(400, _TEXT, b"invalid &type= param")
        if kind not in ("all", "counters"):
            statistics.counters = {}
        if kind not in ("all", "gauges"):
            statistics.gauges = {}
        if kind not in ("all", "histograms"):
            statistics.histograms = {}
        if form == "json":
            return Page(200, _JSON, stats_json(statistics, wanted, used_only=used_only).encode())
        return Page(200, _TEXT, stats_text(statistics, wanted, used_only=used_only).encode())

    async def _prometheus(self, query: Query) -> Page:
        statistics = self._sources.statistics()
        if "filter" in query:
            statistics.keep(_filter(query, "filter"))
        text = exposition(statistics, used_only="usedonly" in query)
        return Page(200, CONTENT_TYPE, text.encode())

    async def _clusters(self, query: Query) -> Page:
        found = clusters.merged(await self._sources.query("clusters"), _filter(query, "filter"))
        if query.get("format") == "json":
            return _json({"cluster_statuses": found})
        return Page(200, _TEXT, clusters.as_text(found).encode())

    async def _listeners(self, query: Query) -> Page:
        addresses: list[tuple[str, dict[str, Any]]] = []
        bootstrap = self._sources.bootstrap()
        if bootstrap is not None:
            static = dumps.as_dict(bootstrap).get("static_resources", {})
            addresses += [(item.get("name", ""), item["address"]) for item in static.get("listeners", ())]
        for resource in self._sources.resources("").get(LISTENER, ()):
            message = dumps.as_dict(AnyMessage.FromString(resource.body))
            addresses.append((resource.name, message.get("address", {})))
        if query.get("format") == "json":
            return _json(
                {
                    "listener_statuses": [
                        {"name": name, "local_address": address} for name, address in addresses
                    ]
                }
            )
        lines = [f"{name}::{clusters.address_text({'address': address})}\n" for name, address in addresses]
        return Page(200, _TEXT, "".join(lines).encode())

    async def _config_dump(self, query: Query) -> Page:
        dump = dumps.config_dump(
            self._sources.bootstrap(),
            self._sources.resources(query.get("workload", "")),
            include_eds="include_eds" in query,
            wanted=_filter(query, "name_regex"),
        )
        field = query.get("resource")
        if field is None:
            return _json(dump)
        part = dumps.one_field(dump, field)
        return (
            _json(part)
            if part is not None
            else Page(404, _TEXT, f"{field} not found in config dump".encode())
        )

    async def _certs(self, query: Query) -> Page:
        # Here and not above: `hostmesh-agent proxy` without TLS has no other use for its 8 MB.
        from agent.host.admin.certificates import certificates_page

        return _json(certificates_page(self._sources.certificates(), self._clock()))

    async def _logging(self, query: Query) -> Page:
        for setting in filter(None, query.get("paths", "").split(",")):
            name, _, level = setting.partition(":")
            await self._set_level(f"hostmesh.{name}", _level(level))
        if "level" in query:
            await self._set_level("hostmesh", _level(query["level"]))
        names = sorted(name for name in logging.root.manager.loggerDict if name.startswith("hostmesh."))
        lines = [
            f"  {name.removeprefix('hostmesh.')}: {_level_name(logging.getLogger(name).getEffectiveLevel())}\n"
            for name in names
        ]
        return Page(200, _TEXT, ("active loggers:\n" + "".join(lines)).encode())

    async def _set_level(self, logger: str, level: int) -> None:
        logging.getLogger(logger).setLevel(level)
        await self._sources.set_level(logger, level)

    async def _fail(self, query: Query) -> Page:
        self._failing = True
        return await self._act("healthcheck/fail", query, needed=False)

    async def _ok(self, query: Query) -> Page:
        self._failing = False
        return await self._act("healthcheck/ok", query, needed=False)

    def _action(self, name: str) -> Handler:
        async def act(query: Query) -> Page:
            return await self._act(name, query)

        return act

    async def _act(self, name: str, query: Query, *, needed: bool = True) -> Page:
        action = self._sources.actions.get(name)
        if action is not None:
            await action(query)
        elif needed:
            return Page(501, _TEXT, f"/{name} is not possible in this mode\n".encode())
        return Page(200, _TEXT, b"OK\n")


def _runtime_text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)


def resident() -> int:
    """Bytes of memory of this process."""
    with open("/proc/self/statm", "rb") as file:  # noqa: PTH123 (a file that never blocks)
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _json(value: object) -> Page:
    return Page(200, _JSON, json.dumps(value, indent=1).encode() + b"\n")


def _filter(query: Query, name: str) -> Callable[[str], bool]:
    """A user's pattern (RE2), found anywhere in the name; no pattern takes everything."""
    pattern = query.get(name)
    if pattern is None:
        return lambda _: True
    options = re2.Options()
    options.log_errors = False
    try:
        search = re2.compile(pattern, options).search
    except re2.error as error:
        told = error.args[0] if error.args else error
        reason = told.decode("utf-8", "replace") if isinstance(told, bytes) else told
        raise _BadRequest(f"Invalid re2 regex: {reason}") from None
    return lambda text: search(text) is not None


def _level(text: str) -> int:
    name = {"trace": "debug", "warn": "warning"}.get(text.lower(), text.lower())
    if name == "off":
        return logging.CRITICAL + 10
    if name not in _LEVELS:
        raise _BadRequest(f"level {text!r}: one of {', '.join(_LEVELS)}, off")
    return logging.getLevelNamesMapping()[name.upper()]


def _level_name(level: int) -> str:
    return logging.getLevelName(level).lower() if level <= logging.CRITICAL else "off"
