"""Connecting to upstream hosts: TCP, then TLS, then the verdict on the peer, all before anybody gets the connection.

Rule: one `Dial` is one try; it tells its caller exactly once how it ended, within the cluster's connect timeout.
Not for: when to connect (agent/upstream/pool), what runs over it.
"""

from __future__ import annotations

import errno
import os
import socket
from abc import abstractmethod
from functools import partial
from typing import Final

from mypy_extensions import trait

from agent.http.request import PeerIdentity
from agent.table.cluster import Cluster
from agent.upstream import reset
from agent.upstream.host import Host
from agent.worker.certificates import covers
from agent.worker.reactor import OUT, Handler, Reactor
from agent.worker.tls_contexts import ClientTls
from agent.worker.tls_transport import BulkTlsTransport, TlsOwner, TlsTransport
from agent.worker.transport import PlainTransport, TransportOwner

MARK: Final = 0x539
"""What nftables rules let pass as the agent's own (contract of agent/host/capture/rules)."""
_IP_BIND_ADDRESS_NO_PORT: Final = 24
_IN_PROGRESS: Final = (0, errno.EINPROGRESS)


@trait
class Caller(TransportOwner):
    """Who wants a connection."""

    @abstractmethod
    def connected(self, transport: PlainTransport, peer: PeerIdentity | None) -> None:
        """It is up and secured; the transport's owner is the caller from now on."""

    @abstractmethod
    def unreachable(self, reason: str, failure: str) -> None:
        """It is not; a reset reason and the transport's words."""


class Dialer:
    """What all dials of a worker share."""

    def __init__(self, reactor: Reactor, *, mark: bool = False) -> None:
        self.reactor = reactor
        self.mark = mark
        """Set SO_MARK, which the process must be allowed to."""

    def dial(
        self, host: Host, cluster: Cluster, caller: Caller, *, bulk: bool = False, server_name: str = ""
    ) -> None:
        """Connect. Never raises, and the answer never comes before this returns."""
        Dial(self, host, cluster, caller, bulk, server_name).begin()


class Dial(Handler, TlsOwner):
    """One try. Invariant: the socket is this object's until `_over`; then it is closed, or its transport is the caller's.
    `_caller` is told once, and afterwards nothing of this is registered anywhere."""

    __slots__ = (
        "_bulk", "_caller", "_cluster", "_host", "_mark", "_offered", "_over", "_server_name", "_socket", "_timer", "_tls",
        "_transport", "reactor",
    )  # fmt: skip

    def __init__(
        self, dialer: Dialer, host: Host, cluster: Cluster, caller: Caller, bulk: bool, server_name: str
    ) -> None:
        reactor = self.reactor = dialer.reactor
        self._host = host
        self._tls: ClientTls | None = host.tls
        """As it is now: a change before the connection is up retires it (agent/upstream/pool), and never mixes two."""
        self._cluster = cluster
        self._caller = caller
        self._bulk = bulk
        self._mark = dialer.mark
        self._server_name = server_name
        self._offered = False
        """A session was offered for resumption."""
        self._over = False
        self._socket: socket.socket | None = None
        self._transport: PlainTransport | None = None
        """Around the socket, once TCP is connected."""
        self._timer = reactor.timer(self._timed_out)

    def begin(self) -> None:
        """Open a socket and connect it."""
        address = self._host.endpoint.address
        code = 0
        try:
            family, target = _where(address.host, address.port, address.path)
            sock = self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            _prepare(sock, family, self._cluster, self._mark)
            code = sock.connect_ex(target)
            if code in _IN_PROGRESS:
                self.reactor.register(sock.fileno(), OUT, self)
                self._timer.set(self.reactor.now + self._cluster.connect_timeout)
                return
        except OSError as error:
            code = error.errno or errno.EIO
        except (ValueError, OverflowError):
            code = errno.EINVAL
        text = f"immediate connect error: {os.strerror(code)}"
        self.reactor.soon(partial(self._fail, reset.LOCAL_CONNECT_FAILURE, text))

    def on_event(self, mask: int) -> None:
        """TCP is connected, or has failed."""
        sock = self._socket
        assert sock is not None
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.reactor.unregister(sock.fileno())
        if code:
            self._fail(reset.CONNECT_FAILURE, f"delayed connect error: {os.strerror(code)}")
            return
        try:
            transport = self._transport = self._around(sock)
            transport.start()
        except (OSError, ValueError) as error:
            self._fail(reset.CONNECT_FAILURE, str(error))
            return
        if self._tls is None:
            self._hand_over(transport, None)

    def _around(self, sock: socket.socket) -> PlainTransport:
        """The transport that the cluster asks for. Raises OSError or ValueError."""
        tls, limit = self._tls, self._cluster.buffer_limit
        if tls is None:
            return PlainTransport(sock, self.reactor, self._caller, limit)
        context = tls.context
        if context is None:
            raise ValueError(f"TLS_error:{tls.missing}")
        name = self._server_name or tls.sni
        session = tls.sessions.find(self._host.name, name, context, self.reactor.now)
        self._offered = session is not None
        if self._bulk:
            return BulkTlsTransport(
                sock, context, self.reactor, self, server_side=False, server_name=name, session=session, limit=limit
            )  # fmt: skip
        wrapped = context.wrap_socket(
            sock, server_hostname=name, do_handshake_on_connect=False, session=session
        )
        return TlsTransport(wrapped, self.reactor, self, limit)

    def handshaken(self) -> bool:
        """See TlsOwner."""
        transport, tls = self._transport, self._tls
        assert tls is not None and isinstance(transport, (TlsTransport, BulkTlsTransport))
        peer, refused = tls.verdict(transport.ssl_object())
        if not refused and self._cluster.auto_san_validation and self._server_name:
            names = () if peer is None else peer.dns_sans
            refused = "" if any(covers(name, self._server_name) for name in names) else "verify SAN list"
        if refused:
            self._fail(reset.CONNECT_FAILURE, f"TLS_error:{refused}")
            return False
        self._resumable(transport, tls)
        self._hand_over(transport, peer)
        return not transport.closed

    def _resumable(self, transport: TlsTransport | BulkTlsTransport, tls: ClientTls) -> None:
        """Note whether the host resumed, and take its ticket if one comes, which is before its first bytes. Looked at once:
        OpenSSL copies the whole session, certificate and all, for every look."""
        sessions, reactor = tls.sessions, self.reactor
        host, name = self._host.name, self._server_name or tls.sni
        connection = transport.ssl_object()
        if self._offered:
            sessions.resumed(host, name, bool(connection.session_reused))
        if sessions.wanted(host, name):
            transport.first_data = lambda: sessions.keep(host, name, connection, reactor.now)

    def _hand_over(self, transport: PlainTransport, peer: PeerIdentity | None) -> None:
        """The one good exit."""
        self._over = True
        self._timer.close()
        self._socket = None
        transport.owner = self._caller
        self._caller.connected(transport, peer)
        self._transport = None

    def _fail(self, reason: str, failure: str) -> None:
        """The one bad exit."""
        if self._over:
            return
        self._over = True
        self._timer.close()
        sock, self._socket = self._socket, None
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.close()
        elif sock is not None:
            self.reactor.unregister(sock.fileno())
            sock.close()
        self._caller.unreachable(reason, failure)

    def on_failure(self) -> None:
        """See reactor.Handler. What the caller does wrong after the hand-over costs it the connection."""
        if self._over:
            if self._transport is not None:
                self._transport.on_failure()
        else:
            self._fail(reset.LOCAL_CONNECT_FAILURE, "internal error")

    def received(self, data: bytes) -> None:
        """Never called: data comes after the handshake, to the caller."""
        raise AssertionError("data before the handshake")

    def drained(self) -> None:
        """Never called: nothing is written during the handshake."""
        raise AssertionError("output before the handshake")

    def ended(self) -> None:
        """The peer closed during the handshake."""
        self._fail(reset.CONNECT_FAILURE, "TLS_error:connection closed")

    def lost(self, reason: str) -> None:
        """The handshake failed."""
        self._fail(reset.CONNECT_FAILURE, reason)

    def _timed_out(self) -> None:
        self._fail(reset.CONNECT_TIMEOUT, "")


def _where(host: str, port: int, path: str) -> tuple[int, str | tuple[str, int] | tuple[str, int, int, int]]:
    if path:
        return socket.AF_UNIX, "\0" + path[1:] if path.startswith("@") else path
    if ":" in host:
        return socket.AF_INET6, (host, port, 0, 0)
    return socket.AF_INET, (host, port)


def _prepare(sock: socket.socket, family: int, cluster: Cluster, mark: bool) -> None:
    if family != socket.AF_UNIX:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if mark:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, MARK)
        if cluster.tcp_keepalive is not None:
            probes, idle, interval = cluster.tcp_keepalive
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (
                (socket.TCP_KEEPCNT, probes), (socket.TCP_KEEPIDLE, idle), (socket.TCP_KEEPINTVL, interval),
            ):  # fmt: skip
                if value:
                    sock.setsockopt(socket.IPPROTO_TCP, option, value)
        source = cluster.bind_source
        if family == socket.AF_INET6 and ":" not in source:
            source = cluster.bind_source_v6
        if source:
            # The port is chosen at connect, so that it need be free towards this one destination only.
            sock.setsockopt(socket.SOL_IP, _IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
