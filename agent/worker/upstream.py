"""One HTTP/1.1 connection to an upstream host: idle in its pool, or carrying one exchange.

Rule: a connection goes back to its pool only when request and response are both complete and nothing follows them, and
not before the next turn of the reactor, in which its end would be seen; in every other case it is closed. It reports to its
pool exactly once that it has ended.
Not for: choosing connections (agent/upstream/pool), connecting (connect).
"""

from __future__ import annotations

from math import inf
from typing import Final

from agent.exchange.exchange import Exchange
from agent.exchange.streams import UpstreamStream
from agent.http import h1_encode
from agent.http.codecs import CLIENT_CODEC
from agent.http.h1_message import ClientCodec, H1Violation, InboundResponse, Limits, ResponseSink
from agent.http.headers import Headers
from agent.http.request import PeerIdentity
from agent.upstream import reset
from agent.upstream.pool import RETIRED, Pool
from agent.worker.connect import Caller
from agent.worker.timers import Timer
from agent.worker.transport import PlainTransport

_CLIENT: Final = 1
"""The exchange's client takes no more."""
_MORE: Final = 2
"""What has been read must go on first."""


class H1Upstream(Caller, ResponseSink, UpstreamStream):
    """See the module. Invariant: `exchange` is set from `begin` until its response is over."""

    __slots__ = (
        "_answered", "_framing", "_full_url", "_holds", "_keep_alive", "_let_go", "_max_age", "_proper_case", "_remote",
        "_request_done", "_trailers", "_tunnel", "_upgrade", "closed", "codec", "connected_at", "exchange", "generation",
        "local_address", "peer", "pool", "requests", "resting", "reused", "timer", "transport",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.codec: ClientCodec
        self.transport: PlainTransport
        self.timer: Timer
        self.exchange: Exchange | None = None
        self.generation = pool.generation
        self.resting = False
        self.reused = False
        self.connected_at = 0.0
        self.local_address = ""
        self.peer: PeerIdentity | None = None
        self.requests = 0
        self.closed = False
        self._framing = h1_encode.FIXED
        self._request_done = True
        self._answered = False
        self._holds = 0
        """Why reading is paused: _CLIENT, _MORE."""
        self._keep_alive = True
        self._tunnel = False
        self._upgrade = b""
        self._max_age: Timer | None = None
        self._full_url = False
        self._let_go = False
        self._proper_case = False
        self._trailers = False
        self._remote = False
        """The peer ended it."""
        slots, stats = pool.cluster.slots, pool.cluster.stats
        slots[stats.upstream_cx_total] += 1
        slots[stats.upstream_cx_active] += 1
        slots[stats.upstream_cx_http1_total] += 1

    def open(self, transport: PlainTransport, codec: ClientCodec, now: float) -> None:
        """The connection is up and secured."""
        self.transport = transport
        self.codec = codec
        self.connected_at = now
        self.timer = transport.reactor.timer(self._idle_too_long)
        config = self.pool.cluster.config
        self._full_url = config.send_full_url
        self._proper_case = config.proper_case_headers
        self._trailers = config.enable_trailers
        if config.max_connection_duration:
            self._max_age = transport.reactor.timer(self._grown_old)
            self._max_age.set(now + config.max_connection_duration)
        self._idle(now)

    # From the dial

    def connected(self, transport: PlainTransport, peer: PeerIdentity | None) -> None:
        """See connect.Caller."""
        self.peer = peer
        config = self.pool.cluster.config
        limits = Limits(
            config.max_response_headers_kb * 1024, config.max_headers_count, trailers=config.enable_trailers,
            cases=config.preserve_case,
        )  # fmt: skip
        name = transport.socket.getsockname()
        self.local_address = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else str(name)
        self.open(transport, CLIENT_CODEC(self, limits), transport.reactor.now)
        self.pool.connected(self)

    def unreachable(self, reason: str, failure: str) -> None:
        """See connect.Caller."""
        self.closed = True
        slots, stats = self.pool.cluster.slots, self.pool.cluster.stats
        slots[stats.upstream_cx_connect_fail] += 1
        slots[stats.upstream_cx_active] -= 1
        slots[stats.upstream_cx_destroy] += 1
        if reason == reset.CONNECT_TIMEOUT:
            slots[stats.upstream_cx_connect_timeout] += 1
            slots[stats.upstream_cx_destroy_local] += 1
        else:
            slots[stats.upstream_cx_destroy_remote] += 1
        self.pool.failed(reason, failure)

    def _write(self, data: bytes) -> None:
        cluster = self.pool.cluster
        cluster.slots[cluster.tx_bytes] += len(data)
        self.transport.write(data)

    # From the exchange

    def full(self) -> bool:
        """See UpstreamStream."""
        return self.transport.full

    def begin(
        self, exchange: Exchange, method: bytes, path: bytes, authority: bytes, headers: Headers, ended: bool, upgrade: bytes
    ) -> None:  # fmt: skip
        """See UpstreamStream."""
        self.timer.set(inf)
        self.exchange = exchange
        self.requests += 1
        self._answered = False
        self._request_done = ended
        self._upgrade = upgrade
        self.codec.expect(method, upgrade)
        if self._full_url and path[:1] == b"/":
            scheme = b"https" if self.pool.host.tls is not None else b"http"
            path = b"%b://%b%b" % (scheme, authority, path)
        data, self._framing = h1_encode.request_head(
            method, path, authority, headers, ended or bool(upgrade), self._proper_case
        )
        self._write(data)

    def send_data(self, data: bytes) -> None:
        """See UpstreamStream."""
        if data:
            self._write(h1_encode.chunk(data) if self._framing == h1_encode.CHUNKS else data)

    def send_end(self, trailers: Headers | None) -> None:
        """See UpstreamStream. Unless the cluster says `enable_trailers`, they end here."""
        if self._tunnel:
            self.transport.finish()
            return
        self._request_done = True
        if self._framing == h1_encode.CHUNKS:
            self._write(h1_encode.last_chunk(trailers if self._trailers else None))

    def let_go(self) -> None:
        """See UpstreamStream."""
        self.exchange = None
        self._let_go = True

    def cancel(self) -> None:
        """See UpstreamStream. HTTP/1.1 has no other way than to close."""
        self.exchange = None
        self._close(busy=True)

    def pause(self) -> None:
        """See UpstreamStream."""
        self._hold(_CLIENT)

    def resume(self) -> None:
        """See UpstreamStream."""
        self._free(_CLIENT)

    def _hold(self, why: int) -> None:
        self._holds |= why
        self.transport.pause()

    def _free(self, why: int) -> None:
        if self._holds & why:
            self._holds &= ~why
            if not self._holds:
                self.transport.resume()

    def close_idle(self) -> None:
        """See PooledConnection."""
        self._close()

    # From the transport

    def received(self, data: bytes) -> None:
        """See TransportOwner."""
        cluster = self.pool.cluster
        cluster.slots[cluster.rx_bytes] += len(data)
        exchange = self.exchange
        if exchange is None:
            self._close()
            return
        tunnel = self._tunnel
        if tunnel:
            exchange.upstream_data(data)
            return
        self._read_on(data)

    def _read_on(self, data: bytes | None) -> None:
        """Have the codec read `data` (None: what it has left)."""
        codec = self.codec
        try:
            if data is not None:
                codec.receive(data)
            else:
                codec.go_on()
        except H1Violation:
            self._broken(reset.PROTOCOL, "")
            return
        if self._tunnel and self.exchange is not None:
            rest = codec.leftovers()
            if rest:
                self.exchange.upstream_data(rest)
        if codec.more:
            # It has had its share of the turn: what it has sent goes on in the next one.
            self._hold(_MORE)
            self.transport.reactor.soon(self._go_on)
        elif self._holds:
            self._free(_MORE)

    def _go_on(self) -> None:
        if not self.closed and self.codec.more:
            self._read_on(None)

    def ended(self) -> None:
        """See TransportOwner."""
        self._remote = True
        exchange = self.exchange
        if exchange is None:
            self._close()
        elif self._tunnel:
            self.exchange = None
            exchange.upstream_end(None)
            self._close(busy=True)
        else:
            try:
                self.codec.end_of_input()
            except H1Violation:
                self._broken(reset.PROTOCOL if self._answered else reset.TERMINATION, "")
                return
            if self.exchange is exchange:  # else its response ended with the connection
                self._broken(reset.TERMINATION, "")

    def lost(self, reason: str) -> None:
        """See TransportOwner."""
        self._remote = True
        if self.exchange is None:
            self._close()
        else:
            self._broken(reset.TERMINATION, "")

    def drained(self) -> None:
        """See TransportOwner."""
        if self.exchange is not None:
            self.exchange.upstream_drained()

    # From the codec

    def informational(self, status: int, headers: Headers) -> None:
        """See ResponseSink."""
        if status == 101:
            if not self._upgrade:
                raise H1Violation(502, "http1.codec_error", "unasked 101")
            self._tunnel = True
        if self.exchange is not None:
            self.exchange.upstream_informational(status, headers)

    def response_head(self, head: InboundResponse) -> None:
        """See ResponseSink."""
        self._answered = True
        self._keep_alive = head.keep_alive
        if self._upgrade == b"connect" and head.status == 200:
            self._tunnel = True
        if self.exchange is not None:
            self.exchange.upstream_head(head)

    def response_data(self, data: bytes) -> None:
        """See ResponseSink."""
        if self.exchange is not None:
            self.exchange.upstream_data(data)

    def response_end(self, trailers: Headers | None) -> None:
        """See ResponseSink."""
        exchange, self.exchange = self.exchange, None
        if exchange is None and not self._let_go:
            return
        self._let_go = False
        transport = self.transport
        config = self.pool.cluster.config
        if (
            self._keep_alive
            and self._request_done
            and not self._upgrade
            and self.pool.keeps(self)
            and not transport.closed
            and not transport.peer_ended
            and not self.codec.leftovers()
            and not (
                config.max_requests_per_connection and self.requests >= config.max_requests_per_connection
            )
        ):
            self._free(_CLIENT | _MORE)
            self.reused = True
            self.pool.rest(self)
            transport.reactor.soon(self._rested)
        else:
            self._close()
        if exchange is not None:
            exchange.upstream_end(trailers)

    def _rested(self) -> None:
        """A turn has passed: had the peer closed with its response, that would be known by now."""
        if not self.closed:
            self._idle(self.transport.reactor.now)
            self.pool.release(self)

    # The end

    def _idle(self, now: float) -> None:
        timeout = self.pool.cluster.config.idle_timeout
        if timeout:
            self.timer.set(now + timeout)

    def _idle_too_long(self) -> None:
        if self.exchange is None:
            cluster = self.pool.cluster
            cluster.slots[cluster.stats.upstream_cx_idle_timeout] += 1
            self._close()

    def _grown_old(self) -> None:
        cluster = self.pool.cluster
        cluster.slots[cluster.stats.upstream_cx_max_duration_reached] += 1
        self.generation = RETIRED
        if self.exchange is None:
            self._close()

    def _broken(self, reason: str, failure: str) -> None:
        exchange, self.exchange = self.exchange, None
        cluster = self.pool.cluster
        if reason == reset.PROTOCOL:
            cluster.slots[cluster.stats.upstream_cx_protocol_error] += 1
        self._close(busy=exchange is not None)
        if exchange is not None:
            exchange.upstream_reset(reason, failure)

    def _close(self, *, busy: bool = False) -> None:
        if not self.closed:
            self.closed = True
            self.timer.close()
            if self._max_age is not None:
                self._max_age.close()
            self.transport.close()
            self.codec.close()
            cluster = self.pool.cluster
            slots, stats = cluster.slots, cluster.stats
            slots[stats.upstream_cx_active] -= 1
            slots[stats.upstream_cx_destroy] += 1
            slots[stats.upstream_cx_destroy_remote if self._remote else stats.upstream_cx_destroy_local] += 1
            if busy:
                slots[stats.upstream_cx_destroy_with_active_rq] += 1
                slots[
                    stats.upstream_cx_destroy_remote_with_active_rq
                    if self._remote
                    else stats.upstream_cx_destroy_local_with_active_rq
                ] += 1
            self.pool.closed(self)
