"""The upstream of a CONNECT that ends here: plain TCP (Envoy upgrade_configs.connect_config).

Rule: to the exchange it is a stream whose response, 200, begins with the connection; what follows is bytes. It is never
used twice.
Not for: CONNECT requests that are passed on, which are HTTP (upstream).
"""

from __future__ import annotations

from agent.exchange.exchange import Exchange
from agent.exchange.streams import UpstreamStream
from agent.http.h1_message import InboundResponse
from agent.http.headers import Headers
from agent.http.request import PeerIdentity
from agent.upstream import reset
from agent.upstream.pool import Pool
from agent.worker.connect import Caller
from agent.worker.transport import PlainTransport


class RawUpstream(Caller, UpstreamStream):
    """See the module."""

    __slots__ = (
        "closed", "connected_at", "exchange", "generation", "local_address", "peer", "pool", "requests", "resting", "reused",
        "transport",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.transport: PlainTransport
        self.exchange: Exchange | None = None
        self.generation = pool.generation
        self.resting = False
        self.reused = False
        self.connected_at = 0.0
        self.local_address = ""
        self.peer: PeerIdentity | None = None
        self.requests = 0
        self.closed = False
        slots, stats = pool.cluster.slots, pool.cluster.stats
        slots[stats.upstream_cx_total] += 1
        slots[stats.upstream_cx_active] += 1

    # From the dial

    def connected(self, transport: PlainTransport, peer: PeerIdentity | None) -> None:
        """See connect.Caller."""
        self.transport = transport
        self.peer = peer
        self.connected_at = transport.reactor.now
        name = transport.socket.getsockname()
        self.local_address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
        self.pool.connected(self)
        if self.exchange is None:
            self._close()  # who asked for it has gone, and nobody else will

    def unreachable(self, reason: str, failure: str) -> None:
        """See connect.Caller."""
        self.closed = True
        slots, stats = self.pool.cluster.slots, self.pool.cluster.stats
        slots[stats.upstream_cx_connect_fail] += 1
        slots[stats.upstream_cx_active] -= 1
        slots[stats.upstream_cx_destroy] += 1
        if reason == reset.CONNECT_TIMEOUT:
            slots[stats.upstream_cx_connect_timeout] += 1
        self.pool.failed(reason, failure)

    # From the exchange

    def begin(
        self, exchange: Exchange, method: bytes, path: bytes, authority: bytes, headers: Headers, ended: bool, upgrade: bytes
    ) -> None:  # fmt: skip
        """See UpstreamStream: the connection is the answer."""
        self.exchange = exchange
        self.requests += 1
        exchange.upstream_head(InboundResponse(200, Headers()))

    def full(self) -> bool:
        """See UpstreamStream."""
        return self.transport.full

    def send_data(self, data: bytes) -> None:
        """See UpstreamStream."""
        self.transport.write(data)

    def send_end(self, trailers: Headers | None) -> None:
        """See UpstreamStream."""
        self.transport.finish()

    def let_go(self) -> None:
        """See UpstreamStream. There is no response that could be whole."""
        self.cancel()

    def cancel(self) -> None:
        """See UpstreamStream."""
        self.exchange = None
        self._close()

    def pause(self) -> None:
        """See UpstreamStream."""
        self.transport.pause()

    def resume(self) -> None:
        """See UpstreamStream."""
        self.transport.resume()

    def close_idle(self) -> None:
        """See PooledConnection."""
        self._close()

    # From the transport

    def received(self, data: bytes) -> None:
        """See TransportOwner."""
        if self.exchange is not None:
            self.exchange.upstream_data(data)

    def ended(self) -> None:
        """See TransportOwner."""
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.upstream_end(None)
        self._close()

    def lost(self, reason: str) -> None:
        """See TransportOwner."""
        exchange, self.exchange = self.exchange, None
        self._close()
        if exchange is not None:
            exchange.upstream_reset(reset.TERMINATION, "")

    def drained(self) -> None:
        """See TransportOwner."""
        if self.exchange is not None:
            self.exchange.upstream_drained()

    def _close(self) -> None:
        if not self.closed:
            self.closed = True
            self.transport.close()
            slots, stats = self.pool.cluster.slots, self.pool.cluster.stats
            slots[stats.upstream_cx_active] -= 1
            slots[stats.upstream_cx_destroy] += 1
            self.pool.closed(self)
