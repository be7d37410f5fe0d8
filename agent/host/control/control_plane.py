"""The way to istiod: several addresses, the last that worked first, always verified.

Rule: nothing is said to a peer before it proved to be istiod, by a chain to the stored root and istiod's own
SPIFFE id. Not for: what is said (`agent.host.identity`, `xds_client`, `debug_channel`).
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from agent.host.config import HostPort
from agent.host.log import fields
from agent.host.own_socket import connect_tcp
from wire.spiffe import SpiffeId
from wire.tls import HANDSHAKE_SECONDS, TlsError, TlsStream, handshake, pinned_root

log = logging.getLogger("hostmesh.istiod")

T = TypeVar("T")
CONNECTION_ERRORS = (OSError, ssl.SSLError, TlsError, trio.BrokenResourceError, trio.TooSlowError)


class Unreachable(Exception):
    """None of the addresses gave a verified connection; one reason an address."""


class ControlPlane:
    """The addresses of istiod. Invariant: `authorities` holds all of them, the best first."""

    def __init__(self, authorities: Sequence[str], istiod: SpiffeId) -> None:
        self._addresses = [HostPort.parse(text) for text in authorities]
        self._istiod = istiod

    @property
    def authority(self) -> str:
        """The address that will be tried first, as an HTTP authority."""
        first = self._addresses[0]
        return f"[{first.host}]:{first.port}" if ":" in first.host else f"{first.host}:{first.port}"

    async def connect(self, context: ssl.SSLContext) -> TlsStream:
        """A verified connection to any istiod; `Unreachable` when there is none."""

        async def to(address: HostPort) -> TlsStream:
            transport = await connect_tcp(address.host, address.port)
            return await handshake(transport, context, self._istiod, address.host)

        return await self._first(to)

    async def fetch_root(self, fingerprint: str) -> bytes:
        """The root certificate (PEM) that istiod shows, if its fingerprint is the expected one."""

        async def to(address: HostPort) -> bytes:
            transport = await connect_tcp(address.host, address.port)
            return await pinned_root(transport, fingerprint, address.host)

        return await self._first(to)

    async def _first(self, attempt: Callable[[HostPort], Awaitable[T]]) -> T:
        reasons: list[str] = []
        for address in tuple(self._addresses):
            try:
                with trio.fail_after(HANDSHAKE_SECONDS):
                    result = await attempt(address)
            except CONNECTION_ERRORS as error:
                reasons.append(f"{address.host}:{address.port}: {_reason(error)}")
                continue
            if address is not self._addresses[0]:
                log.info("another istiod answers", extra=fields(istiod=f"{address.host}:{address.port}"))
                self._addresses.remove(address)
                self._addresses.insert(0, address)
            return result
        raise Unreachable("; ".join(reasons))


def _reason(error: BaseException) -> str:
    if isinstance(error, trio.TooSlowError):
        return f"no answer within {HANDSHAKE_SECONDS:g} s"
    return str(error) or type(error).__name__
