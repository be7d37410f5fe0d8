"""Envoy bootstraps from a case file's short form: one listener with a connection manager, clusters for the backends.

A case file says only what its cases are about (`hcm`, `http_filters`, `virtual_hosts`, `clusters`, `listeners`);
the rest is the same for all. Both proxies get the same text, ports apart.
"""

from __future__ import annotations

import copy
import re
from typing import Any

import yaml

_TYPE = "type.googleapis.com/envoy.extensions."
_ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": _TYPE + "filters.http.router.v3.Router"},
}


# Everything of a request's outcome that both proxies must tell alike; `test_cases` compares the lines of every call.
_LOG_FORMAT = (
    "%REQ(:METHOD)% %REQ(:PATH)% %PROTOCOL% %RESPONSE_CODE% flags=%RESPONSE_FLAGS% details=%RESPONSE_CODE_DETAILS% "
    "received=%BYTES_RECEIVED% sent=%BYTES_SENT% cluster=%UPSTREAM_CLUSTER% "
    "attempts=%UPSTREAM_REQUEST_ATTEMPT_COUNT% route=%ROUTE_NAME% failure=%UPSTREAM_TRANSPORT_FAILURE_REASON% "
    "termination=%CONNECTION_TERMINATION_DETAILS% upstream=%UPSTREAM_HOST%\n"
)
_LOG = {
    "name": "envoy.access_loggers.file",
    "typed_config": {
        "@type": _TYPE + "access_loggers.file.v3.FileAccessLog",
        "path": "@{folder}/@{kind}.access",
        "log_format": {"text_format_source": {"inline_string": _LOG_FORMAT}},
    },
}


def merge(under: Any, over: Any) -> Any:
    """Deep merge; what `over` names wins, null removes."""
    if not isinstance(under, dict) or not isinstance(over, dict):
        return copy.deepcopy(over)
    merged = dict(under)
    for key, value in over.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = merge(under.get(key), value)
    return merged


def manager(spec: dict[str, Any]) -> dict[str, Any]:
    """The connection manager of one listener."""
    filters = [
        {"name": name, "typed_config": {"@type": _TYPE + config.pop("type"), **config}}
        for item in copy.deepcopy(spec.get("http_filters", []))
        for name, config in item.items()
    ]
    under = {
        "@type": _TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "codec_type": "HTTP1",
        "access_log": [_LOG],
        "route_config": {
            "name": "local",
            "virtual_hosts": spec.get("virtual_hosts", []),
            **spec.get("route_config", {}),
        },
        "http_filters": [*filters, spec.get("router", _ROUTER)],
    }
    return merge(under, spec.get("hcm", {}))  # type: ignore[no-any-return]


def listener(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """One listener on loopback; its port is the placeholder of its name."""
    if "filters" in spec:
        filters = spec["filters"]
    else:
        filters = [
            *spec.get("network_filters", []),
            {"name": "envoy.filters.network.http_connection_manager", "typed_config": manager(spec)},
        ]
    under = {
        "name": name,
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": f"@{{{name}}}"}},
        "filter_chains": [{"filters": filters, **spec.get("chain", {})}],
    }
    return merge(under, spec.get("listener", {}))  # type: ignore[no-any-return]


def cluster(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """A static cluster; `backends` names the backends behind it (default: the one of its own name)."""
    spec = dict(spec)
    backends = spec.pop("backends", [name])
    under = {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [
                {
                    "lb_endpoints": [
                        {
                            "endpoint": {
                                "address": {
                                    "socket_address": {
                                        "address": "127.0.0.1",
                                        "port_value": f"@{{{backend}}}",
                                    }
                                }
                            }
                        }
                        for backend in backends
                    ]
                }
            ],
        },
    }
    return merge(under, spec)  # type: ignore[no-any-return]


def template(case_file: dict[str, Any]) -> tuple[str, list[str]]:
    """The bootstrap with `@{name}` placeholders, and the names of its listeners."""
    listeners = case_file.get("listeners") or {"main": case_file}
    clusters = {"a": {}, "b": {}, "dead": {}, **case_file.get("clusters", {})}
    tree = {
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": "@{admin}"}}},
        "static_resources": {
            "listeners": [listener(name, spec) for name, spec in listeners.items()],
            "clusters": [cluster(name, spec or {}) for name, spec in clusters.items()],
        },
    }
    text = yaml.safe_dump(tree, sort_keys=False)
    # A port is a number in the schema: placeholders lose the quotes that YAML gave them.
    return re.sub(r"'(@\{\w+\})'", r"\1", text), list(listeners)
