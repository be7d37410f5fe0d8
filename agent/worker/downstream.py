"""One HTTP/1.1 connection from a client: bytes from the transport become exchanges, one after the other.

Rule: responses leave in the order of the requests; while one exchange lasts, what the client pipelines waits in the codec
and reading pauses, so that memory is bounded; in one turn of the reactor it has _ANSWERS answers at most.
How a connection ends follows Envoy: as soon as everything is sent if the client asked for the end and got it all, else after
`delayed_close_timeout` without progress, so that the last response is not lost to a RST. A draining connection is not cut
under a request that is on its way: the next response says `connection: close`, and only one that stays idle for
`drain_timeout` is closed.
Not for: what a request means (agent/exchange), bytes on sockets (transport).
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Final

from mypy_extensions import trait

from agent.exchange.exchange import Exchange
from agent.exchange.local_reply import HEADERS_TIMEOUT, REQUEST_IDLE, protocol_error
from agent.exchange.setting import Setting, Timer
from agent.exchange.streams import ClientStream
from agent.http import h1_encode
from agent.http.h1_message import H1Violation, RequestHead, RequestSink, ServerCodec
from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, ResponseHead
from agent.worker.linger import Linger
from agent.worker.station import Admitted
from agent.worker.transport import PlainTransport

_PATIENCE: Final = 1.0
"""Seconds without progress in which a client takes nothing of the last response, where `delayed_close_timeout` is off."""

_ANSWERS: Final = 16
"""Pipelined requests that a connection has answered in a turn before others get theirs."""
_BODY: Final = 1
"""The exchange takes no more of the request's body."""
_NEXT: Final = 2
"""The next request is there, and this one has not been answered."""
_MORE: Final = 4
"""What has been read must go on first."""


@trait
class H1Station:
    """The filter chain that a connection came through, as long as it lives."""

    setting: Setting
    draining: bool
    """Responses that begin from now on end their connections."""

    @abstractmethod
    def server_codec(self, sink: RequestSink) -> ServerCodec: ...

    @abstractmethod
    def leave(self, owner: Admitted) -> None: ...


class H1Downstream(Admitted, RequestSink, ClientStream):
    """See the module. Invariant: `exchange` is the request whose response is due; `request_done` is about its request."""

    __slots__ = (
        "_again", "_discarding", "_framing", "_heard", "_holds", "_in_codec", "_later", "_linger", "_max_age", "_polite",
        "_remote", "_tunnel", "_upgrading", "_winding_down", "certificate_element", "closing", "codec", "connection", "exchange",
        "old", "request_done", "requests", "setting",
        "station", "timer", "transport",
    )  # fmt: skip

    def __init__(
        self, station: H1Station, connection: ConnectionInfo, element: bytes | None, transport: PlainTransport
    ) -> None:
        self.station = station
        setting = self.setting = station.setting
        self.connection = connection
        self.certificate_element = element
        self.transport = transport
        self.codec = station.server_codec(self)
        self.exchange: Exchange | None = None
        self.timer: Timer = transport.reactor.timer(self._timer_fired)
        self.closing = False
        self.request_done = True
        self.requests = 0
        self.old = False
        self._framing = h1_encode.FIXED
        self._tunnel = False
        self._upgrading = False
        self._winding_down = False
        self._polite = False
        self._remote = False
        """The client ended the connection."""
        self._heard = False
        """It has sent something."""
        self._discarding = False
        self._in_codec = False
        self._again = False
        self._holds = 0
        """Why reading is paused: _BODY, _NEXT, _MORE."""
        self._later = False
        """`_go_on` is due in the next turn."""
        self._max_age: Timer | None = None
        self._linger: Linger | None = None
        slots, stats, manager = setting.slots, setting.stats, setting.manager
        slots[stats.downstream_cx_total] += 1
        slots[stats.downstream_cx_active] += 1
        if connection.tls:
            slots[stats.downstream_cx_ssl_total] += 1
            slots[stats.downstream_cx_ssl_active] += 1
        now = transport.reactor.now
        if manager.idle_timeout:
            self.timer.set(now + manager.idle_timeout)
        if manager.max_connection_duration:
            self._max_age = transport.reactor.timer(self._grown_old)
            self._max_age.set(now + manager.max_connection_duration)

    # From the transport

    def received(self, data: bytes) -> None:
        """See TransportOwner."""
        exchange = self.exchange
        setting = self.setting
        setting.slots[setting.rx_bytes] += len(data)
        if not self._heard:
            self._heard = True
            setting.slots[setting.stats.downstream_cx_http1_total] += 1
        if self._tunnel:
            if exchange is not None:
                exchange.request_data(data)
            return
        if self._discarding:
            self.transport.pause()  # the rest stays where it is: throwing it away would be work without end
            return
        if exchange is not None and (self.request_done or self._upgrading):
            self._hold(_NEXT)
        self._read_on(data)

    def _read_on(self, data: bytes | None) -> None:
        """Have the codec read `data` (None: what it has left), and answer what is pipelined."""
        self._in_codec = True
        try:
            if data is not None:
                self.codec.receive(data)
            elif self.codec.more:
                self.codec.go_on()
            self._run_on()
        except H1Violation as violation:
            self._in_codec = False
            self._refuse(violation)
        self._in_codec = False
        if self.codec.more:
            self._postpone()
        if self.exchange is None and not self._discarding:
            self._await_rest()

    def _hold(self, why: int) -> None:
        self._holds |= why
        self.transport.pause()

    def _free(self, why: int) -> None:
        if self._holds & why:
            self._holds &= ~why
            if not self._holds:
                self.transport.resume()

    def _postpone(self) -> None:
        """This connection has had its share of the turn: what it has sent goes on in the next one."""
        self._hold(_MORE)
        if not self._later:
            self._later = True
            self.transport.reactor.soon(self._go_on)

    def _go_on(self) -> None:
        self._later = False
        if self.transport.closed or self._discarding:
            return
        self._read_on(None)
        if not self._has_more():
            self._free(_MORE)

    def _has_more(self) -> bool:
        return self._later or self._again

    def hung_up(self, broken: bool) -> None:
        """See TransportOwner. What it has sent has nobody to be answered."""
        self.ended()

    def ended(self) -> None:
        """See TransportOwner. A client that closes its side has gone, as for Envoy."""
        self._remote = True
        self.cut()

    def lost(self, reason: str) -> None:
        """See TransportOwner."""
        self._remote = True
        self._cut()

    def cut(self) -> None:
        """End the connection now, whatever it does."""
        if self._linger is not None:
            self._linger.close()
        else:
            self.transport.close()
            self._cut()

    def _cut(self) -> None:
        exchange, self.exchange = self.exchange, None
        self.closing = self._discarding = True
        if exchange is not None:
            slots, stats = self.setting.slots, self.setting.stats
            slots[stats.downstream_cx_destroy_active_rq] += 1
            slots[stats.downstream_rq_rx_reset] += 1
            if self._remote:
                slots[stats.downstream_cx_destroy_remote_active_rq] += 1
            else:
                slots[stats.downstream_cx_destroy_local_active_rq] += 1
            exchange.client_gone()
        self._gone()

    def drained(self) -> None:
        """See TransportOwner."""
        if self.exchange is not None:
            self.exchange.client_drained()
        elif self._again:
            self._postpone()

    # From the codec

    def request_head(self, head: RequestHead) -> None:
        """See RequestSink."""
        setting = self.setting = self.station.setting
        self.requests += 1
        self.old = head.old
        self._polite = not head.keep_alive
        self.request_done = False
        exchange = self.exchange = Exchange(setting, self)
        manager = setting.manager
        if head.old and not manager.accept_http_10:
            self.old = False
            self._polite = False
            exchange.refuse(protocol_error(426, "low_version"))
            return
        if head.old and not head.has_host and manager.default_host_for_http_10:
            head.authority, head.has_host = manager.default_host_for_http_10, True
        if self._winding_down or (
            manager.max_requests_per_connection and self.requests >= manager.max_requests_per_connection
        ):
            self.closing = self._polite = True
        self._upgrading = bool(head.upgrade)
        exchange.begin(head)

    def request_data(self, data: bytes) -> None:
        """See RequestSink."""
        if self.exchange is not None:
            self.exchange.request_data(data)

    def request_end(self, trailers: Headers | None) -> None:
        """See RequestSink."""
        if self._upgrading:
            return
        self.request_done = True
        if self.exchange is not None:
            self.exchange.request_end(trailers)
        elif not self._discarding:
            # Answered from the head alone: the next request may be taken up.
            self._again = True

    def _write(self, data: bytes) -> None:
        setting = self.setting
        setting.slots[setting.tx_bytes] += len(data)
        self.transport.write(data)

    # From the exchange

    def full(self) -> bool:
        """See ClientStream."""
        return self.transport.full

    def pause(self) -> None:
        """See ClientStream."""
        self._hold(_BODY)

    def resume(self) -> None:
        """See ClientStream."""
        self._free(_BODY)

    def send_continue(self) -> None:
        """See ClientStream."""
        self._write(h1_encode.CONTINUE)

    def send_informational(self, status: int, headers: Headers) -> None:
        """See ClientStream."""
        data, _ = h1_encode.response_head(status, headers, b"GET", True, False)
        self._write(data)

    def send_head(self, head: ResponseHead, method: bytes, ended: bool, tunnel: bool) -> None:
        """See ClientStream."""
        headers = head.headers
        old = self.old
        if self.station.draining and not self.closing:
            self.closing = self._polite = True
            setting = self.setting
            setting.slots[setting.stats.downstream_cx_drain_close] += 1
        if tunnel:
            self._tunnel = self.closing = self._polite = True
        elif self.closing:
            headers[b"connection"] = b"close"
        elif old:
            if b"content-length" in headers or ended:
                headers[b"connection"] = b"keep-alive"
            else:
                headers[b"connection"] = b"close"
                self.closing = True
        if tunnel and head.status != 101:
            headers.pop(b"content-length", None)
            data = h1_encode.tunnel_head(head.status, headers)
            self._framing = h1_encode.FIXED
        else:
            data, self._framing = h1_encode.response_head(
                head.status, headers, method, ended, old, self.setting.manager.proper_case_headers
            )
        self._write(data)
        if tunnel:
            self._free(_NEXT | _MORE)
            early = self.codec.leftovers()
            if early and self.exchange is not None:
                self.exchange.request_data(early)

    def send_data(self, data: bytes) -> None:
        """See ClientStream."""
        if data:
            self._write(h1_encode.chunk(data) if self._framing == h1_encode.CHUNKS else data)

    def send_end(self, trailers: Headers | None) -> None:
        """See ClientStream."""
        if self._framing == h1_encode.CHUNKS:
            self._write(h1_encode.last_chunk(trailers))
            self._framing = h1_encode.FIXED

    def abort(self) -> None:
        """See ClientStream."""
        self.closing = True
        self._polite = False

    def exchange_over(self) -> None:
        """See ClientStream."""
        self.exchange = None
        if self._discarding:
            return
        if self.closing:
            self._leave()
        elif self._in_codec:
            self._again = self.request_done
        else:
            self._again = True
            self._read_on(None)

    # Between requests

    def _run_on(self) -> None:
        """Take up what was pipelined, without recursion: _ANSWERS requests in a turn, and none while the client does not
        read the answers."""
        answers = 0
        while self._again:
            if answers == _ANSWERS or self.transport.full:
                self._hold(_MORE)
                if not self.transport.full:
                    self._postpone()
                return
            answers += 1
            self._again = False
            self.codec.next_request()
            if self.exchange is None and not self._again:
                self._free(_NEXT)

    def _await_rest(self) -> None:
        """Idle, or in the middle of a head: the clock for either runs."""
        manager = self.setting.manager
        now = self.transport.reactor.now
        if self.codec.end_of_input():
            if self._winding_down:
                self.timer.set(now + manager.drain_timeout)
            elif manager.idle_timeout:
                self.timer.set(now + manager.idle_timeout)
        elif manager.request_headers_timeout:
            self.timer.set(min(self.timer.deadline, now + manager.request_headers_timeout))
        elif manager.stream_idle_timeout:
            self.timer.set(now + manager.stream_idle_timeout)

    def _refuse(self, violation: H1Violation) -> None:
        """The client broke the protocol, before a request or in its body."""
        slots, stats = self.setting.slots, self.setting.stats
        slots[stats.downstream_cx_protocol_error] += 1
        self.closing = True
        self._polite = False
        if self.exchange is not None and not self.request_done:
            self.exchange.request_invalid(violation)
        elif self.exchange is not None:
            self.exchange.client_gone()
        else:
            self.exchange = Exchange(self.setting, self)
            self.exchange.refuse(protocol_error(violation.status, violation.details))

    def _timer_fired(self) -> None:
        if self.exchange is not None:
            self.exchange.timer_fired()
        elif self.codec.end_of_input():
            slots = self.setting.slots
            if self._winding_down or not self.setting.manager.drain_timeout:
                self._polite = True
                self._leave()
            else:
                slots[self.setting.stats.downstream_cx_idle_timeout] += 1
                self._wind_down()
        else:
            self.closing = True
            self._polite = False
            manager = self.setting.manager
            exchange = self.exchange = Exchange(self.setting, self)
            exchange.refuse(HEADERS_TIMEOUT if manager.request_headers_timeout else REQUEST_IDLE)

    def _grown_old(self) -> None:
        slots = self.setting.slots
        slots[self.setting.stats.downstream_cx_max_duration_reached] += 1
        self.drain()

    def _wind_down(self) -> None:
        """Envoy's drain sequence: a request that comes within `drain_timeout` is answered, with `connection: close`."""
        self._winding_down = True
        self.timer.set(self.transport.reactor.now + self.setting.manager.drain_timeout)

    def drain(self) -> None:
        """See Admitted: with the response in progress or the next one, or when none comes."""
        if self.exchange is not None:
            self.closing = self._polite = True
        elif not self._discarding and self.codec.end_of_input():
            self._wind_down()
        else:
            self._winding_down = True

    def _leave(self) -> None:
        """Send what is queued, then close: at once, or when the client has had the time to read it."""
        self._discarding = True
        self.timer.cancel()
        delay = self.setting.manager.delayed_close_timeout
        linger = self._linger = Linger(self.transport, delay or _PATIENCE, self._gone)
        if (self._polite and self.request_done) or not delay or self._tunnel:
            linger.close_when_sent()
        else:
            linger.wait()
            if not self.request_done:
                self.transport.pause()

    def _gone(self) -> None:
        self.timer.close()
        if self._max_age is not None:
            self._max_age.close()
        self.codec.close()
        if self.requests >= 0:
            self.requests = -1
            slots, stats = self.setting.slots, self.setting.stats
            slots[stats.downstream_cx_active] -= 1
            if self.connection.tls:
                slots[stats.downstream_cx_ssl_active] -= 1
            slots[stats.downstream_cx_destroy] += 1
            if self._remote:
                slots[stats.downstream_cx_destroy_remote] += 1
            else:
                slots[stats.downstream_cx_destroy_local] += 1
            self.station.leave(self)
