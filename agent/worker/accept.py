"""New connections: from the listening socket to the station of the filter chain that takes them.

Rule: the order is Envoy's: original destination, hand-over to the listener that owns it, inspection of the first bytes
(which stay in the socket), filter chain, TLS, identity; only then does a byte reach a protocol. Everything before that
point is bounded by time.
Not for: what a station does with the connection.
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
from agent.worker.transport import PlainTransport, TransportOwner

_ORIGINAL_DST: Final = 80
"""SO_ORIGINAL_DST and IP6T_SO_ORIGINAL_DST."""
_BATCH: Final = 64
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


class Acceptor(Handler):
    """One listening socket. `runtime` is exchanged when the table changes."""

    def __init__(self, sock: socket.socket, reactor: Reactor, runtime: ListenerRuntime) -> None:
        self.socket = sock
        self.reactor = reactor
        self.runtime = runtime
        self.accepting = False

    def start(self) -> None:
        """Begin to accept."""
        if not self.accepting:
            self.accepting = True
            self.reactor.register(self.socket.fileno(), IN, self)

    def stop(self) -> None:
        """Accept no more and close the listening socket."""
        if self.accepting:
            self.accepting = False
            self.reactor.unregister(self.socket.fileno())
        self.socket.close()

    def on_event(self, mask: int) -> None:
        """Connections are waiting."""
        for _ in range(_BATCH):
            try:
                sock, remote = self.socket.accept()
            except BlockingIOError:
                return
            except OSError:
                return
            sock.setblocking(False)
            Arrival(sock, remote, self.runtime, self.reactor).begin()

    def on_failure(self) -> None:
        """One connection failed before it had an owner; the listener goes on."""


class Arrival(Handler, TlsOwner):
    """A connection on its way to its station."""

    __slots__ = (
        "_http", "_proxied", "_socket", "_station", "_timer", "_tls", "_transport", "direct", "local",
        "reactor", "remote", "runtime", "seen",
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
            self._timer.cancel()
            self.reactor.unregister(self._socket.fileno())
            self._choose()
        elif mask & RDHUP:
            self._give_up()

    def on_failure(self) -> None:
        """See reactor.Handler."""
        self._give_up()

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
        if self._transport is not None:
            slots[stats.downstream_cx_transport_socket_connect_timeout] += 1
            self._transport.close()
            return
        slots[stats.downstream_pre_cx_timeout] += 1
        if self.runtime.listener.continue_on_inspection_timeout:
            self.reactor.unregister(self._socket.fileno())
            self._choose()
        else:
            self._give_up()

    def _give_up(self) -> None:
        self._timer.cancel()
        self.reactor.unregister(self._socket.fileno())
        self._socket.close()

    # Chain and TLS

    def _choose(self) -> None:
        runtime = self.runtime
        station = runtime.index.find(self.seen)
        if station is None:
            runtime.slots[runtime.stats.no_filter_chain_match] += 1
            self._socket.close()
            return
        self._station = station
        limit = runtime.listener.buffer_limit
        tls = station.tls
        if tls is None:
            transport = PlainTransport(self._socket, self.reactor, NOBODY, limit)
            station.open(transport, self._info("", "", "", self.seen.server_name, None, ()))
            if not transport.closed:
                transport.start()
            return
        context = tls.next_context()
        if context is None:
            self._socket.close()
            return
        self._timer.set(self.reactor.now + (station.chain.handshake_timeout or 15.0))
        try:
            if station.bulk:
                self._transport = BulkTlsTransport(
                    self._socket, context, self.reactor, self, server_side=True, limit=limit
                )
            else:
                wrapped = context.wrap_socket(self._socket, server_side=True, do_handshake_on_connect=False)
                self._transport = TlsTransport(wrapped, self.reactor, self, limit)
        except (OSError, ValueError):
            self._timer.cancel()
            self._socket.close()
            return
        self._transport.start()

    def handshaken(self) -> bool:
        """See TlsOwner: judge the client, then hand over."""
        self._timer.cancel()
        transport, tls = self._transport, self._station.tls
        assert transport is not None and tls is not None
        slots, stats = self.runtime.slots, self.runtime.stats
        connection = transport.ssl_object()
        peer, refused = tls.verdict(connection)
        if refused:
            slots[stats.ssl_fail_verify_san] += 1
            transport.abort()
            return False
        slots[stats.ssl_handshake] += 1
        cipher = connection.cipher()
        info = self._info(
            connection.version() or "", cipher[0] if cipher else "", connection.selected_alpn_protocol() or "",
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
        self.lost("closed")
        if self._transport is not None:
            self._transport.close()

    def lost(self, reason: str) -> None:
        """The handshake failed."""
        self._timer.cancel()
        slots, stats = self.runtime.slots, self.runtime.stats
        if "PEER_DID_NOT_RETURN_A_CERTIFICATE" in reason:
            slots[stats.ssl_fail_verify_no_cert] += 1
        elif "CERTIFICATE" in reason:
            slots[stats.ssl_fail_verify_error] += 1
        else:
            slots[stats.ssl_connection_error] += 1


class Nobody(TransportOwner):
    """The owner of a transport that has not been started."""

    def received(self, data: bytes) -> None: ...

    def ended(self) -> None: ...

    def lost(self, reason: str) -> None: ...

    def drained(self) -> None: ...


NOBODY: Final = Nobody()


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
