"""The admin pages: what an operator, a scraper and meshctl see."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import trio
from envoy.config.bootstrap.v3 import bootstrap_pb2
from google.protobuf import json_format
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from agent.host.admin import AdminPages, Certificates, MetricsPages, Resource, Sources
from agent.host.admin.config_dump import EVERY_TYPE
from agent.host.admin.page import Page
from agent.telemetry.reading import Statistics
from agent.telemetry.series import Recorder
from wire import x509
from wire.xds import CLUSTER, ENDPOINT, LISTENER

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def ask(pages: AdminPages, path: str, method: str = "GET") -> Page:
    return trio.run(pages.respond, method, path, b"")


def packed(type_url: str, values: Mapping[str, Any], version: str = "v1") -> Resource:
    message = json_format.ParseDict({"@type": type_url, **values}, AnyMessage(), descriptor_pool=EVERY_TYPE)
    return Resource(
        str(values.get("name") or values.get("cluster_name")), version, message.SerializeToString()
    )


TLS_CLUSTER = {
    "name": "outbound|9080||reviews",
    "transport_socket": {
        "name": "tls",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            "common_tls_context": {
                "tls_certificates": [
                    {
                        "certificate_chain": {"inline_string": "CHAIN"},
                        "private_key": {"inline_string": "VERY-SECRET"},
                        "password": {"inline_bytes": "VkVSWS1TRUNSRVQ="},
                    },
                    {"private_key": {"filename": "/etc/key.pem"}},
                ]
            },
        },
    },
}


def resources(workload: str) -> dict[str, Sequence[Resource]]:
    if workload not in ("", "default/reviews"):
        return {}
    return {
        CLUSTER: [packed(CLUSTER, TLS_CLUSTER), packed(CLUSTER, {"name": "inbound|9080||"})],
        LISTENER: [
            packed(
                LISTENER,
                {
                    "name": "virtualInbound",
                    "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15006}},
                },
            )
        ],
        ENDPOINT: [packed(ENDPOINT, {"cluster_name": "outbound|9080||reviews"})],
    }


def test_the_dump_has_envoys_sections_and_versions() -> None:
    dump = json.loads(ask(AdminPages(Sources(resources=resources)), "/config_dump?include_eds").body)
    sections = {part["@type"].rpartition(".")[2]: part for part in dump["configs"]}
    assert list(sections) == [
        "ClustersConfigDump",
        "ListenersConfigDump",
        "RoutesConfigDump",
        "EndpointsConfigDump",
        "SecretsConfigDump",
    ]
    first = sections["ClustersConfigDump"]["dynamic_active_clusters"][0]
    assert first["version_info"] == "v1"
    assert first["cluster"]["@type"] == CLUSTER
    assert first["cluster"]["name"] == "outbound|9080||reviews"
    assert sections["ListenersConfigDump"]["dynamic_listeners"][0]["name"] == "virtualInbound"
    without = json.loads(ask(AdminPages(Sources(resources=resources)), "/config_dump").body)
    assert "EndpointsConfigDump" not in str(without)


def test_no_key_or_password_is_ever_shown() -> None:
    body = ask(AdminPages(Sources(resources=resources)), "/config_dump").body
    assert b"VERY-SECRET" not in body
    assert b"VkVSWS1TRUNSRVQ" not in body
    assert b"[redacted]" in body
    assert b"CHAIN" in body
    assert b"/etc/key.pem" in body


def test_the_dump_can_be_narrowed() -> None:
    pages = AdminPages(Sources(resources=resources))
    part = json.loads(ask(pages, "/config_dump?resource=dynamic_active_clusters&name_regex=^inbound").body)
    assert [entry["cluster"]["name"] for entry in part["configs"]] == ["inbound|9080||"]
    assert part["configs"][0]["@type"].endswith("ClustersConfigDump.DynamicActiveCluster")
    assert ask(pages, "/config_dump?resource=no_such").status == 404
    assert b"virtualInbound" not in ask(pages, "/config_dump?workload=default/other").body


def test_a_static_bootstrap_is_dumped_and_its_listeners_listed() -> None:
    bootstrap = json_format.ParseDict(
        {
            "static_resources": {
                "listeners": [
                    {
                        "name": "ingress",
                        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 8080}},
                    }
                ],
                "clusters": [{"name": "web"}],
            }
        },
        bootstrap_pb2.Bootstrap(),
    )

    def given() -> Message:
        return bootstrap

    pages = AdminPages(Sources(bootstrap=given))
    dump = json.loads(ask(pages, "/config_dump").body)
    assert dump["configs"][0]["bootstrap"]["static_resources"]["clusters"] == [{"name": "web"}]
    assert dump["configs"][1]["static_clusters"][0]["cluster"]["name"] == "web"
    assert ask(pages, "/listeners").body == b"ingress::127.0.0.1:8080\n"
    listed = json.loads(ask(pages, "/listeners?format=json").body)
    assert listed["listener_statuses"][0]["local_address"]["socket_address"]["port_value"] == 8080


def host(address: str, active: int, **health: bool) -> dict[str, Any]:
    return {
        "address": {"socket_address": {"address": address, "port_value": 80}},
        "hostname": "",
        "stats": [{"type": "GAUGE", "name": "cx_active", "value": str(active)}],
        "health_status": {"eds_health_status": "HEALTHY", **health},
        "weight": 1,
        "priority": 0,
    }


async def two_workers(what: str) -> list[Any]:
    await trio.lowlevel.checkpoint()
    assert what == "clusters"
    return [
        [{"name": "web", "host_statuses": [host("10.0.0.1", 2), host("::1", 0)]}],
        [
            {"name": "web", "host_statuses": [host("10.0.0.1", 3, failed_outlier_check=True)]},
            {"name": "other", "host_statuses": []},
        ],
    ]


def test_clusters_are_the_sum_of_all_workers() -> None:
    pages = AdminPages(Sources(query=two_workers))
    text = ask(pages, "/clusters").body.decode()
    assert "web::10.0.0.1:80::cx_active::5\n" in text
    assert "web::10.0.0.1:80::health_flags::/failed_outlier_check\n" in text
    assert "web::[::1]:80::health_flags::healthy\n" in text
    assert "other::observability_name::other\n" in text
    found = json.loads(ask(pages, "/clusters?format=json&filter=^web$").body)["cluster_statuses"]
    assert [cluster["name"] for cluster in found] == ["web"]
    assert found[0]["host_statuses"][0]["stats"][0]["value"] == "5"


def counted() -> Statistics:
    recorder = Recorder()
    recorder.slots[recorder.cluster("web").upstream_cx_total] += 7
    recorder.slots[recorder.cluster("web").upstream_cx_active] += 1
    statistics = Statistics()
    statistics.read(recorder.region)
    return statistics


def test_statistics_can_be_filtered_and_take_envoys_formats() -> None:
    pages = AdminPages(Sources(statistics=counted))
    text = ask(pages, "/stats?filter=upstream_cx_(total|active)$").body.decode()
    assert text == "cluster.web.upstream_cx_active: 1\ncluster.web.upstream_cx_total: 7\n"
    assert ask(pages, "/stats?usedonly&type=Gauges").body == b"cluster.web.upstream_cx_active: 1\n"
    names = {
        stat["name"]: stat["value"]
        for stat in json.loads(ask(pages, "/stats?format=json&usedonly").body)["stats"]
    }
    assert names == {"cluster.web.upstream_cx_active": 1, "cluster.web.upstream_cx_total": 7}
    for path in ("/stats/prometheus?usedonly", "/stats?format=prometheus&usedonly"):
        page = ask(pages, path)
        assert page.content_type.startswith("text/plain; version=0.0.4")
        assert b'envoy_cluster_upstream_cx_total{envoy_cluster_name="web"} 7\n' in page.body


@pytest.mark.parametrize("path", ["/stats?filter=(", "/stats?format=xml", "/clusters?filter=["])
def test_a_bad_parameter_is_told(path: str) -> None:
    assert ask(AdminPages(Sources()), path).status == 400


def test_readiness_follows_the_agent_and_the_operator() -> None:
    ready = False
    pages = AdminPages(Sources(ready=lambda: ready))
    assert (ask(pages, "/ready").status, ask(pages, "/ready").body) == (503, b"PRE_INITIALIZING\n")
    ready = True
    assert (ask(pages, "/ready").status, ask(pages, "/ready").body) == (200, b"LIVE\n")
    assert ask(pages, "/healthcheck/fail", "POST").body == b"OK\n"
    assert (ask(pages, "/ready").status, pages.ready) == (503, False)
    ask(pages, "/healthcheck/ok", "POST")
    assert ask(pages, "/ready").status == 200
    assert json.loads(ask(pages, "/server_info").body)["state"] == "LIVE"


def test_what_changes_something_wants_post_and_a_person_on_the_host() -> None:
    done: list[str] = []

    async def drain(query: Mapping[str, str]) -> None:
        await trio.lowlevel.checkpoint()
        done.append(f"drain {dict(query)}")

    pages = AdminPages(Sources(actions={"drain_listeners": drain}, refusal="use the socket"))
    assert ask(pages, "/drain_listeners").status == 405
    for respond in (pages.respond_reading, pages.respond_to_istiod):
        page = trio.run(respond, "POST", "/drain_listeners", b"")
        assert (page.status, page.body) == (403, b"use the socket\n")
    assert trio.run(pages.respond_reading, "POST", "/logging", b"").status == 403
    assert trio.run(pages.respond_to_istiod, "POST", "/logging", b"").status == 200
    assert done == []
    assert ask(pages, "/drain_listeners?graceful", "POST").status == 200
    assert done == ["drain {'graceful': ''}"]
    assert ask(pages, "/quitquitquit", "POST").status == 501


def test_an_unknown_page_is_answered_with_the_list() -> None:
    page = ask(AdminPages(Sources()), "/nope")
    assert page.status == 404
    assert b"/config_dump" in page.body
    assert b"/quitquitquit (POST)" in page.body


def test_certificates_are_described_without_their_keys() -> None:
    root_key, key = x509.new_key(), x509.new_key()
    root = x509.self_signed_root(root_key, ttl=timedelta(days=10), now=NOW)
    leaf = x509.issue(
        key.public_key(),
        ca_cert=root,
        ca_key=root_key,
        ttl=timedelta(days=1, hours=1),
        now=NOW,
        uri_sans=["spiffe://cluster.local/ns/default/sa/reviews"],
    )
    held = [Certificates("default/reviews", x509.to_pem([leaf, root]), x509.to_pem(root))]
    pages = AdminPages(Sources(certificates=lambda: held), clock=NOW.timestamp)
    (found,) = json.loads(ask(pages, "/certs").body)["certificates"]
    (chain,) = found["cert_chain"]
    assert chain["subject_alt_names"] == [{"uri": "spiffe://cluster.local/ns/default/sa/reviews"}]
    assert chain["days_until_expiration"] == "1"
    assert chain["expiration_time"] == "2026-01-02T01:00:00Z"
    assert found["ca_cert"][0]["days_until_expiration"] == "10"


def test_the_metrics_port_serves_metrics_and_nothing_else() -> None:
    pages = MetricsPages(counted, lambda: True)
    for path in ("/metrics", "/stats/prometheus", "/metrics?x=1"):
        page = trio.run(pages.respond, "GET", path, b"")
        assert b"envoy_cluster_upstream_cx_total" in page.body
    assert trio.run(pages.respond, "GET", "/config_dump", b"").status == 404
    assert trio.run(pages.respond, "POST", "/metrics", b"").status == 405


def test_the_tasks_of_the_process_are_counted_by_name() -> None:
    async def waiting() -> None:
        await trio.sleep_forever()

    async def counted() -> dict[str, int]:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(waiting)
            page = await AdminPages(Sources()).respond("GET", "/memory?tasks", b"")
            nursery.cancel_scope.cancel()
        return dict(json.loads(page.body)["tasks"])

    found = trio.run(counted)
    assert [count for name, count in found.items() if name.endswith("waiting")] == [3]
