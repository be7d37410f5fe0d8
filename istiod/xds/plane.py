"""What all ADS streams of one istiod share.

Job: hold the feed, the proxy table, the registration and the compiler's cache together.
Rule: compiling is synchronous and pure; what is compiled stays in the cache while a stream holds it. A part that
cannot be compiled is logged once, however many proxies go without it.
Not for: one stream's state (`istiod.xds.stream`).
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from istiod.compile import Cache, ProxyResources, compile_proxy
from istiod.compile.failure import Failure
from istiod.config import Limits
from istiod.feed import Feed
from istiod.log import fields
from istiod.monitoring import Metrics
from istiod.proxy import ProxyInfo
from istiod.registration import Registration
from istiod.xds.phases import Content, PhasedContent
from istiod.xds.standing import Judge
from istiod.xds.status import SHORT_NAMES, ProxyStatus, ProxyTable
from wire.grpc import GrpcError, GrpcStatus, Peer, host_of
from wire.grpc.admission import source_of
from wire.rate import RateLimits

log = logging.getLogger("istiod.xds")

_MAX_REPORTED = 1000


class Plane:
    """The shared side of the streams. `owner` names this istiod process, `identifier` it and its version."""

    def __init__(
        self,
        feed: Feed,
        registration: Registration,
        metrics: Metrics,
        judge: Judge,
        limits: Limits,
        *,
        trust_domain: str,
        owner: str,
        identifier: str,
    ) -> None:
        self.feed = feed
        self.judge = judge
        self.limits = limits
        self._streams: Counter[str] = Counter()
        self._beginnings = RateLimits(burst=2 * limits.streams_per_peer, rate=20)
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
        self.cache = Cache()
        self._reported: dict[Failure, int] = {}
        """The failures that are in the log, and the newest snapshot that had them."""

    @property
    def trust_domains(self) -> tuple[str, ...]:
        """The mesh's own, and its aliases now."""
        return (self._trust_domain, *self.feed.snapshot.mesh.trust_domain_aliases)

    @contextmanager
    def counted(self, peer: Peer) -> Iterator[None]:
        """Count a stream of this peer (identity and source) while the block runs. Raises GrpcError for one too many."""
        who = f"{peer.spiffe_id or 'anonymous'} at {source_of(host_of(peer.address))}"
        most = self.limits.streams_per_peer
        if self._streams[who] >= most or not self._beginnings.of(who).spend(trio.current_time()):
            raise GrpcError(GrpcStatus.RESOURCE_EXHAUSTED, f"too many streams of {who} (at most {most})")
        self._streams[who] += 1
        try:
            yield
        finally:
            self._streams[who] -= 1
            if not self._streams[who]:
                del self._streams[who]

    def compile(self, proxy: ProxyInfo) -> ProxyResources:
        """The newest snapshot's resources for a proxy, shared with every proxy that has the same."""
        started = time.perf_counter()
        resources = compile_proxy(self.feed.snapshot, proxy, self.cache)
        self.metrics.compile_seconds.observe(time.perf_counter() - started)
        if resources.failures:
            self._report(resources.failures)
        return resources

    def _report(self, failures: tuple[Failure, ...]) -> None:
        number = self.feed.number
        for one in failures:
            self.metrics.compile_failures.labels(SHORT_NAMES.get(one.type_url, "all")).inc()
            if one not in self._reported:
                log.error("not compiled: %s", one, extra=fields(trace=one.trace))
            self._reported[one] = number
        if len(self._reported) > _MAX_REPORTED:
            self._reported = {one: seen for one, seen in self._reported.items() if seen == number}

    def sent(self, status: ProxyStatus) -> Content:
        """What a stream was given, by type and name; empty when it ended."""
        phases = self.contents.get(status.number)
        return phases.given if phases is not None else {}
