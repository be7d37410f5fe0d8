"""How far each connected proxy is: what was sent, what it acknowledged, what it refused and why.

Job: the values behind `meshctl proxy-status`, and the question "has everybody taken snapshot N?".
Rule: a proxy is settled at the newest snapshot for which nothing is left to send and nothing is unanswered; a
refusal settles too (the proxy keeps what it had) and stays on record for as long as the proxy refuses what it
should have, whatever else of the type it takes meanwhile.
Not for: the protocol (`wire.xds`) or the sending (`istiod.xds.stream`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import trio

from istiod.compile.failure import Failure
from istiod.xds.node import ProxyNode
from wire.spiffe import SpiffeId
from wire.xds import CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE, SECRET, Refusal

SHORT_NAMES = {
    CLUSTER: "CDS",
    LISTENER: "LDS",
    ENDPOINT: "EDS",
    ROUTE: "RDS",
    SECRET: "SDS",
    NAME_TABLE: "NDS",
}


@dataclass(frozen=True, slots=True)
class Refused:
    """A resource that a proxy refuses, since it was sent the content of snapshot `snapshot`."""

    name: str
    version: str
    reason: str
    snapshot: int


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
    refused: tuple[Refused, ...] = ()
    snapshot: int = 0
    """Number of the snapshot that the last response was made of."""
    current: bool = False
    """The proxy came with everything it should have (it named its versions), so that nothing had to be sent."""

    @property
    def reason(self) -> str:
        """Why what is refused is refused; empty when nothing is."""
        return "\n".join(dict.fromkeys(one.reason for one in self.refused))

    @property
    def state(self) -> str:
        """SYNCED, STALE or ERROR, as meshctl shows it."""
        if self.unanswered:
            return "STALE"
        if self.refused:
            return "ERROR"
        return "SYNCED" if self.sent_at is not None or self.current else "NOT SENT"

    def sent(self, now: float, nonce: str, version: str, resources: int, snapshot: int) -> None:
        """A response went out."""
        self.nonce, self.sent_at, self.version = nonce, now, version
        self.resources, self.unanswered, self.snapshot = resources, True, snapshot

    def answered(self, now: float, unanswered: bool, refused: Mapping[str, Refusal]) -> list[Refused]:
        """A response was acknowledged or refused: what the proxy now refuses; returns what is new of that."""
        self.answered_at, self.unanswered = now, unanswered
        before = {(one.name, one.version): one for one in self.refused}
        self.refused = tuple(
            before.get((name, one.version)) or Refused(name, one.version, one.reason, self.snapshot)
            for name, one in sorted(refused.items())
        )
        return [one for one in self.refused if (one.name, one.version) not in before]

    def stand(self, refused: Mapping[str, Refusal]) -> None:
        """Forget refusals of what the proxy should no longer have."""
        self.refused = tuple(one for one in self.refused if one.name in refused)


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
    health_reason: str = ""
    """Why it is not healthy."""
    refused: str = ""
    """Why its workload is not in the catalog."""
    failures: dict[Failure, int] = field(default_factory=dict)
    """Parts of its configuration that could not be compiled, each with the number of the first snapshot in which it
    could not: the proxy keeps the last good version, or goes without."""
    settled: int = 0
    """Number of the newest snapshot that this proxy has taken (or refused)."""

    def of_type(self, type_url: str) -> TypeStatus:
        """The status of one type, made at its first use."""
        if type_url not in self.types:
            self.types[type_url] = TypeStatus(type_url)
        return self.types[type_url]

    def not_compiled(self, failures: tuple[Failure, ...], number: int) -> None:
        """What of snapshot `number` could not be compiled for this proxy."""
        self.failures = {one: self.failures.get(one, number) for one in failures}


class ProxyTable:
    """The connected proxies of this istiod, in the order in which they came."""

    def __init__(self) -> None:
        self._streams: dict[int, ProxyStatus] = {}
        self._by_key: dict[str, list[ProxyStatus]] = {}
        self._last_number = 0
        self._progress = trio.Event()

    def next_number(self) -> int:
        """A number for a new stream."""
        self._last_number += 1
        return self._last_number

    def add(self, status: ProxyStatus) -> None:
        """A stream began."""
        self._streams[status.number] = status
        self._by_key.setdefault(status.node.key, []).append(status)

    def remove(self, status: ProxyStatus) -> None:
        """A stream ended."""
        if self._streams.pop(status.number, None) is not None:
            same = self._by_key[status.node.key]
            same.remove(status)
            if not same:
                del self._by_key[status.node.key]
        self.progressed()

    def find(self, key: str) -> ProxyStatus | None:
        """The newest stream of NAMESPACE/NAME."""
        same = self._by_key.get(key)
        return same[-1] if same else None

    def newest(self) -> list[ProxyStatus]:
        """One stream for each node, the newest, in order of name."""
        return [self._by_key[key][-1] for key in sorted(self._by_key)]

    def __iter__(self) -> Iterator[ProxyStatus]:
        return iter(list(self._streams.values()))

    def __len__(self) -> int:
        return len(self._streams)

    def refused(self) -> dict[tuple[str, str], str]:
        """What some proxy refuses now: type URL and name to the reason."""
        return {
            (status.type_url, one.name): one.reason
            for stream in self._streams.values()
            for status in stream.types.values()
            for one in status.refused
        }

    def progressed(self) -> None:
        """Some stream settled, or left: whoever waits looks again."""
        self._progress.set()
        self._progress = trio.Event()

    async def settled(self, number: int) -> None:
        """Wait until there are streams, and every one of them has settled at snapshot `number` or a later one."""
        while not self._streams or behind(self, number):
            await self._progress.wait()


def behind(streams: Iterable[ProxyStatus], number: int) -> list[ProxyStatus]:
    """The streams that have not settled at snapshot `number`."""
    return [stream for stream in streams if stream.settled < number]
