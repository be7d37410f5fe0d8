"""Where a connection ends up after its filter chain was chosen: an HTTP connection manager.

Rule: a station lives as long as its filter chain is unchanged; routes are exchanged in it. One that has left the table
drains: its connections end with their next response, and at the latest when its time is over.
Not for: choosing a chain (chain_match), TCP (agent/worker/tcp).
"""

from __future__ import annotations

from agent.exchange.setting import Setting
from agent.filters.network import NetworkGate
from agent.http.codecs import SERVER_CODEC
from agent.http.h1_message import Limits, RequestSink, ServerCodec
from agent.http.intake import client_certificate_element
from agent.http.request import ConnectionInfo
from agent.table.listener import FilterChain
from agent.table.route import RouteConfiguration
from agent.telemetry.scopes import ListenerStats
from agent.worker.accept import Station
from agent.worker.downstream import H1Downstream, H1Station
from agent.worker.refusal import Refusal
from agent.worker.tls_contexts import ServerTls
from agent.worker.transport import PlainTransport


class HttpStation(Station, H1Station):
    """One filter chain with an HTTP connection manager at its end."""

    bulk = False

    def __init__(
        self,
        chain: FilterChain,
        setting: Setting,
        routes: RouteConfiguration,
        tls: ServerTls | None,
        gate: NetworkGate | None,
        stats: ListenerStats,
    ) -> None:
        self.stats = stats
        self.chain = chain
        self.setting = setting
        self.routes = routes
        """What the router was compiled from."""
        self.tls = tls
        self.gate = gate
        self.draining = False
        self.connections: set[H1Downstream] = set()
        manager = setting.manager
        self._limits = Limits(
            manager.max_request_headers_kb * 1024, manager.max_headers_count, manager.underscores,
            manager.allow_absolute_url, manager.enable_trailers, manager.allow_custom_methods, manager.allow_chunked_length,
            manager.accept_http_10, manager.preserve_case,
        )  # fmt: skip

    def server_codec(self, sink: RequestSink) -> ServerCodec:
        """See downstream.Station."""
        return SERVER_CODEC(sink, self._limits)

    def open(self, transport: PlainTransport, connection: ConnectionInfo) -> None:
        """A connection has arrived, with TLS behind it if there is any."""
        if self.gate is not None and self.gate.enter(connection, transport.reactor.now) is not None:
            Refusal(transport)
            return
        element = client_certificate_element(self.setting.manager, connection)
        downstream = H1Downstream(self, connection, element, transport)
        self.connections.add(downstream)
        self.setting.slots[self.stats.downstream_cx_active] += 1
        transport.owner = downstream

    def connection_closed(self, connection: H1Downstream) -> None:
        """See downstream.Station."""
        if connection in self.connections:
            self.connections.remove(connection)
            slots = self.setting.slots
            slots[self.stats.downstream_cx_active] -= 1
            slots[self.stats.downstream_cx_destroy] += 1
            if self.gate is not None:
                self.gate.leave()

    def drain(self) -> None:
        """New responses end their connections."""
        self.draining = True

    def close_idle(self) -> None:
        """End connections without a request."""
        for connection in tuple(self.connections):
            connection.drain()

    def close_all(self) -> None:
        """The time is over."""
        for connection in tuple(self.connections):
            connection.transport.close()
            connection.lost("drained")
