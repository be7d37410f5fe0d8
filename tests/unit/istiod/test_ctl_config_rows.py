"""proxy-config's tables, from dumps as a real Envoy writes them."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from istiod.ctl import config_rows
from istiod.ctl.failure import CommandError
from istiod.ctl.proxies import split_name
from istiod.ctl.tokens import seconds_of

CONFIG = "/apis/networking.istio.io/v1/namespaces/default/"
NETWORK = "type.googleapis.com/envoy.extensions.filters.network."

DUMP = {
    "configs": [
        {"@type": "type.googleapis.com/envoy.admin.v3.BootstrapConfigDump"},
        {
            "@type": "type.googleapis.com/envoy.admin.v3.ClustersConfigDump",
            "static_clusters": [{"cluster": {"name": "xds-grpc", "type": "STRICT_DNS"}}],
            "dynamic_active_clusters": [
                {
                    "version_info": "a",
                    "cluster": {
                        "name": "outbound|9080|v1|reviews.default.svc.cluster.local",
                        "type": "EDS",
                        "metadata": {
                            "filter_metadata": {"istio": {"config": CONFIG + "destination-rule/reviews"}}
                        },
                    },
                }
            ],
        },
        {
            "@type": "type.googleapis.com/envoy.admin.v3.ListenersConfigDump",
            "dynamic_listeners": [
                {
                    "name": "virtualOutbound",
                    "active_state": {
                        "listener": {
                            "name": "virtualOutbound",
                            "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15001}},
                            "additional_addresses": [
                                {"address": {"socket_address": {"address": "::", "port_value": 15001}}}
                            ],
                            "filter_chains": [
                                {
                                    "filters": [
                                        {
                                            "typed_config": {
                                                "@type": NETWORK + "tcp_proxy.v3.TcpProxy",
                                                "cluster": "PassthroughCluster",
                                            }
                                        }
                                    ]
                                }
                            ],
                        }
                    },
                },
                {
                    "name": "0.0.0.0_9080",
                    "active_state": {
                        "listener": {
                            "address": {"socket_address": {"address": "0.0.0.0", "port_value": 9080}},
                            "filter_chains": [
                                {
                                    "filter_chain_match": {
                                        "transport_protocol": "raw_buffer",
                                        "application_protocols": ["http/1.1", "h2c"],
                                    },
                                    "filters": [
                                        {
                                            "typed_config": {
                                                "@type": NETWORK
                                                + "http_connection_manager.v3.HttpConnectionManager",
                                                "rds": {"route_config_name": "9080"},
                                            }
                                        }
                                    ],
                                }
                            ],
                        }
                    },
                },
                {"name": "warming", "warming_state": {}},
            ],
        },
        {
            "@type": "type.googleapis.com/envoy.admin.v3.RoutesConfigDump",
            "dynamic_route_configs": [
                {
                    "route_config": {
                        "name": "9080",
                        "virtual_hosts": [
                            {
                                "name": "reviews.default.svc.cluster.local:9080",
                                "domains": ["reviews.default.svc.cluster.local", "reviews", "240.240.0.1"],
                                "routes": [
                                    {
                                        "match": {"prefix": "/", "headers": [{"name": "end-user"}]},
                                        "route": {"cluster": "x"},
                                        "metadata": {
                                            "filter_metadata": {
                                                "istio": {"config": CONFIG + "virtual-service/reviews"}
                                            }
                                        },
                                    },
                                    {"match": {"path": "/x"}, "direct_response": {"status": 403}},
                                ],
                            }
                        ],
                    }
                }
            ],
        },
    ]
}


def test_clusters_are_shown_by_service_port_and_subset_with_their_destination_rule() -> None:
    assert config_rows.cluster_rows(config_rows.clusters(DUMP)) == [
        ("reviews.default.svc.cluster.local", "9080", "v1", "outbound", "EDS", "reviews.default"),
        ("xds-grpc", "-", "-", "-", "STRICT_DNS", ""),
    ]


def test_listeners_are_shown_by_filter_chain_in_order_of_port() -> None:
    assert config_rows.listener_rows(config_rows.listeners(DUMP)) == [
        ("0.0.0.0", "9080", "Trans: raw_buffer; App: http/1.1,h2c", "Route: 9080"),
        ("0.0.0.0,::", "15001", "ALL", "Cluster: PassthroughCluster"),
    ]


def test_routes_are_shown_with_match_domains_and_virtual_service() -> None:
    assert config_rows.route_rows(config_rows.routes(DUMP)) == [
        (
            "9080",
            "reviews.default.svc.cluster.local:9080",
            "reviews.default.svc.cluster.local, reviews + 1 more...",
            "/* [end-user]",
            "reviews.default",
        ),
        (
            "9080",
            "reviews.default.svc.cluster.local:9080",
            "reviews.default.svc.cluster.local, reviews + 1 more...",
            "/x",
            "403",
        ),
    ]


def test_endpoints_are_shown_with_health_as_the_proxy_sees_it() -> None:
    pages = {
        "cluster_statuses": [
            {
                "name": "outbound|9080||reviews.default.svc.cluster.local",
                "host_statuses": [
                    {
                        "address": {"socket_address": {"address": "10.0.0.2", "port_value": 9080}},
                        "health_status": {"eds_health_status": "HEALTHY", "failed_outlier_check": True},
                    },
                    {
                        "address": {"socket_address": {"address": "fd00::2", "port_value": 9080}},
                        "health_status": {"eds_health_status": "UNHEALTHY"},
                    },
                ],
            }
        ]
    }
    cluster = "outbound|9080||reviews.default.svc.cluster.local"
    assert config_rows.endpoint_rows_from_clusters(pages) == [
        ("10.0.0.2:9080", "HEALTHY", "FAILED", cluster),
        ("[fd00::2]:9080", "UNHEALTHY", "OK", cluster),
    ]


def test_certificates_are_shown_as_valid_until_they_end() -> None:
    entry = {
        "serial_number": "1f",
        "valid_from": "2026-11-22T00:00:00Z",
        "expiration_time": "2026-11-23T00:00:00Z",
    }
    page = {"certificates": [{"cert_chain": [entry], "ca_cert": [{"serial_number": "01"}]}]}
    shown = {
        hour: config_rows.secret_rows(page, datetime(2026, 11, day, hour, tzinfo=UTC))
        for day, hour in ((22, 23), (23, 1))
    }
    assert [row[3] for row in shown[23]] == ["false", "true"], "the root says no dates"
    assert [row[3] for row in shown[1]] == ["false", "false"]
    assert shown[23][1][:3] == ("default", "Cert Chain", "ACTIVE")


def test_an_empty_dump_is_no_rows() -> None:
    assert config_rows.listener_rows(config_rows.listeners({})) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [("default/reviews-a", ("default", "reviews-a")), ("reviews-a.default", ("default", "reviews-a"))],
)
def test_a_proxy_is_named_by_namespace_and_name_or_as_istioctl_does(
    text: str, expected: tuple[str, str]
) -> None:
    assert split_name(text) == expected


@pytest.mark.parametrize("text", ["reviews", "/x", "a/b/c", ""])
def test_what_names_no_proxy_is_refused(text: str) -> None:
    with pytest.raises(CommandError):
        split_name(text)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("1h", 3600), ("1h30m", 5400), ("7d", 604800)])
def test_durations_are_read_as_kubectl_writes_them(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds
