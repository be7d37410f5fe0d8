"""A listening socket: accepts, and rests while the host cannot give it descriptors.

Rule: a shortage (EMFILE, ENFILE, ENOBUFS, ENOMEM, or an error that says nothing about a connection) stops the watching of
the socket for `REST` seconds, because its condition stays and would come up in every turn; new connections wait in the
kernel's queue meanwhile. What is said of one connection only (accept(2): ECONNABORTED, and errors of the network that
were pending on it) costs that one. A shortage is logged once, when it begins, and its end once.
Not for: what becomes of a connection (accept.py), opening listening sockets (listen.py).
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from typing import Final

from agent.worker.accept import Arrival, ListenerRuntime
from agent.worker.reactor import IN, Handler, Reactor

REST: Final = 0.1
"""Seconds without accepting after a shortage."""
_BATCH: Final = 64
"""Connections accepted in a row before others get their turn."""
_OF_ONE_CONNECTION: Final = frozenset(
    (
        errno.ECONNABORTED, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH,
        errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ENETDOWN, errno.ETIMEDOUT, errno.ECONNRESET,
    )
)  # fmt: skip
_log: Final = logging.getLogger("hostmesh.worker")


class Acceptor(Handler):
    """One listening socket. `runtime` is exchanged when the table changes. Invariant: the socket is watched while `accepting`,
    unless the timer is set."""

    def __init__(self, sock: socket.socket, reactor: Reactor, runtime: ListenerRuntime) -> None:
        self.socket = sock
        self.reactor = reactor
        self.runtime = runtime
        self.accepting = False
        self._short = False
        """A shortage has begun, and no connection was accepted since."""
        self._timer = reactor.timer(self._try_again)

    def start(self) -> None:
        """Begin to accept."""
        if not self.accepting:
            self.accepting = True
            self.reactor.register(self.socket.fileno(), IN, self)

    def stop(self) -> None:
        """Accept no more and close the listening socket."""
        self._timer.close()
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
            except OSError as error:
                if error.errno in _OF_ONE_CONNECTION:
                    self._count("downstream_cx_accept_error")
                    continue
                self._rest(error)
                return
            if self._short:
                self._short = False
                _log.info("listener %s: accepting connections again", self.runtime.listener.name)
            sock.setblocking(False)
            arrival = Arrival(sock, remote, self.runtime, self.reactor)
            try:
                arrival.begin()
            except Exception:
                _log.exception("a new connection failed; it is closed")
                arrival.on_failure()

    def on_failure(self) -> None:
        """See reactor.Handler. The listener goes on."""

    def _count(self, name: str) -> None:
        runtime = self.runtime
        runtime.slots[runtime.stats.counter(name)] += 1

    def _rest(self, error: OSError) -> None:
        self._count("downstream_cx_accept_paused")
        if not self._short:
            self._short = True
            _log.warning(
                "listener %s: cannot accept connections: %s; they wait in the kernel's queue, tried again every %g s",
                self.runtime.listener.name, os.strerror(error.errno or 0), REST,
            )  # fmt: skip
        self.reactor.unregister(self.socket.fileno())
        self._timer.set(self.reactor.now + REST)

    def _try_again(self) -> None:
        self.reactor.register(self.socket.fileno(), IN, self)
