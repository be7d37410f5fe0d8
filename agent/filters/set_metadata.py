"""Fixed dynamic metadata (envoy.filters.http.set_metadata)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from agent.filters.chain import Placed
from agent.filters.step import RequestStep, Steps
from agent.http.request import RequestContext
from agent.table.filter_config import SetMetadata


def compile(placed: Placed) -> Steps | None:
    """Steps for a place in a chain; None where nothing is set."""
    config: SetMetadata = placed.config
    if not config.entries:
        return None

    def set_metadata(ctx: RequestContext) -> None:
        if ctx.dynamic_metadata is None:
            ctx.dynamic_metadata = {}
        for namespace, tree, overwrite in config.entries:
            present = ctx.dynamic_metadata.get(namespace)
            if present is None:
                ctx.dynamic_metadata[namespace] = dict(tree)
            elif overwrite:
                ctx.dynamic_metadata[namespace] = merge(present, tree)

    step: RequestStep = set_metadata
    return Steps((step,))


def merge(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """The second tree over the first: scalars replaced, lists appended, mappings merged."""
    merged = dict(first)
    for key, value in second.items():
        before = merged.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            merged[key] = merge(before, value)
        elif isinstance(before, list) and isinstance(value, list):
            merged[key] = [*before, *value]
        else:
            merged[key] = value
    return merged
