"""Two byte streams joined: what comes from one goes to the other, at the pace of the slower one.

Rule: sans-IO; a stream is anything that can write, pause and finish. The end of one direction is passed on and leaves the
other direction open (half-close); the relay is over when both have ended or either broke. Nothing is buffered here but
what arrives before the upstream is there, and reading is paused then.
Not for: choosing the upstream, time, statistics beyond bytes.
"""

from __future__ import annotations

from abc import abstractmethod

from mypy_extensions import trait


@trait
class Stream:
    """One side."""

    full: bool
    """So much output waits that its source should pause."""

    @abstractmethod
    def write(self, data: bytes) -> None: ...
    @abstractmethod
    def finish(self) -> None: ...
    @abstractmethod
    def pause(self) -> None: ...
    @abstractmethod
    def resume(self) -> None: ...


class Relay:
    """Invariant: a side is paused exactly while the other one is full or missing."""

    __slots__ = (
        "_early", "client", "client_ended", "from_client", "from_upstream", "upstream", "upstream_ended",
    )  # fmt: skip

    def __init__(self, client: Stream) -> None:
        self.client = client
        self.upstream: Stream | None = None
        self.from_client = 0
        """Bytes."""
        self.from_upstream = 0
        self.client_ended = False
        self.upstream_ended = False
        self._early: list[bytes] = []

    def join(self, upstream: Stream) -> None:
        """The upstream is there: what came early goes out, then everything flows."""
        self.upstream = upstream
        for data in self._early:
            upstream.write(data)
        self._early = []
        if self.client_ended:
            upstream.finish()
        elif not upstream.full:
            self.client.resume()

    def client_data(self, data: bytes) -> None:
        """Bytes from the client."""
        self.from_client += len(data)
        upstream = self.upstream
        if upstream is None:
            self._early.append(data)
            self.client.pause()
            return
        upstream.write(data)
        if upstream.full:
            self.client.pause()

    def upstream_data(self, data: bytes) -> None:
        """Bytes from the upstream."""
        self.from_upstream += len(data)
        self.client.write(data)
        if self.client.full and self.upstream is not None:
            self.upstream.pause()

    def client_drained(self) -> None:
        """The client's output has room again."""
        if self.upstream is not None:
            self.upstream.resume()

    def upstream_drained(self) -> None:
        """The upstream's output has room again."""
        self.client.resume()

    def end_client(self) -> bool:
        """The client sends no more. True when that was the last direction."""
        self.client_ended = True
        if self.upstream is not None:
            self.upstream.finish()
        return self.upstream_ended

    def end_upstream(self) -> bool:
        """The upstream sends no more. True when that was the last direction."""
        self.upstream_ended = True
        self.client.finish()
        return self.client_ended
