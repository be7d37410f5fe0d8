"""The end of a filter chain with an HTTP connection manager: connections that arrive become H1Downstreams.

Rule: routes are exchanged in it while the chain stays the same; when it drains, connections end with their next response.
Not for: what all ends of chains have in common (station), opaque streams (tcp).
"""

from __future__ import annotations

from agent.exchange.setting import Setting
from agent.http.codecs import SERVER_CODEC
from agent.http.h1_message import Limits, RequestSink, ServerCodec
from agent.http.intake import client_certificate_element
from agent.http.request import ConnectionInfo
from agent.table.route import RouteConfiguration
from agent.worker.downstream import H1Downstream, H1Station
from agent.worker.station import Door, Station
from agent.worker.transport import PlainTransport


class HttpStation(Station, H1Station):
    """One filter chain with an HTTP connection manager at its end."""

    def __init__(self, door: Door, setting: Setting, routes: RouteConfiguration) -> None:
        super().__init__(door)
        self.setting = setting
        self.routes = routes
        """What the router was compiled from."""
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
        """See Station."""
        if not self.admits(transport, connection):
            return
        element = client_certificate_element(self.setting.manager, connection)
        downstream = H1Downstream(self, connection, element, transport)
        self.enter(downstream)
        transport.owner = downstream
