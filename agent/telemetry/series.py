"""Counting finished requests and connections: one dictionary lookup and a few additions each.

A *series* is a block of slots for everything that is counted under the same labels: three histograms of a
request (duration, request and response size), or four counters of a TCP connection. Its labels are worked out
when it is first seen; readers (reading.py) make `istio_*` metrics, `cluster.*.upstream_rq_2xx` and
`http.*.downstream_rq_2xx` of it, so that a request is counted once. Rule: the number of series is bounded;
what comes beyond is counted under one series that says so.
Not for: statistics that are counted as things happen (scopes.py).
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Callable, Mapping
from typing import Any, Final

from agent.telemetry.header_fields import grpc_status
from agent.telemetry.labels import UNKNOWN, Side, connection_labels, passes_through
from agent.telemetry.outcome import Outcome
from agent.telemetry.scopes import ClusterStats, HttpStats, ListenerStats, ServerStats, TcpStats, definitions
from agent.telemetry.stats import StatsRegion

BUCKETS: Final = (
    0.5, 1, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10000, 30000, 60000, 300000, 600000, 1800000, 3600000,
)  # fmt: skip
"""Upper bounds of Envoy's and Istio's histograms, milliseconds or bytes; one more bucket for the rest."""

_WIDTH: Final = len(BUCKETS) + 2
"""Slots of one histogram: buckets, the rest, and the sum (microseconds, or bytes)."""
_SUM: Final = _WIDTH - 1
_REQUEST_SLOTS: Final = 3 * _WIDTH
_KEYS: Final = 16384
"""Remembered combinations; the memory is cleared beyond that (blocks stay)."""
_STRANGERS: Final = 256
OVERFLOW: Final = "overflow"

TCP_SLOTS: Final = 4
OPENED, CLOSED, RECEIVED, SENT = range(TCP_SLOTS)


class _Recent:
    """What the last plain request was counted under: without flags and without a content type."""

    __slots__ = (
        "charged",
        "cluster",
        "code",
        "first",
        "listener",
        "metadata",
        "prefix",
        "upstream",
        "upstream_uris",
        "uris",
    )

    def __init__(self) -> None:
        self.cluster: Any = self
        self.metadata: Any = None
        self.listener: Any = None
        self.code = 0
        self.uris: tuple[str, ...] | None = None
        self.upstream_uris: tuple[str, ...] | None = None
        self.prefix = ""
        self.upstream = False
        self.charged = False
        self.first = 0


class Recorder:
    """A worker's statistics: scopes to count in, and `record` for what is finished.

    Without a region it makes one of its own, so that callers have one code path.
    """

    def __init__(
        self,
        region: StatsRegion | None = None,
        node_metadata: Mapping[str, Any] | None = None,
        *,
        principal: str = UNKNOWN,
        max_series: int = 4000,
    ) -> None:
        """`principal`: the workload's own SPIFFE id. `max_series`: request series before overflow."""
        self.region = StatsRegion.create() if region is None else region
        self.slots = self.region.counts
        """To count in, by the slot numbers of the scopes."""
        self.region.define({**definitions(), "buckets": list(BUCKETS)})
        self.server = ServerStats(self.region, "")
        self._node = Side.of_node(node_metadata or {}, principal)
        self._left = max_series
        self._by_key: dict[tuple[Any, ...], tuple[int, Any, Any]] = {}
        self._by_labels: dict[str, int] = {}
        self._recent = _Recent()
        self._strangers: set[str] = set()
        """Names of places outside of the mesh that have a series."""

    def cluster(self, name: str) -> ClusterStats:
        """Statistics of a cluster, by its stat name (alt_stat_name or name)."""
        return ClusterStats(self.region, name)

    def http(self, stat_prefix: str) -> HttpStats:
        """Statistics of a connection manager."""
        return HttpStats(self.region, stat_prefix)

    def listener(self, address: str) -> ListenerStats:
        """Statistics of a listener, by its address (`0.0.0.0_15006`) or stat prefix."""
        return ListenerStats(self.region, address)

    def tcp(self, stat_prefix: str) -> TcpStats:
        """Statistics of a TCP proxy."""
        return TcpStats(self.region, stat_prefix)

    def count(self, name: str) -> Callable[[], None]:
        """What adds one to a counter of this name."""
        slots, slot = self.slots, self.region.counter(name)

        def add() -> None:
            slots[slot] += 1

        return add

    def forget_configuration(self) -> None:
        """The configuration has changed: let go of the listeners and clusters by which series were found. The series stay."""
        self._by_key.clear()
        self._recent = _Recent()

    def record(self, outcome: Outcome) -> None:
        """Count one finished HTTP request."""
        first = self._block_of(outcome)
        slots = self.slots
        milliseconds = (outcome.finished_at - outcome.started_at) * 1e3
        bucket: int = bisect_left(BUCKETS, milliseconds)
        slots[first + bucket] += 1
        slots[first + _SUM] += int(milliseconds * 1e3)
        first += _WIDTH
        size = outcome.bytes_received + outcome.request_headers_bytes
        bucket = bisect_left(BUCKETS, size)
        slots[first + bucket] += 1
        slots[first + _SUM] += size
        first += _WIDTH
        size = outcome.bytes_sent + outcome.response_headers_bytes
        bucket = bisect_left(BUCKETS, size)
        slots[first + bucket] += 1
        slots[first + _SUM] += size

    def _block_of(self, outcome: Outcome) -> int:
        """The series of a finished request: most often that of the one before it, else by its key."""
        uris, upstream_uris, plain = outcome.peer_uris, outcome.upstream_uris, outcome.plain
        upstream = outcome.upstream_address != ""
        recent = self._recent
        if (
            plain
            and outcome.cluster is recent.cluster
            and outcome.upstream_metadata is recent.metadata
            and outcome.listener is recent.listener
            and outcome.response_code == recent.code
            and uris == recent.uris
            and upstream_uris == recent.upstream_uris
            and outcome.stat_prefix == recent.prefix
            and upstream is recent.upstream
            and outcome.charged is recent.charged
        ):
            return recent.first
        key = (
            id(outcome.cluster), id(outcome.upstream_metadata), id(outcome.listener), outcome.stat_prefix,
            outcome.response_code, ",".join(outcome.flags), uris, upstream_uris, upstream, outcome.charged,
            None if plain else (grpc_status(outcome), _is_internal(outcome), self._named(outcome)),
        )  # fmt: skip
        known = self._by_key.get(key)
        first = self._learn(key, outcome) if known is None else known[0]
        if plain:
            recent.cluster, recent.metadata, recent.listener = (
                outcome.cluster, outcome.upstream_metadata, outcome.listener,
            )  # fmt: skip
            recent.code, recent.uris, recent.upstream_uris = outcome.response_code, uris, upstream_uris
            recent.prefix, recent.upstream, recent.first = outcome.stat_prefix, upstream, first
            recent.charged = outcome.charged
        return first

    def record_tcp_opened(self, outcome: Outcome) -> int:
        """Count one opaque connection whose upstream is known; returns the series for the other calls."""
        first = self._tcp_series(outcome)
        self.slots[first + OPENED] += 1
        return first

    def record_tcp_bytes(self, series: int, received: int, sent: int) -> None:
        """Count bytes of the client (`received`) and of the upstream (`sent`) since the last call."""
        self.slots[series + RECEIVED] += received
        self.slots[series + SENT] += sent

    def record_tcp_closed(self, series: int) -> None:
        """Count the end of the connection."""
        self.slots[series + CLOSED] += 1

    def _learn(self, key: tuple[Any, ...], outcome: Outcome) -> int:
        labels = connection_labels(outcome, self._node, self._named(outcome))
        if labels:
            request, grpc = outcome.request, grpc_status(outcome)
            kind = request.headers.get(b"content-type", b"") if request is not None else b""
            labels["request_protocol"] = "grpc" if kind.startswith(b"application/grpc") else "http"
            labels["response_code"] = str(outcome.response_code)
            labels["grpc_response_status"] = "" if grpc is None else str(grpc)
            labels["response_flags"] = ",".join(outcome.flags) or "-"
        about = {
            "labels": labels,
            "http": outcome.stat_prefix,
            "cluster": (outcome.cluster.alt_stat_name or outcome.cluster.name)
            if outcome.charged and outcome.cluster is not None
            else "",
            "code": outcome.response_code,
            "upstream": outcome.upstream_address != "",
            "internal": _is_internal(outcome),
            "listener": _listener_name(outcome.listener),
        }
        first = self._series("r", about, _REQUEST_SLOTS)
        if len(self._by_key) >= _KEYS:
            self._by_key.clear()
        # The objects whose ids are in the key stay alive with it.
        self._by_key[key] = (first, (outcome.cluster, outcome.upstream_metadata), outcome.listener)
        return first

    def _named(self, outcome: Outcome) -> str:
        """How a request names a place outside of the mesh. Clients choose these names, so there are _STRANGERS at most."""
        request = outcome.request
        if request is None or not passes_through(outcome):
            return UNKNOWN
        name: str = request.authority.decode("latin-1")
        if name not in self._strangers:
            if len(self._strangers) >= _STRANGERS:
                return OVERFLOW
            self._strangers.add(name)
        return name

    def _tcp_series(self, outcome: Outcome) -> int:
        labels = connection_labels(outcome, self._node)
        if labels:
            labels["request_protocol"] = "tcp"
            labels["response_flags"] = ",".join(outcome.flags) or "-"
        return self._series("t", {"labels": labels}, TCP_SLOTS)

    def _series(self, kind: str, about: Mapping[str, Any], count: int) -> int:
        text = kind + json.dumps(about)
        found = self._by_labels.get(text)
        if found is not None:
            return found
        if self._left <= 0:
            labels = dict.fromkeys(about["labels"], OVERFLOW)
            kept = {
                "labels": labels,
                "http": about.get("http", ""),
                "cluster": "",
                "code": 0,
                "upstream": False,
                "internal": False,
                "listener": "",
            }
            self.slots[self.server.statistics_dropped] += 1
            return self.region.block(kind, json.dumps(kept), count)
        self._left -= 1
        first = self.region.block(kind, text[1:], count)
        self._by_labels[text] = first
        return first


def _is_internal(outcome: Outcome) -> bool:
    return outcome.request is not None and b"x-envoy-internal" in outcome.request.headers


def _listener_name(listener: Any) -> str:
    """The name of a listener's statistics."""
    if listener is None:
        return ""
    return str(listener.stat_prefix or f"{listener.address.host}_{listener.address.port}")
