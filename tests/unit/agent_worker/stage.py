"""A worker without sockets: real bootstrap, codecs, exchange and pools; bytes in, bytes out, and time by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.http.request import ConnectionInfo
from agent.table.bootstrap import load
from agent.telemetry.access_log import Sinks
from agent.telemetry.series import Recorder
from agent.upstream.host import Host
from agent.worker.reactor import Reactor
from agent.worker.services import Services
from agent.worker.space import Space

BOOTSTRAP = """
static_resources:
  listeners:
  - name: main
    bind_to_port: false
    address: {socket_address: {address: 127.0.0.1, port_value: 10000}}
    per_connection_buffer_limit_bytes: 4096
    filter_chains:
    - filters:
      - name: http
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: main
          codec_type: HTTP1
          upgrade_configs: [{upgrade_type: websocket}]
          access_log:
          - name: file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: LOG
              log_format:
                text_format_source:
                  inline_string: "%REQ(:PATH)% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\\n"
          route_config:
            name: local
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: ROUTES
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}
  clusters:
  - name: a
    type: STATIC
    load_assignment:
      cluster_name: a
      endpoints:
      - lb_endpoints:
        - {endpoint: {address: {socket_address: {address: 10.0.0.1, port_value: 80}}}}
        - {endpoint: {address: {socket_address: {address: 10.0.0.2, port_value: 80}}}}
"""
GET = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
ROUTES = "[{match: {prefix: /}, route: {cluster: a}}]"


@dataclass
class _Socket:
    def getsockname(self) -> tuple[str, int]:
        return ("10.0.0.9", 40000)


@dataclass
class Wire:
    """A transport that a test reads and writes. `sent` is what left, joined."""

    reactor: Reactor
    owner: Any = None
    sent: bytes = b""
    full: bool = False
    paused: bool = False
    closed: bool = False
    finished: bool = False
    peer_ended: bool = False
    backlog: int = 0
    socket: _Socket = field(default_factory=_Socket)

    def start(self) -> None: ...

    def write(self, data: bytes) -> None:
        self.sent += data

    def flush(self) -> None: ...

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def finish(self) -> None:
        self.finished = True

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = True

    def close_when_sent(self) -> None:
        self.closed = True
        self.owner.sent()

    def unsent(self) -> int:
        return 0

    def take(self) -> bytes:
        """What was sent since the last time."""
        sent, self.sent = self.sent, b""
        return sent


class Dials:
    """Connections that the worker wanted, not made until the test says so."""

    def __init__(self, reactor: Reactor) -> None:
        self.reactor = reactor
        self.asked: list[tuple[Host, Any]] = []

    def dial(self, host: Host, config: Any, caller: Any, **_: Any) -> None:
        self.asked.append((host, caller))

    def accept(self) -> Wire:
        """The oldest one succeeds."""
        _, caller = self.asked.pop(0)
        wire = Wire(self.reactor, caller)
        caller.connected(wire, None)
        return wire

    def refuse(self, reason: str, failure: str = "") -> None:
        """The oldest one fails."""
        self.asked.pop(0)[1].unreachable(reason, failure)


class Stage:
    """See the module."""

    def __init__(
        self, folder: Path, routes: str = ROUTES, change: Callable[[str], str] = lambda text: text
    ) -> None:
        self.log = folder / "access.log"
        self.text = change(BOOTSTRAP.replace("LOG", str(self.log)))
        self.reactor = Reactor()
        self.reactor.now = 1000.0
        self.sinks = Sinks()
        self.dials = Dials(self.reactor)
        services = Services(
            self.reactor,
            Recorder(),
            self.sinks,
            lambda: 0x1234_5678_9ABC_DEF0,
            lambda cluster, settled: None,
            lambda cluster: None,
        )
        self.space = Space(services, self.dials)  # type: ignore[arg-type]
        self.apply(routes)

    def apply(self, routes: str = ROUTES, change: Callable[[str], str] = lambda text: text) -> None:
        """Bring a table with these routes into force."""
        refused = self.space.apply(load(change(self.text.replace("ROUTES", routes))).table)
        assert not refused, refused

    def client(self) -> Wire:
        """A new client connection."""
        wire = Wire(self.reactor)
        station = self.space.every_station()[0]
        station.open(wire, ConnectionInfo(1, ("192.0.2.7", 50000), ("127.0.0.1", 10000)))  # type: ignore[arg-type]
        return wire

    def later(self, seconds: float) -> None:
        """Time passes."""
        self.reactor.now += seconds
        self.reactor.timers.run(self.reactor.now)

    def turn(self) -> bool:
        """The next turn of the reactor, at the same time: what was postponed goes on. False: nothing was."""
        calls = self.reactor._soon
        waiting = len(calls)
        for _ in range(waiting):
            calls.popleft()()
        return waiting > 0

    def logged(self) -> list[str]:
        """The access log so far."""
        self.sinks.flush()
        return self.log.read_text().splitlines()

    def close(self) -> None:
        """Give everything back."""
        self.sinks.close()
        self.reactor.close()


def status(wire: Wire) -> int:
    """The status that a client got, 0 before it got one."""
    return int(wire.sent.split(b" ", 2)[1]) if wire.sent else 0
