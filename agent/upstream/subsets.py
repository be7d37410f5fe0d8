"""Which hosts a request may go to by metadata (Envoy lb_subset_config).

Rule: a request that asks for exactly the keys of a selector, with values that some host has, gets that subset; every
other request, also one that asks for nothing, gets what the fallback says. Pure; asked once for each distinct demand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agent.table.cluster import Subsets, SubsetSelector
from agent.upstream.host import Host


def members(config: Subsets, hosts: Sequence[Host], wanted: Mapping[str, Any]) -> list[Host]:
    """The hosts for a request that asks for these values; none where nothing falls back."""
    keys = tuple(sorted(wanted))
    selector = next((selector for selector in config.selectors if selector.keys == keys), None)
    if selector is not None and keys:
        found = _with(config, hosts, wanted)
        if found:
            return found
    return _fallback(config, selector, hosts, wanted)


def _fallback(
    config: Subsets, selector: SubsetSelector | None, hosts: Sequence[Host], wanted: Mapping[str, Any]
) -> list[Host]:
    policy = config.fallback
    if selector is not None and selector.fallback:
        policy = selector.fallback
        if policy == "keys":
            return members(config, hosts, {key: wanted[key] for key in selector.fallback_keys})
    if policy == "any":
        return list(hosts)
    if policy == "default":
        found = _with(config, hosts, config.default)
        if found or not config.panic_any:
            return found
        return list(hosts)
    return []


def _with(config: Subsets, hosts: Sequence[Host], wanted: Mapping[str, Any]) -> list[Host]:
    return [
        host
        for host in hosts
        if all(
            _has(host.endpoint.metadata.get("envoy.lb", {}).get(name), value, config.list_as_any)
            for name, value in wanted.items()
        )
    ]


def _has(own: Any, value: Any, list_as_any: bool) -> bool:
    return own == value or (list_as_any and isinstance(own, list | tuple) and value in own)
