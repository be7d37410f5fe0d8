"""Statistics as text: Prometheus exposition, and Envoy's `/stats` in text and JSON.

Rule: names and tags are what Envoy's tag extraction makes of them (`envoy_cluster_upstream_rq_xx` with
`envoy_response_code_class`), `istio_*` as Istio prints them.
Not for: HTTP, nor for reading shared memory (reading.py).
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable

from agent.telemetry.reading import Histogram, Key, Labels, Statistics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_UNSAFE = re.compile(r"[^a-zA-Z0-9_]")
_CODE_CLASS = re.compile(r"_rq_([1-5])xx$")
_CODE = re.compile(r"_rq_([1-5]\d\d)$")
_PREFIX_TAG = {
    "cluster": "envoy_cluster_name",
    "http": "envoy_http_conn_manager_prefix",
    "tcp": "envoy_tcp_prefix",
    "listener": "envoy_listener_address",
}
_OWN_PARTS = (
    "outlier_detection.",
    "circuit_breakers.default.",
    "circuit_breakers.high.",
    "health_check.",
    "ssl.",
)


def exposition(statistics: Statistics, *, used_only: bool = False) -> str:
    """Prometheus text format 0.0.4. `used_only` leaves out what was never counted."""
    families: dict[tuple[str, str], list[str]] = defaultdict(list)
    for key, value in statistics.counters.items():
        if value or not used_only:
            name, labels = envoy_tags(key)
            families[name, "counter"].append(f"{name}{_braces(labels)} {value}")
    for key, value in statistics.gauges.items():
        if value or not used_only:
            name, labels = envoy_tags(key)
            families[name, "gauge"].append(f"{name}{_braces(labels)} {value}")
    for key, histogram in statistics.histograms.items():
        if histogram.count or not used_only:
            name, labels = envoy_tags(key)
            families[name, "histogram"].extend(_histogram_lines(name, labels, histogram))
    lines: list[str] = []
    for (name, kind), samples in sorted(families.items()):
        lines.append(f"# TYPE {name} {kind}")
        lines.extend(samples)
    return "".join(f"{line}\n" for line in lines)


def _histogram_lines(name: str, labels: Labels, histogram: Histogram) -> Iterable[str]:
    so_far = 0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        so_far += count
        yield f"{name}_bucket{_braces((*labels, ('le', f'{bound:g}')))} {so_far}"
    yield f"{name}_bucket{_braces((*labels, ('le', '+Inf')))} {histogram.count}"
    yield f"{name}_sum{_braces(labels)} {histogram.sum:.10g}"
    yield f"{name}_count{_braces(labels)} {histogram.count}"


def _braces(labels: Labels) -> str:
    return "{" + ",".join(f'{name}="{_escape(value)}"' for name, value in labels) + "}"


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def envoy_tags(key: Key) -> Key:
    """Envoy's dotted name to a Prometheus name and tags; names with labels of their own stay as they are."""
    name, labels = key
    kind, _, rest = name.partition(".")
    if labels or not rest:
        return name, labels
    tags: list[tuple[str, str]] = []
    if kind in _PREFIX_TAG:
        owner, rest = _split_owner(rest)
        tags.append((_PREFIX_TAG[kind], owner))
        found = _CODE_CLASS.search(rest)
        if found:
            tags.insert(0, ("envoy_response_code_class", found[1]))
            rest = rest[: found.start()] + "_rq_xx"
        found = _CODE.search(rest)
        if found:
            tags.insert(0, ("envoy_response_code", found[1]))
            rest = rest[: found.start()] + "_rq"
    return _UNSAFE.sub("_", f"envoy_{kind}_{rest}"), tuple(tags)


def _split_owner(rest: str) -> tuple[str, str]:
    """`outbound|80||a.b.outlier_detection.x` to the owner (which may have dots) and the statistic's own name."""
    for part in _OWN_PARTS:
        at = rest.rfind("." + part)
        if at >= 0:
            return rest[:at], rest[at + 1 :]
    owner, _, name = rest.rpartition(".")
    return owner, name


def stats_text(statistics: Statistics, wanted: Callable[[str], bool], *, used_only: bool = False) -> str:
    """Envoy's `/stats`: `name: value`, sorted; histograms with their interpolated quantiles."""
    lines: list[str] = []
    for key, value in [*statistics.counters.items(), *statistics.gauges.items()]:
        name = _flat(key)
        if wanted(name) and (value or not used_only):
            lines.append(f"{name}: {value}")
    histograms: list[str] = []
    for key, histogram in statistics.histograms.items():
        name = _flat(key)
        if not wanted(name) or (used_only and not histogram.count):
            continue
        if histogram.count:
            parts = " ".join(f"P{quantile:g}({_quantile(histogram, quantile):.6g})" for quantile in QUANTILES)
            histograms.append(f"{name}: {parts}")
        else:
            histograms.append(f"{name}: No recorded values")
    return "".join(f"{line}\n" for line in sorted(lines) + sorted(histograms))


def stats_json(statistics: Statistics, wanted: Callable[[str], bool], *, used_only: bool = False) -> str:
    """Envoy's `/stats?format=json`."""
    stats: list[dict[str, object]] = [
        {"name": _flat(key), "value": value}
        for key, value in sorted([*statistics.counters.items(), *statistics.gauges.items()])
        if wanted(_flat(key)) and (value or not used_only)
    ]
    computed = [
        {
            "name": _flat(key),
            "values": [{"cumulative": _quantile(histogram, quantile)} for quantile in QUANTILES],
        }
        for key, histogram in sorted(statistics.histograms.items(), key=lambda item: item[0])
        if wanted(_flat(key)) and histogram.count
    ]
    if computed:
        stats.append({"histograms": {"supported_quantiles": list(QUANTILES), "computed_quantiles": computed}})
    return json.dumps({"stats": stats}, separators=(",", ":"))


QUANTILES = (0, 25, 50, 75, 90, 95, 99, 99.5, 99.9, 100)


def _quantile(histogram: Histogram, percent: float) -> float:
    """Linear interpolation within the bucket that holds the quantile; the last bucket counts as its lower bound."""
    wanted = histogram.count * percent / 100
    so_far = 0.0
    lower = 0.0
    for bound, count in zip(histogram.bounds, histogram.counts, strict=False):
        if count and so_far + count >= wanted:
            return lower + (bound - lower) * max(0.0, wanted - so_far) / count
        so_far += count
        lower = bound
    return lower


def _flat(key: Key) -> str:
    name, labels = key
    return f"{name}{_braces(labels)}" if labels else name
