"""Access logs as values (Envoy config.accesslog.v3). The format is compiled in agent/telemetry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class AccessLog:
    """One sink. `format_text` or `format_json`; neither means Envoy's default line. `filter` is a value tree
    of agent/table/access_log_filter (None: every request)."""

    sink: str
    """`file`, `stdout` or `stderr`."""
    path: str = ""
    format_text: str = ""
    format_json: Mapping[str, Any] | None = None
    omit_empty_values: bool = False
    filter: Any = None
    extra: Mapping[str, Any] = field(default_factory=dict)
