"""TLS sessions of upstream hosts, so that the next handshake needs no certificates (RFC 8446 section 2.2).

Rule: a session is used with the context that made it and no other, so renewed certificates and changed roots begin with
a whole handshake; it is used for a limited time, and its peer's certificate is judged anew at every resumption.
Not for: the server's side, whose tickets carry their own state (OpenSSL), nor for early data, which is never sent.
"""

from __future__ import annotations

import ssl
from typing import NamedTuple

LIFETIME = 600.0
"""Seconds for which a session is resumed, at most; its ticket may say less."""
MISSES = 16
"""Refusals in a row after which another session is taken: a host with several workers refuses some, each has its own keys."""
_HOSTS = 1024


class _Kept(NamedTuple):
    context: ssl.SSLContext
    session: ssl.SSLSession
    until: float


class Sessions:
    """What one cluster's TLS side remembers, by host and server name. Times are monotonic seconds."""

    __slots__ = ("_enabled", "_kept", "_misses")

    def __init__(self, *, enabled: bool = True) -> None:
        self._enabled = enabled
        self._kept: dict[tuple[str, str | None], _Kept] = {}
        self._misses: dict[tuple[str, str | None], int] = {}

    def find(self, host: str, name: str | None, context: ssl.SSLContext, now: float) -> ssl.SSLSession | None:
        """The session to offer to a host, None for a whole handshake."""
        kept = self._kept.get((host, name))
        if kept is None:
            return None
        if kept.context is not context or kept.until <= now:
            self._forget((host, name))
            return None
        return kept.session

    def resumed(self, host: str, name: str | None, taken: bool) -> None:
        """Whether the host took the session that it was offered."""
        if taken:
            self._misses.pop((host, name), None)
            return
        misses = self._misses.get((host, name), 0) + 1
        if misses >= MISSES:
            self._forget((host, name))
        else:
            self._misses[host, name] = misses

    def wanted(self, host: str, name: str | None) -> bool:
        """Is there none yet?"""
        return self._enabled and (host, name) not in self._kept

    def keep(
        self, host: str, name: str | None, connection: ssl.SSLSocket | ssl.SSLObject, now: float
    ) -> bool:
        """Take the session of a connection over which the host has sent data; False if it has sent no ticket."""
        if not self.wanted(host, name):
            return False
        session = connection.session
        if session is None or not session.has_ticket:
            return False
        if len(self._kept) >= _HOSTS:
            self._kept.clear()
            self._misses.clear()
        lifetime = min(LIFETIME, session.timeout / 2)
        self._kept[host, name] = _Kept(connection.context, session, now + lifetime)
        return True

    def _forget(self, key: tuple[str, str | None]) -> None:
        del self._kept[key]
        self._misses.pop(key, None)
