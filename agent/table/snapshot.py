"""The table: everything the data plane knows, immutable, swapped whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from agent.table.cluster import Assignment, Cluster
from agent.table.listener import Listener
from agent.table.route import RouteConfiguration
from agent.table.tls import Secret

_NONE: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Table:
    """One consistent configuration. `version` is for people: a content hash or `bootstrap`."""

    listeners: Mapping[str, Listener] = field(default_factory=lambda: _NONE)
    routes: Mapping[str, RouteConfiguration] = field(default_factory=lambda: _NONE)
    """RDS configurations by name."""
    clusters: Mapping[str, Cluster] = field(default_factory=lambda: _NONE)
    assignments: Mapping[str, Assignment] = field(default_factory=lambda: _NONE)
    """EDS assignments by service name."""
    secrets: Mapping[str, Secret] = field(default_factory=lambda: _NONE)
    version: str = ""
