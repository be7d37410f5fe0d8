"""Reading statistics regions: names, labels and values, added up over all workers of the host.

Rule: a region explains itself (its `d` entry says what its scopes and buckets are), so that a newer reader
understands an older worker that drains. Counters of workers that are gone are kept by `Workers.retire`.
Not for: text formats (prometheus.py).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from agent.telemetry.scopes import envoy_name
from agent.telemetry.stats import Entry, StatsRegion

Labels: TypeAlias = tuple[tuple[str, str], ...]
Key: TypeAlias = tuple[str, Labels]

log = logging.getLogger("hostmesh.statistics")
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError)
"""What a garbled region makes of reading it (UnicodeDecodeError and JSONDecodeError are ValueErrors)."""

_REQUEST_HISTOGRAMS = (
    ("istio_request_duration_milliseconds", 1e-3),
    ("istio_request_bytes", 1.0),
    ("istio_response_bytes", 1.0),
)
_TCP_COUNTERS = (
    "istio_tcp_connections_opened_total",
    "istio_tcp_connections_closed_total",
    "istio_tcp_received_bytes_total",
    "istio_tcp_sent_bytes_total",
)


@dataclass(slots=True)
class Histogram:
    """Counts by bucket (not cumulated), one more than there are bounds, and the sum of all values."""

    bounds: tuple[float, ...]
    counts: list[int]
    sum: float = 0.0

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    def add(self, counts: Iterable[int], total: float) -> None:
        """Add another histogram of the same bounds."""
        self.counts = [mine + other for mine, other in zip(self.counts, counts, strict=True)]
        self.sum += total


@dataclass(slots=True)
class Statistics:
    """Everything that was read. Keys are (name, labels); Envoy's own names have no labels."""

    counters: dict[Key, int] = field(default_factory=dict)
    gauges: dict[Key, int] = field(default_factory=dict)
    histograms: dict[Key, Histogram] = field(default_factory=dict)

    def count(self, name: str, value: int, labels: Labels = ()) -> None:
        """Add to a counter."""
        key = (name, labels)
        self.counters[key] = self.counters.get(key, 0) + value

    def gauge(self, name: str, value: int) -> None:
        """Add to a gauge."""
        key: Key = (name, ())
        self.gauges[key] = self.gauges.get(key, 0) + value

    def observe(
        self, name: str, labels: Labels, bounds: tuple[float, ...], counts: list[int], total: float
    ) -> None:
        """Add to a histogram."""
        found = self.histograms.get((name, labels))
        if found is None:
            self.histograms[name, labels] = Histogram(bounds, list(counts), total)
        else:
            found.add(counts, total)

    def keep(self, wanted: Callable[[str], bool]) -> None:
        """Forget all others."""
        self.counters = {key: value for key, value in self.counters.items() if wanted(key[0])}
        self.gauges = {key: value for key, value in self.gauges.items() if wanted(key[0])}
        self.histograms = {key: value for key, value in self.histograms.items() if wanted(key[0])}

    def add(self, other: Statistics) -> None:
        """Add counters and histograms of another one."""
        for (name, labels), value in other.counters.items():
            self.count(name, value, labels)
        for (name, labels), histogram in other.histograms.items():
            self.observe(name, labels, histogram.bounds, histogram.counts, histogram.sum)

    def read(self, region: StatsRegion, *, with_gauges: bool = True) -> None:
        """Add everything of one region."""
        region.publish()
        scopes: dict[str, Any] = {}
        bounds: tuple[float, ...] = ()
        for entry in region.entries():
            if entry.kind == "d":
                definitions = json.loads(entry.text)
                scopes, bounds = definitions["scopes"], tuple(definitions["buckets"])
            elif entry.kind == "c":
                self.count(entry.text, region.slots[entry.first])
            elif entry.kind == "g" and with_gauges:
                self.gauge(entry.text, region.slots[entry.first])
            elif entry.kind == "s":
                self._read_scope(region, entry, scopes, with_gauges)
            elif entry.kind == "r":
                self._read_requests(region, entry, bounds)
            elif entry.kind == "t":
                labels = _labels(json.loads(entry.text)["labels"])
                if labels:
                    for offset, name in enumerate(_TCP_COUNTERS):
                        self.count(name, region.slots[entry.first + offset], labels)

    def _read_scope(
        self, region: StatsRegion, entry: Entry, scopes: dict[str, Any], with_gauges: bool
    ) -> None:
        definition = scopes[entry.text.partition(".")[0]]
        gauges = definition["gauges"]
        for offset, attribute in enumerate(definition["names"]):
            name = f"{entry.text}.{envoy_name(attribute)}"
            value = region.slots[entry.first + offset]
            if attribute not in gauges:
                self.count(name, value)
            elif with_gauges:
                self.gauge(name, value)

    def _read_requests(self, region: StatsRegion, entry: Entry, bounds: tuple[float, ...]) -> None:
        about = json.loads(entry.text)
        labels = _labels(about["labels"])
        width = len(bounds) + 2
        values = [
            list(region.slots[entry.first + i * width : entry.first + (i + 1) * width]) for i in range(3)
        ]
        requests = sum(values[0][:-1])
        if labels:
            self.count("istio_requests_total", requests, labels)
            for (name, scale), numbers in zip(_REQUEST_HISTOGRAMS, values, strict=True):
                self.observe(name, labels, bounds, numbers[:-1], numbers[-1] * scale)
        duration = values[0][:-1], values[0][-1] * 1e-3
        if about["http"]:
            prefix = f"http.{about['http']}"
            self._by_code(f"{prefix}.downstream_rq", about["code"], requests, exact=False)
            if about.get("listener"):
                of_listener = f"listener.{about['listener']}.{prefix}.downstream_rq"
                self._by_code(of_listener, about["code"], requests, exact=False)
            self.observe(f"{prefix}.downstream_rq_time", (), bounds, *duration)
        if about["cluster"] and about["code"]:
            prefix = f"cluster.{about['cluster']}"
            self._by_code(f"{prefix}.upstream_rq", about["code"], requests, exact=True)
            side = "internal" if about.get("internal") else "external"
            self._by_code(f"{prefix}.{side}.upstream_rq", about["code"], requests, exact=True)
            if about["upstream"]:
                self.observe(f"{prefix}.upstream_rq_time", (), bounds, *duration)

    def _by_code(self, prefix: str, code: int, requests: int, *, exact: bool) -> None:
        self.count(f"{prefix}_completed", requests)
        if code:
            if code < 600:
                self.count(f"{prefix}_{code // 100}xx", requests)
            if exact:
                self.count(f"{prefix}_{code}", requests)


def _labels(labels: dict[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


class Workers:
    """The regions of one host's workers: current ones, and the counters of those that have ended."""

    def __init__(self) -> None:
        self._regions: dict[int, StatsRegion] = {}
        self._ended = Statistics()
        self._next = 0

    def add(self, region: StatsRegion) -> int:
        """Take a region in; the number is for `retire`."""
        self._next += 1
        self._regions[self._next] = region
        return self._next

    def retire(self, number: int) -> None:
        """A worker has ended: keep what it counted, forget its gauges, and close its region."""
        region = self._regions.pop(number, None)
        if region is None:
            return
        ended = Statistics()
        try:
            ended.read(region, with_gauges=False)
        except UNREADABLE as error:
            log.warning("statistics of worker process %d are lost: %r", region.pid, error)
        else:
            self._ended.add(ended)
        region.close()

    def forget_ended(self) -> None:
        """Begin to count anew (/reset_counters), as far as it is not the living workers' to do."""
        self._ended = Statistics()

    def read(self) -> Statistics:
        """Everything, added up."""
        total = Statistics()
        total.add(self._ended)
        for number, region in list(self._regions.items()):
            try:
                total.read(region)
            except UNREADABLE as error:
                # A worker is not trusted: what it garbles is no reason to lose the others' numbers.
                log.warning("statistics of worker process %d are left out: %r", region.pid, error)
                del self._regions[number]
                region.close()
        return total
