"""What an exchange needs of the two streams that it joins; HTTP/1.1 connections and HTTP/2 streams both offer it.

Rule: an exchange never sees a connection. A stream calls the exchange, the exchange calls the stream, and neither calls
after it has said that it is over.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mypy_extensions import trait

from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, PeerIdentity, ResponseHead
from agent.upstream.pool import PooledConnection

if TYPE_CHECKING:
    from agent.exchange.setting import Timer


@trait
class ClientStream:
    """The client's side."""

    connection: ConnectionInfo
    certificate_element: bytes | None
    """What to say of the client's certificate in XFCC."""
    timer: Timer
    """One deadline for the exchange; `exchange.timer_fired` is called at it."""
    closing: bool
    """The connection ends after this response."""

    @abstractmethod
    def full(self) -> bool:
        """So much output waits that the upstream should pause; `exchange.client_drained` follows."""

    @abstractmethod
    def send_continue(self) -> None:
        """100 Continue."""

    @abstractmethod
    def send_informational(self, status: int, headers: Headers) -> None:
        """Another 1xx."""

    @abstractmethod
    def send_head(self, head: ResponseHead, method: bytes, ended: bool, tunnel: bool) -> None:
        """The response begins. With `tunnel`, what follows in both directions is raw bytes."""

    @abstractmethod
    def send_data(self, data: bytes) -> None: ...

    @abstractmethod
    def send_end(self, trailers: Headers | None) -> None: ...

    @abstractmethod
    def abort(self) -> None:
        """Cut the response off so that the client sees that it is incomplete."""

    @abstractmethod
    def pause(self) -> None:
        """Stop reading the request's body."""

    @abstractmethod
    def resume(self) -> None: ...

    @abstractmethod
    def exchange_over(self) -> None:
        """The response is complete, or the exchange was abandoned."""


@trait
class UpstreamStream(PooledConnection):
    """The upstream's side: made ready by the pool, good for one request."""

    reused: bool
    """Carried a request before."""
    connected_at: float
    local_address: str
    peer: PeerIdentity | None

    @abstractmethod
    def full(self) -> bool:
        """So much output waits that the client should pause; `exchange.upstream_drained` follows."""

    @abstractmethod
    def begin(
        self,
        exchange: Any,
        method: bytes,
        path: bytes,
        authority: bytes,
        headers: Headers,
        ended: bool,
        upgrade: bytes,
    ) -> None:
        """Send a request's head."""

    @abstractmethod
    def send_data(self, data: bytes) -> None: ...

    @abstractmethod
    def send_end(self, trailers: Headers | None) -> None: ...

    @abstractmethod
    def let_go(self) -> None:
        """Nobody wants the response, but it has no body: its end, which follows at once, frees the connection."""

    @abstractmethod
    def cancel(self) -> None:
        """The exchange wants no more of this response."""

    @abstractmethod
    def pause(self) -> None: ...

    @abstractmethod
    def resume(self) -> None: ...


Failure = Callable[[str, str], Any]
