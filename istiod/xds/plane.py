"""What all ADS streams of one istiod share.

Job: hold the feed, the proxy table, the registration and the compiler's cache together.
Rule: compiling is synchronous and pure; the cache starts a new generation with every snapshot.
Not for: one stream's state (`istiod.xds.stream`).
"""

from __future__ import annotations

import time

import trio

from istiod.compile import Cache, compile_proxy
from istiod.feed import Feed
from istiod.monitoring import Metrics
from istiod.proxy import ProxyInfo
from istiod.registration import Registration
from istiod.xds.phases import Content, PhasedContent
from istiod.xds.standing import Judge
from istiod.xds.status import ProxyStatus, ProxyTable


class Plane:
    """The shared side of the streams. `owner` names this istiod process, `identifier` it and its version."""

    def __init__(
        self,
        feed: Feed,
        registration: Registration,
        metrics: Metrics,
        judge: Judge,
        *,
        trust_domain: str,
        owner: str,
        identifier: str,
    ) -> None:
        self.feed = feed
        self.judge = judge
        self.registration = registration
        self.metrics = metrics
        self._trust_domain = trust_domain
        self.owner = owner
        self.identifier = identifier
        self.table = ProxyTable()
        self.contents: dict[int, PhasedContent] = {}
        """What each stream was given, by its number."""
        self.compiling = trio.Lock()
        """Held by the stream whose turn it is to compile."""
        self._cache = Cache()
        self._generation = 0

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """The mesh's own, and its aliases now."""
        return (self._trust_domain, *self.feed.snapshot.mesh.trust_domain_aliases)

    def compile(self, proxy: ProxyInfo) -> Content:
        """The newest snapshot's resources for a proxy, shared with every proxy that has the same."""
        if self._generation != self.feed.number:
            self._cache.turn()
            self._generation = self.feed.number
        started = time.perf_counter()
        resources = compile_proxy(self.feed.snapshot, proxy, self._cache)
        self.metrics.compile_seconds.observe(time.perf_counter() - started)
        return resources.types

    def sent(self, status: ProxyStatus) -> Content:
        """What a stream was given, by type and name; empty when it ended."""
        phases = self.contents.get(status.number)
        return phases.given if phases is not None else {}
