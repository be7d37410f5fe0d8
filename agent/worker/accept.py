"""New connections: from the listening socket to the station of the filter chain that takes them.

Rule: the order is Envoy's: original destination, hand-over to the listener that owns it, inspection of the first bytes
(which stay in the socket), filter chain, TLS, identity; only then does a byte reach a protocol. Everything before that
point is bounded by time, and an arrival that is over holds nothing and is held by nothing.
Not for: what a station does with the connection; listening sockets (acceptor.py).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from itertools import count
from typing import Any, Final

from agent.http.request import ConnectionInfo, PeerIdentity
from agent.table.listener import Listener
from agent.telemetry.scopes import ListenerStats
from agent.worker.chain_match import ChainIndex, Seen, inspected
from agent.worker.proxy_header import BadHeader, read_header
from agent.worker.reactor import ERR, ET, HUP, IN, RDHUP, Handler, Reactor
from agent.worker.sniff import MAX_HELLO, NOT_TLS, client_hello, http_version
from agent.worker.station import Station
from agent.worker.tls_transport import BulkTlsTransport, TlsOwner, TlsTransport
from agent.worker.transport import NOBODY, PlainTransport

_ORIGINAL_DST: Final = 80
"""SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST."""
_connection_ids: Final = count(1)
_PEEK: Final = 16 * 1024 + 64


class ListenerRuntime:
    """A listener of the table with its stations."""

    def __init__(
        self, listener: Listener, index: ChainIndex[Any], stats: ListenerStats, slots: list[int],
        owner_of: Callable[[tuple[str, int]], ListenerRuntime | None],
    ) -> None:  # fmt: skip
        self.listener = listener
        self.index = index
        self.stats = stats
        self.slots = slots
        self.owner_of = owner_of
        """The listener that owns an original destination."""


class Arrival(Handler, TlsOwner):
    """A connection on its way to its station. Invariant: exactly one of these ends it: `_hand_over`, `_give_up`, `lost`."""

    __slots__ = (
        "_http",
        "_inspecting",
        "_proxied",
        "_shaking",
        "_socket",
        "_station",
        "_timer",
        "_tls",
        "_transport",
        "direct",
        "local",
        "reactor",
        "remote",
        "runtime",
        "seen",
    )  # fmt: skip

    def __init__(
        self, sock: socket.socket, remote: object, runtime: ListenerRuntime, reactor: Reactor
    ) -> None:
        self._socket = sock
        self.reactor = reactor
        self.runtime = runtime
        self.remote = _address(remote)
        self.direct: tuple[str, int] | None = None
        """The peer itself, where somebody else's address was told."""
        self._station: Station
        self._transport: TlsTransport | BulkTlsTransport | None = None
        self._timer = reactor.timer(self._timed_out)
        self._inspecting = False
        self._shaking = False
        slots, stats = runtime.slots, runtime.stats
        slots[stats.downstream_cx_total] += 1

    def begin(self) -> None:
        """Find out where the client wanted to go, then who is to know what it says."""
        sock, runtime = self._socket, self.runtime
        self.local = _address(sock.getsockname())
        listener = runtime.listener
        if listener.original_dst or listener.use_original_dst:
            original = original_destination(sock)
            if original is not None:
                self.local = original
                if listener.use_original_dst:
                    owner = runtime.owner_of(original)
                    if owner is not None and owner is not runtime:
                        self.runtime = owner
                        listener = owner.listener
        self._proxied = listener.proxy_protocol
        self.seen = Seen(self.local, self.remote)
        self._tls, self._http = inspected(listener, self.local[1])
        if self._tls or self._http or self._proxied:
            self._inspecting = True
            self.runtime.slots[self.runtime.stats.downstream_pre_cx_active] += 1
            self.reactor.register(sock.fileno(), IN | RDHUP | ET, self)
            if listener.inspection_timeout:
                self._timer.set(self.reactor.now + listener.inspection_timeout)
        else:
            self._choose()

    # Inspection

    def on_event(self, mask: int) -> None:
        """Bytes to look at."""
        try:
            data = self._socket.recv(_PEEK, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or mask & (HUP | ERR):
            self._give_up()
            return
        if self._proxied:
            try:
                data = self._unwrapped(data)
            except BadHeader:
                self._give_up()
                return
        if not self._proxied and self._inspect(data):
            self._inspected()
            self._choose()
        elif mask & RDHUP:
            self._give_up()

    def on_failure(self) -> None:
        """See reactor.Handler. Whatever failed: no descriptor and no timer stays."""
        transport = self._transport
        self.reactor.unregister(self._socket.fileno())
        self._give_up()
        if transport is not None:
            transport.abort()

    def _inspected(self) -> None:
        """The first bytes are known, or nobody waits for them any more."""
        self._timer.cancel()
        if self._inspecting:
            self._inspecting = False
            self.runtime.slots[self.runtime.stats.downstream_pre_cx_active] -= 1
            self.reactor.unregister(self._socket.fileno())

    def _unwrapped(self, data: bytes) -> bytes:
        """Take the PROXY protocol's header off and believe it; returns the bytes after it."""
        header = read_header(data, optional=self._proxied == "optional")
        if header is None:
            return data
        if header.size:
            self._socket.recv(header.size)
        self._proxied = ""
        if header.remote is not None and header.local is not None:
            self.direct = self.remote
            self.remote, self.local = header.remote, header.local
            self.seen = Seen(self.local, self.remote, direct=self.direct)
        return data[header.size :]

    def _inspect(self, data: bytes) -> bool:
        if not data and (self._tls or self._http):
            return False
        seen = self.seen
        hello = NOT_TLS
        if self._tls:
            found = client_hello(data)
            if found is None:
                return len(data) >= MAX_HELLO
            hello = found
            if hello.tls:
                seen.transport = "tls"
                seen.server_name = hello.server_name
                seen.protocols = hello.protocols
        if self._http and not hello.tls:
            version = http_version(data)
            if version is None:
                return False
            if version:
                seen.protocols = (version,)
        return True

    def _timed_out(self) -> None:
        """Nothing came: Envoy closes, or goes on with what it has."""
        slots, stats = self.runtime.slots, self.runtime.stats
        transport = self._transport
        if transport is not None:
            slots[stats.downstream_cx_transport_socket_connect_timeout] += 1
            self._hand_over()
            transport.close()
            return
        slots[stats.downstream_pre_cx_timeout] += 1
        if self.runtime.listener.continue_on_inspection_timeout:
            self._inspected()
            self._choose()
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._inspected()
        self._hand_over()
        self._socket.close()

    def _hand_over(self) -> None:
        """This is no longer in charge: the timer and the transport let go of it, and it of the transport."""
        self._timer.close()
        self._transport = None
        if self._shaking:
            self._shaking = False
            self._station.arriving -= 1

    # Chain and TLS

    def _choose(self) -> None:
        runtime = self.runtime
        station = runtime.index.find(self.seen)
        if station is None:
            runtime.slots[runtime.stats.no_filter_chain_match] += 1
            self._give_up()
            return
        self._station = station
        limit = runtime.listener.buffer_limit
        tls = station.tls
        if tls is None:
            self._hand_over()
            transport = PlainTransport(self._socket, self.reactor, NOBODY, limit)
            station.open(transport, self._info("", "", "", self.seen.server_name, None, ()))
            if not transport.closed:
                transport.start()
            return
        context = tls.next_context()
        if context is None:
            self._give_up()
            return
        self._timer.set(self.reactor.now + (station.chain.handshake_timeout or 15.0))
        self._shaking = True
        station.arriving += 1
        try:
            if station.bulk:
                self._transport = BulkTlsTransport(
                    self._socket, context, self.reactor, self, server_side=True, limit=limit
                )
            else:
                wrapped = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
                self._transport = TlsTransport(wrapped, self.reactor, self, limit)
        except (OSError, ValueError):
            self._give_up()
            return
        self._transport.start()

    def handshaken(self) -> bool:
        """See TlsOwner: judge the client, then hand over."""
        transport, tls = self._transport, self._station.tls
        self._hand_over()
        assert transport is not None and tls is not None
        slots, stats = self.runtime.slots, self.runtime.stats
        connection = transport.ssl_object()
        peer, refused = tls.verdict(connection)
        if refused:
            slots[stats.ssl_fail_verify_san] += 1
            transport.abort()
            return False
        slots[stats.ssl_handshake] += 1
        version = connection.version() or ""
        slots[stats.counter("ssl.versions." + version)] += 1
        cipher = connection.cipher()
        info = self._info(
            version, cipher[0] if cipher else "", connection.selected_alpn_protocol() or "",
            self.seen.server_name, peer, tls.local_uri_sans,
        )  # fmt: skip
        self._station.open(transport, info)
        return not transport.closed

    def _info(
        self, version: str, cipher: str, alpn: str, sni: str, peer: PeerIdentity | None, own: tuple[str, ...]
    ) -> ConnectionInfo:
        return ConnectionInfo(
            id=next(_connection_ids), remote=self.remote, local=self.local, tls=bool(version), peer=peer, local_uri_sans=own,
            sni=sni, alpn=alpn, tls_version=version, cipher=cipher, listener=self.runtime.listener.name,
            filter_chain=self._station.chain.name,
            chain_metadata=self._station.chain.metadata, direct=self.direct,
            filter_state=self._station.chain.filter_state,
        )  # fmt: skip

    def received(self, data: bytes) -> None:
        """Never called: data comes after the handshake."""
        raise AssertionError("data before the handshake")

    def drained(self) -> None:
        """Nothing was written yet."""

    def ended(self) -> None:
        """The client left during the handshake."""
        transport = self._transport
        self.lost("closed")
        if transport is not None:
            transport.close()

    def lost(self, reason: str) -> None:
        """The handshake failed."""
        self._hand_over()
        slots, stats = self.runtime.slots, self.runtime.stats
        if "PEER_DID_NOT_RETURN_A_CERTIFICATE" in reason:
            slots[stats.ssl_fail_verify_no_cert] += 1
        elif "CERTIFICATE" in reason:
            slots[stats.ssl_fail_verify_error] += 1
        else:
            slots[stats.ssl_connection_error] += 1


def original_destination(sock: socket.socket) -> tuple[str, int] | None:
    """Where a redirected connection was going (netfilter), None if it was not redirected."""
    try:
        if sock.family == socket.AF_INET6 and _address(sock.getpeername())[0].count(".") != 3:
            raw = sock.getsockopt(socket.IPPROTO_IPV6, _ORIGINAL_DST, 28)
            port = struct.unpack_from("!H", raw, 2)[0]
            return socket.inet_ntop(socket.AF_INET6, raw[8:24]), port
        raw = sock.getsockopt(socket.IPPROTO_IP, _ORIGINAL_DST, 16)
    except OSError:
        return None
    port = struct.unpack_from("!H", raw, 2)[0]
    return socket.inet_ntop(socket.AF_INET, raw[4:8]), port


def _address(name: object) -> tuple[str, int]:
    """A socket's name as (IP text, port); IPv4 in IPv6 as IPv4; a Unix socket's path with port 0."""
    if not isinstance(name, tuple):
        return str(name), 0
    host = str(name[0]).partition("%")[0]
    if host.startswith("::ffff:") and "." in host:
        host = host[7:]
    return host, int(name[1])
