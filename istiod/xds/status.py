"""How far each connected proxy is: what was sent, what it acknowledged, what it refused and why.

Job: the values behind `meshctl proxy-status`, and the question "has everybody taken snapshot N?".
Rule: a proxy is settled at the newest snapshot for which nothing is left to send and nothing is unanswered; a
refusal settles too (the proxy keeps what it had) and stays on record until an acknowledgement of its type.
Not for: the protocol (`wire.xds`) or the sending (`istiod.xds.stream`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import trio

from istiod.xds.node import ProxyNode
from wire.spiffe import SpiffeId
from wire.xds import CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE, SECRET

SHORT_NAMES = {
    CLUSTER: "CDS",
    LISTENER: "LDS",
    ENDPOINT: "EDS",
    ROUTE: "RDS",
    SECRET: "SDS",
    NAME_TABLE: "NDS",
}


@dataclass
class TypeStatus:
    """One subscribed type of one proxy. Times are trio's clock."""

    type_url: str
    resources: int = 0
    version: str = ""
    nonce: str = ""
    sent_at: float | None = None
    answered_at: float | None = None
    unanswered: bool = False
    reason: str = ""
    snapshot: int = 0
    """Number of the snapshot that the last response was made of."""
    current: bool = False
    """The proxy came with everything it should have (it named its versions), so that nothing had to be sent."""

    @property
    def state(self) -> str:
        """SYNCED, STALE or ERROR, as meshctl shows it."""
        if self.unanswered:
            return "STALE"
        if self.reason:
            return "ERROR"
        return "SYNCED" if self.sent_at is not None or self.current else "NOT SENT"

    def sent(self, now: float, nonce: str, version: str, resources: int, snapshot: int) -> None:
        """A response went out."""
        self.nonce, self.sent_at, self.version = nonce, now, version
        self.resources, self.unanswered, self.snapshot = resources, True, snapshot

    def answered(self, now: float, reason: str) -> None:
        """The response was acknowledged (empty reason) or refused."""
        self.answered_at, self.reason, self.unanswered = now, reason, False


@dataclass
class ProxyStatus:
    """One ADS stream. `number` tells streams of one node apart; `health` is the agent's last report."""

    number: int
    node: ProxyNode
    peer: SpiffeId | None
    address: str
    protocol: str
    connected_at: float
    types: dict[str, TypeStatus] = field(default_factory=dict)
    health: str = "-"
    refused: str = ""
    """Why its workload is not in the catalog."""
    settled: int = 0
    """Number of the newest snapshot that this proxy has taken (or refused)."""

    def of_type(self, type_url: str) -> TypeStatus:
        """The status of one type, made at its first use."""
        if type_url not in self.types:
            self.types[type_url] = TypeStatus(type_url)
        return self.types[type_url]

    def refusals(self, since: int) -> Iterator[TypeStatus]:
        """Types whose last response was refused, if it was made of snapshot `since` or a later one."""
        return (status for status in self.types.values() if status.reason and status.snapshot >= since)


class ProxyTable:
    """The connected proxies of this istiod, in the order in which they came."""

    def __init__(self) -> None:
        self._streams: dict[int, ProxyStatus] = {}
        self._last_number = 0
        self._progress = trio.Event()

    def next_number(self) -> int:
        """A number for a new stream."""
        self._last_number += 1
        return self._last_number

    def add(self, status: ProxyStatus) -> None:
        """A stream began."""
        self._streams[status.number] = status

    def remove(self, status: ProxyStatus) -> None:
        """A stream ended."""
        self._streams.pop(status.number, None)
        self.progressed()

    def find(self, key: str) -> ProxyStatus | None:
        """The newest stream of NAMESPACE/NAME."""
        return next((s for s in reversed(self._streams.values()) if s.node.key == key), None)

    def newest(self) -> list[ProxyStatus]:
        """One stream for each node, the newest, in order of name."""
        return sorted({s.node.key: s for s in self._streams.values()}.values(), key=lambda s: s.node.key)

    def __iter__(self) -> Iterator[ProxyStatus]:
        return iter(list(self._streams.values()))

    def __len__(self) -> int:
        return len(self._streams)

    def progressed(self) -> None:
        """Some stream settled, or left: whoever waits looks again."""
        self._progress.set()
        self._progress = trio.Event()

    async def settled(self, number: int) -> None:
        """Wait until every stream that is connected has settled at snapshot `number` or a later one."""
        while behind(self, number):
            await self._progress.wait()


def behind(streams: Iterable[ProxyStatus], number: int) -> list[ProxyStatus]:
    """The streams that have not settled at snapshot `number`."""
    return [stream for stream in streams if stream.settled < number]
