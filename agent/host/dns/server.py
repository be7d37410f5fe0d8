"""The DNS listeners of one workload: UDP and TCP on 127.0.0.1 and ::1.

Rule: bound to the loopback addresses, never to the wildcard: redirected datagrams must be answered from the
address they were sent to. Whatever arrives, the listener lives on; slow clients hold only themselves up.
Not for: what is answered (`names`) or asked elsewhere (`forward`).
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from agent.host.dns import names as dns_names
from agent.host.dns.forward import Forwarder, receive_framed
from agent.host.dns.names import Names
from agent.host.dns.original import Endpoint, Flows, stream_destination

log = logging.getLogger("hostmesh.dns")
_PORT = 53
_MAX_CONNECTIONS = 256
_IDLE_SECONDS = 10.0
_UNAVAILABLE = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


@dataclass(slots=True)
class Counters:
    """Since the start."""

    queries: int = 0
    answered: int = 0


class DnsServer:
    """Answers mesh names from `names`, which is replaced whole, and passes the rest on."""

    def __init__(
        self, names: Names, forwarder: Forwarder, search: Callable[[], tuple[str, ...]] = tuple
    ) -> None:
        """`search`: the search domains of the host, which the C library puts behind short names."""
        self.names = names
        self._search = search
        self._flows = Flows()
        self.counters = Counters()
        self.port = 0
        self._forwarder = forwarder
        self._connections = 0

    async def serve(self, port: int, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; started with the port (0 binds any, the same on all four sockets).

        A host without IPv6 has only the v4 sockets; a port in use is an OSError.
        """
        datagrams: list[trio.socket.SocketType] = []
        listeners: list[trio.SocketListener] = []
        try:
            for family, address in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
                try:
                    udp = trio.socket.socket(family, socket.SOCK_DGRAM)
                    datagrams.append(udp)
                    await udp.bind((address, port))
                    port = udp.getsockname()[1]
                    tcp = trio.socket.socket(family, socket.SOCK_STREAM)
                    listeners.append(trio.SocketListener(await _listening(tcp, address, port)))
                except OSError as error:
                    if family == socket.AF_INET6 and error.errno in _UNAVAILABLE:
                        log.info("no IPv6 loopback on this host: DNS listens on 127.0.0.1 only")
                        continue
                    raise OSError(error.errno, f"DNS port {port} on {address}: {error.strerror}") from error
            self.port = port
            bound = [sock for sock in datagrams if sock.getsockname()[1] == port]
            async with trio.open_nursery() as nursery:
                for udp in bound:
                    nursery.start_soon(self._datagrams, udp)
                task_status.started(port)
                if listeners:
                    await trio.serve_listeners(self._connection, listeners)
        finally:
            for udp in datagrams:
                udp.close()
            self._flows.close()

    async def _datagrams(self, sock: trio.socket.SocketType) -> None:
        listener = _endpoint(sock.getsockname())
        async with trio.open_nursery() as nursery:
            while True:
                query, source = await sock.recvfrom(65535)
                self.counters.queries += 1
                ready = self._from_mesh(query, stream=False)
                if ready is not None:
                    await _send(sock, ready, source)
                else:
                    sent_to = self._flows.destination(_endpoint(source), listener)
                    nursery.start_soon(self._pass_on, sock, query, source, _server(sent_to))

    async def _pass_on(
        self, sock: trio.socket.SocketType, query: bytes, source: tuple[str, int], server: str | None
    ) -> None:
        answer = await self._forwarder.ask(query, stream=False, server=server) or dns_names.failure(query)
        if answer is not None:
            await _send(sock, answer, source)

    def _from_mesh(self, query: bytes, *, stream: bool) -> bytes | None:
        answer = dns_names.answer(
            query, self.names, stream=stream, rotation=self.counters.answered, search=self._search()
        )
        if answer is not None:
            self.counters.answered += 1
        return answer

    async def _connection(self, stream: trio.SocketStream) -> None:
        if self._connections >= _MAX_CONNECTIONS:
            await stream.aclose()
            return
        self._connections += 1
        try:
            await self._queries(stream)
        except (trio.BrokenResourceError, EOFError) as error:
            log.debug("a DNS client left: %s", error)
        finally:
            self._connections -= 1
            await trio.aclose_forcefully(stream)

    async def _queries(self, stream: trio.SocketStream) -> None:
        sent_to = stream_destination(stream.socket, _endpoint(stream.socket.getsockname()))
        while True:
            query = None
            with trio.move_on_after(_IDLE_SECONDS):
                query = await receive_framed(stream)
            if not query:
                return
            self.counters.queries += 1
            answer = self._from_mesh(query, stream=True)
            if answer is None:
                passed_on = self._forwarder.ask(query, stream=True, server=_server(sent_to))
                answer = await passed_on or dns_names.failure(query)
            if answer is None:
                return
            with trio.move_on_after(_IDLE_SECONDS) as sending:
                await stream.send_all(len(answer).to_bytes(2) + answer)
            if sending.cancelled_caught:
                return


def _endpoint(address: tuple[Any, ...]) -> Endpoint:
    return str(address[0]), int(address[1])


def _server(destination: Endpoint | None) -> str | None:
    """The server that a question was sent to, if it was one of DNS's port."""
    return destination[0] if destination is not None and destination[1] == _PORT else None


async def _listening(sock: trio.socket.SocketType, address: str, port: int) -> trio.socket.SocketType:
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        await sock.bind((address, port))
        sock.listen(128)
    except BaseException:
        sock.close()
        raise
    return sock


async def _send(sock: trio.socket.SocketType, answer: bytes, source: tuple[str, int]) -> None:
    try:
        await sock.sendto(answer, source)
    except OSError as error:
        log.debug("a DNS answer could not be sent: %s", error)
