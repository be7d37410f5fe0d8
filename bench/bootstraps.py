"""Envoy bootstraps of the benchmarks: one hop, and two hops with mutual TLS between them.

Rule: both proxies get the same text, ports and log paths apart. Features are switched on in all hops.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench.certificates import CLIENT, SERVER

_TYPE = "type.googleapis.com/envoy.extensions."


@dataclass(frozen=True)
class Features:
    """What is switched on in every hop."""

    access_log: bool = False
    rbac: bool = False
    resilience: bool = False
    """Retries, circuit breakers, outlier detection."""


BARE = Features()
FULL = Features(access_log=True, rbac=True, resilience=True)
NO_RBAC = Features(access_log=True, resilience=True)


@dataclass(frozen=True)
class Hop:
    """One proxy process: where it listens and what it forwards to."""

    name: str
    port: int
    admin_port: int
    upstream_port: int
    folder: Path
    """Certificates (made by bench.certificates) and the access log."""
    mode: str = "http"
    """`http` or `tcp`."""
    tls_in: bool = False
    tls_out: bool = False
    features: Features = field(default=BARE)


def bootstrap(hop: Hop) -> str:
    """The hop's bootstrap file as YAML."""
    chain: dict[str, Any] = {"filters": [_tcp() if hop.mode == "tcp" else _manager(hop)]}
    if hop.tls_in:
        chain["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": _TYPE + "transport_sockets.tls.v3.DownstreamTlsContext",
                "require_client_certificate": True,
                "common_tls_context": _tls(hop.folder, "server", CLIENT, alpn=hop.mode == "http"),
            },
        }
    return yaml.safe_dump(
        {
            "node": {"id": hop.name, "cluster": "bench"},
            "admin": {"address": _address(hop.admin_port)},
            "static_resources": {
                "listeners": [
                    {"name": "ingress", "address": _address(hop.port), "filter_chains": [chain]},
                ],
                "clusters": [_cluster(hop)],
            },
        },
        sort_keys=False,
    )


def _address(port: int) -> dict[str, Any]:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


def _access_log(hop: Hop) -> dict[str, Any]:
    if not hop.features.access_log:
        return {}
    return {
        "access_log": [
            {
                "name": "envoy.access_loggers.file",
                "typed_config": {
                    "@type": _TYPE + "access_loggers.file.v3.FileAccessLog",
                    "path": str(hop.folder / f"{hop.name}-access.log"),
                },
            }
        ]
    }


def _manager(hop: Hop) -> dict[str, Any]:
    action: dict[str, Any] = {"cluster": "next", "timeout": "15s"}
    if hop.features.resilience:
        action["retry_policy"] = {
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
            "num_retries": 2,
            "retriable_status_codes": [503],
            "host_selection_retry_max_attempts": 5,
        }
    filters: list[dict[str, Any]] = []
    if hop.features.rbac:
        filters.append(_rbac(hop))
    filters.append(
        {
            "name": "envoy.filters.http.router",
            "typed_config": {"@type": _TYPE + "filters.http.router.v3.Router"},
        }
    )
    return {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": _TYPE + "filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": "ingress",
            "codec_type": "HTTP1",
            "use_remote_address": False,
            "route_config": {
                "name": "local",
                "virtual_hosts": [
                    {
                        "name": "all",
                        "domains": ["*"],
                        "routes": [{"match": {"prefix": "/"}, "route": action}],
                    }
                ],
            },
            "http_filters": filters,
            **_access_log(hop),
        },
    }


def _rbac(hop: Hop) -> dict[str, Any]:
    """As a mesh has it: on the server's side by the caller's identity, on the client's by the path."""
    principal: dict[str, Any] = {"any": True}
    if hop.tls_in:
        principal = {"authenticated": {"principal_name": {"exact": CLIENT}}}
    permission = {
        "and_rules": {
            "rules": [
                {
                    "or_rules": {
                        "rules": [{"header": {"name": ":method", "string_match": {"exact": "GET"}}}],
                    }
                },
                {"or_rules": {"rules": [{"url_path": {"path": {"prefix": "/"}}}]}},
            ]
        }
    }
    return {
        "name": "envoy.filters.http.rbac",
        "typed_config": {
            "@type": _TYPE + "filters.http.rbac.v3.RBAC",
            "rules": {
                "action": "ALLOW",
                "policies": {"bench": {"permissions": [permission], "principals": [principal]}},
            },
        },
    }


def _tcp() -> dict[str, Any]:
    return {
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": _TYPE + "filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": "ingress",
            "cluster": "next",
        },
    }


def _cluster(hop: Hop) -> dict[str, Any]:
    cluster: dict[str, Any] = {
        "name": "next",
        "type": "STATIC",
        "connect_timeout": "10s",
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {
            "cluster_name": "next",
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": _address(hop.upstream_port)}}]},
            ],
        },
    }
    if hop.features.resilience:
        cluster["circuit_breakers"] = {
            "thresholds": [
                {
                    "max_connections": 10000,
                    "max_pending_requests": 10000,
                    "max_requests": 10000,
                    "max_retries": 100,
                }
            ]
        }
        cluster["outlier_detection"] = {"consecutive_5xx": 5, "interval": "10s", "base_ejection_time": "30s"}
    if hop.tls_out:
        cluster["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                "@type": _TYPE + "transport_sockets.tls.v3.UpstreamTlsContext",
                "sni": "server.bench",
                "common_tls_context": _tls(hop.folder, "client", SERVER, alpn=hop.mode == "http"),
            },
        }
    return cluster


def _tls(folder: Path, name: str, peer: str, *, alpn: bool) -> dict[str, Any]:
    context: dict[str, Any] = {
        "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
        "tls_certificates": [
            {
                "certificate_chain": {"filename": str(folder / f"{name}.pem")},
                "private_key": {"filename": str(folder / f"{name}.key")},
            }
        ],
        "validation_context": {
            "trusted_ca": {"filename": str(folder / "root.pem")},
            "match_typed_subject_alt_names": [{"san_type": "URI", "matcher": {"exact": peer}}],
        },
    }
    if alpn:
        context["alpn_protocols"] = ["http/1.1"]
    return context
