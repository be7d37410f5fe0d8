"""Time stamps and durations of the substitution formatter.

Rule: what changes once a second is made once a second. Wall-clock stamps come from `received_at`, durations
from monotonic points of the Outcome; a point that was never reached is 0.0 and makes the operator absent.
Not for: measuring; the exchange sets the points.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, TypeAlias

from agent.telemetry.outcome import Outcome

Getter: TypeAlias = Callable[[Outcome], Any]
Factory: TypeAlias = Callable[[str, Any], Getter]
"""From an operator's argument and what stands for an absent value."""

_MILLISECONDS: Final = tuple(f"{number:03d}Z" for number in range(1000))

_SPECIFIER: Final = re.compile(
    r"%(?:(?P<digits>[1-9])?f|E(?P<seconds>[0-9*])S|(?P<zone>Ez)|(?P<epoch>s)|(?P<other>.))"
)
_NEWLINE: Final = re.compile(r"%[-_0^#]*[1-9]*[EO]?n")

POINTS: Final = {
    "DS_RX_BEG": "started_at",
    "DS_RX_END": "request_done_at",
    "US_CX_BEG": "upstream_picked_at",
    "US_CX_END": "upstream_connected_at",
    "US_TX_BEG": "upstream_sent_first_at",
    "US_TX_END": "upstream_sent_last_at",
    "US_RX_BEG": "upstream_first_at",
    "US_RX_END": "upstream_last_at",
    "DS_TX_END": "downstream_last_at",
}
"""COMMON_DURATION's names of points, and where the Outcome keeps them (monotonic seconds)."""

_PRECISION: Final = {"ms": 1e3, "us": 1e6, "ns": 1e9}
_ROUNDING: Final = 1e-3
"""Differences of floats fall short of a whole unit by less than this."""


def stamp(pattern: str, local: bool = False) -> Callable[[float], str]:
    """Formatter of wall-clock seconds. Empty: Envoy's `%Y-%m-%dT%H:%M:%E3SZ`.

    strftime's specifiers, and Envoy's `%f` (nanoseconds), `%1f` to `%9f`, `%s` (epoch seconds), `%E3S`,
    `%E*S` and `%Ez`. Raises ValueError for a pattern that would print a line break.
    """
    if _NEWLINE.search(pattern) or "\n" in pattern or "\r" in pattern:
        raise ValueError("format string contains newline")
    split = time.localtime if local else time.gmtime
    if not pattern and not local:
        return _iso_milliseconds()
    return _pieces(pattern or "%Y-%m-%dT%H:%M:%E3S%z", split)


def _iso_milliseconds() -> Callable[[float], str]:
    current = -1
    prefix = ""

    def render(seconds: float) -> str:
        nonlocal current, prefix
        milliseconds = int(seconds * 1e6 + 0.5) // 1000
        whole = milliseconds // 1000
        if whole != current:
            prefix = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(whole))
            current = whole
        return prefix + _MILLISECONDS[milliseconds % 1000]

    return render


def _pieces(pattern: str, split: Callable[[float], time.struct_time]) -> Callable[[float], str]:
    """Parts that live for a second are strftime patterns; parts below a second are digit counts."""
    parts: list[str | int] = []
    position = 0
    for found in _SPECIFIER.finditer(pattern):
        parts.append(pattern[position : found.start()])
        position = found.end()
        if found["zone"]:
            parts.append("%z")
        elif found["epoch"]:
            parts.append(-1)
        elif found["seconds"]:
            parts.append("%S.")
            parts.append(9 if found["seconds"] == "*" else int(found["seconds"]))
        elif found["other"]:
            parts.append(found[0])
        else:
            parts.append(int(found["digits"] or 9))
    parts.append(pattern[position:])
    current: int | None = None
    made: list[str | int] = []

    def render(seconds: float) -> str:
        nonlocal current, made
        whole, micros = divmod(int(seconds * 1e6 + 0.5), 1_000_000)
        if whole != current:
            moment = split(whole)
            made = [_whole_part(part, moment, whole) for part in parts]
            current = whole
        digits = f"{micros:06d}000"
        return "".join([part if isinstance(part, str) else digits[:part] for part in made])

    return render


def _whole_part(part: str | int, moment: time.struct_time, whole: int) -> str | int:
    if part == -1:
        return str(whole)
    return time.strftime(part, moment) if isinstance(part, str) else part


def start_time(pattern: str, absent: Any, local: bool = False) -> Getter:
    """START_TIME and START_TIME_LOCAL."""
    render = stamp(pattern, local)

    def get(outcome: Outcome) -> Any:
        seconds = outcome.received_at
        return render(seconds) if seconds else absent

    return get


def emit_time(pattern: str, _absent: Any, local: bool = False) -> Getter:
    """EMIT_TIME and EMIT_TIME_LOCAL: when the line is made."""
    render = stamp(pattern, local)
    return lambda _outcome: render(time.time())


def between(start: str, end: str, scale: float = 1e3) -> Callable[[str, Any], Getter]:
    """Operator for the whole units (default: milliseconds) between two points, attributes of the Outcome."""
    first, last = attrgetter(start), attrgetter(end)

    def make(_argument: str, absent: Any) -> Getter:
        def get(outcome: Outcome) -> Any:
            begun, ended = first(outcome), last(outcome)
            return int((ended - begun) * scale + _ROUNDING) if begun and ended >= begun else absent

        return get

    return make


def common_duration(argument: str, absent: Any) -> Getter:
    """COMMON_DURATION(start:end[:ms|us|ns]). Raises ValueError for a name that is not in POINTS."""
    parts = argument.split(":")
    if len(parts) not in (2, 3):
        raise ValueError(f"wants START:END or START:END:PRECISION, got {argument!r}")
    for name in parts[:2]:
        if name not in POINTS:
            raise ValueError(f"unknown point {name!r}, known are {', '.join(POINTS)}")
    precision = parts[2] if len(parts) == 3 else "ms"
    if precision not in _PRECISION:
        raise ValueError(f"unknown precision {precision!r}, known are {', '.join(_PRECISION)}")
    return between(POINTS[parts[0]], POINTS[parts[1]], _PRECISION[precision])("", absent)
