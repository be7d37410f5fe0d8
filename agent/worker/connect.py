"""Connecting to upstream hosts: TCP, then TLS, then the verdict on the peer, all before anybody gets the connection.

Rule: one `Dial` is one try; it tells its caller exactly once how it ended, within the cluster's connect timeout.
Not for: when to connect (agent/upstream/pool), what runs over it.
"""

from __future__ import annotations

import os
import socket
from abc import abstractmethod
from typing import Final

from mypy_extensions import trait

from agent.http.request import PeerIdentity
from agent.table.cluster import Cluster
from agent.upstream import reset
from agent.upstream.host import Host
from agent.worker.reactor import OUT, Handler, Reactor
from agent.worker.tls_contexts import ClientTls
from agent.worker.tls_transport import BulkTlsTransport, TlsOwner, TlsTransport
from agent.worker.transport import PlainTransport, TransportOwner

MARK: Final = 0x539
"""What nftables rules let pass as the agent's own (contract of agent/host/capture/rules)."""
_IP_BIND_ADDRESS_NO_PORT: Final = 24
_IN_PROGRESS: Final = (0, 11, 115)
_DELAYED: Final = "delayed connect error: %s"


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
        """Connect. The answer may come before this returns only for failures."""
        Dial(self, host, cluster, caller, bulk, server_name)


class Dial(Handler, TlsOwner):
    """One try. Invariant: `_caller` is told once; afterwards nothing of this is registered anywhere."""

    __slots__ = (
        "_bulk",
        "_caller",
        "_cluster",
        "_host",
        "_offered",
        "_server_name",
        "_socket",
        "_timer",
        "_transport",
        "reactor",
    )

    def __init__(
        self, dialer: Dialer, host: Host, cluster: Cluster, caller: Caller, bulk: bool, server_name: str
    ) -> None:
        reactor = self.reactor = dialer.reactor
        self._host = host
        self._cluster = cluster
        self._caller = caller
        self._bulk = bulk
        self._server_name = server_name
        self._offered = False
        """A session was offered for resumption."""
        self._transport: TlsTransport | BulkTlsTransport | None = None
        self._timer = reactor.timer(self._timed_out)
        address = host.endpoint.address
        family, target = _where(address.host, address.port, address.path)
        sock = self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _prepare(sock, family, cluster, dialer.mark)
            code = sock.connect_ex(target)
        except OSError as error:
            code = error.errno or 1
        if code not in _IN_PROGRESS:
            sock.close()
            text = f"immediate connect error: {_words(code)}"
            reactor.soon(lambda: caller.unreachable(reset.LOCAL_CONNECT_FAILURE, text))
            return
        self._timer.set(reactor.now + cluster.connect_timeout)
        reactor.register(sock.fileno(), OUT, self)

    def on_event(self, mask: int) -> None:
        """TCP is connected, or has failed."""
        sock = self._socket
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self.reactor.unregister(sock.fileno())
        if code:
            self._timer.cancel()
            sock.close()
            self._caller.unreachable(reset.CONNECT_FAILURE, _DELAYED % _words(code))
            return
        tls: ClientTls | None = self._host.tls
        limit = self._cluster.buffer_limit
        if tls is None:
            self._timer.cancel()
            transport = PlainTransport(sock, self.reactor, self._caller, limit)
            transport.start()
            self._caller.connected(transport, None)
            return
        name = self._server_name or tls.sni
        if tls.context is None:
            self._timer.cancel()
            sock.close()
            self._caller.unreachable(reset.CONNECT_FAILURE, f"TLS_error:{tls.missing}")
            return
        session = tls.sessions.find(self._host.name, name, tls.context, self.reactor.now)
        self._offered = session is not None
        try:
            if self._bulk:
                self._transport = BulkTlsTransport(
                    sock,
                    tls.context,
                    self.reactor,
                    self,
                    server_side=False,
                    server_name=name,
                    session=session,
                    limit=limit,
                )
            else:
                wrapped = tls.context.wrap_socket(
                    sock, server_hostname=name, do_handshake_on_connect=False, session=session
                )
                self._transport = TlsTransport(wrapped, self.reactor, self, limit)
        except (OSError, ValueError) as error:
            self._timer.cancel()
            sock.close()
            self._caller.unreachable(reset.CONNECT_FAILURE, str(error))
            return
        self._transport.start()

    def on_failure(self) -> None:
        """See reactor.Handler."""
        self._fail(reset.LOCAL_CONNECT_FAILURE, "internal error")

    def handshaken(self) -> bool:
        """See TlsOwner."""
        transport = self._transport
        assert transport is not None
        tls: ClientTls = self._host.tls
        peer, refused = tls.verdict(transport.ssl_object())
        if refused:
            self._fail(reset.CONNECT_FAILURE, f"TLS_error:{refused}")
            return False
        self._timer.cancel()
        self._resumable(transport, tls)
        transport.owner = self._caller
        self._caller.connected(transport, peer)
        return True

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

    def _fail(self, reason: str, failure: str) -> None:
        self._timer.cancel()
        if self._transport is not None:
            self._transport.close()
        else:
            self.reactor.unregister(self._socket.fileno())
            self._socket.close()
        self._caller.unreachable(reason, failure)


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


def _words(code: int) -> str:
    return os.strerror(code)
