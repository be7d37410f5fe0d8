"""typed_per_filter_config of routes, virtual hosts and destinations."""

from __future__ import annotations

from agent.table.decode.message import Reader
from agent.table.route import FilterOverride


def overrides(reader: Reader) -> dict[str, FilterOverride]:
    """Filter name to what this level says about it. Not chained to filters here: a name without filter has
    no effect."""
    from agent.table.decode.http_filters import PER_ROUTE

    found: dict[str, FilterOverride] = {}
    for name, entry in reader.entries("typed_per_filter_config"):
        inner = entry.unpacked()
        disabled = False
        if inner.type == "envoy.config.route.v3.FilterConfig":
            with inner as wrapper:
                disabled = wrapper.boolean("disabled")
                wrapper.without_effect("is_optional")  # unknown filters are refused either way
                config = wrapper.typed("config")
            if config is None:
                found[name] = FilterOverride(None, disabled)
                continue
            inner = config
        if inner.type not in PER_ROUTE:
            inner.fail("", f"unsupported type {inner.type}")
        found[name] = FilterOverride(PER_ROUTE[inner.type](inner), disabled)
    return found
