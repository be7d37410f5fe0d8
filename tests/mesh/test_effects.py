"""Fields that were accepted once and did nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from envoy.config.core.v3 import base_pb2

from agent.http.request import PeerIdentity
from agent.table.listener import TcpProxy
from agent.worker.certificates import compile_judge
from istiod.xds.node import NodeError, parse_node
from registry.model import Port
from tests.mesh.bookinfo import bookinfo
from tests.mesh.simulation import Mesh
from tests.unit.istiod.test_compile_envoy import accepted

NETWORKING = "apiVersion: networking.istio.io/v1\n"
PAGE = "productpage-v1"


def rule(spec: str) -> str:
    return f"{NETWORKING}kind: DestinationRule\nmetadata: {{name: r}}\nspec: {{{spec}}}"


def with_database(*documents: str) -> Mesh:
    mesh = bookinfo()
    for number in range(1, 5):
        mesh.add(f"db-{number}", service="db", port=Port("mysql", 3306), address=f"10.1.0.{number}")
    for text in documents:
        mesh.apply(text)
    return mesh


def proxies(mesh: Mesh) -> list[TcpProxy]:
    """The TCP proxies towards db."""
    listeners = mesh.proxy(PAGE).table.listeners.values()
    chains = [chain for one in listeners for chain in (*one.chains, one.default_chain) if chain is not None]
    terminals = [chain.terminal for chain in chains if isinstance(chain.terminal, TcpProxy)]
    return [one for one in terminals if "|3306|" in one.clusters[0].cluster]


ROUTE = (
    f"{NETWORKING}kind: VirtualService\nmetadata: {{name: v}}\n"
    "spec: {hosts: [db], tcp: [{match: [{port: 3306}], route: [{destination: {host: db}}]}]}"
)


@pytest.mark.parametrize("documents", [(), (ROUTE,)], ids=["plain", "routed"])
def test_connections_of_one_client_go_to_one_host(documents: tuple[str, ...], tmp_path: Path) -> None:
    source = "host: db, trafficPolicy: {loadBalancer: {consistentHash: {useSourceIp: true}}}"
    mesh = with_database(rule(source), *documents)
    assert [one.hash_source_ip for one in proxies(mesh)] == [True]
    assert [one.hash_source_ip for one in proxies(with_database(*documents))] == [False]
    accepted(mesh.compiled(PAGE), tmp_path)


@pytest.mark.parametrize("documents", [(), (ROUTE,)], ids=["plain", "routed"])
def test_opaque_connections_end_with_their_age(documents: tuple[str, ...]) -> None:
    mesh = with_database(
        rule(
            "host: db, trafficPolicy: {connectionPool: {tcp: {maxConnectionDuration: 1h, idleTimeout: 5m}}}"
        ),
        *documents,
    )
    assert [(one.max_downstream_connection_duration, one.idle_timeout) for one in proxies(mesh)] == [
        (3600.0, 300.0)
    ]


INGRESS = (
    NETWORKING
    + "kind: Sidecar\nmetadata: {{name: s}}\nspec: {{workloadSelector: {{labels: {{app: details}}}}, "
    "ingress: [{{port: {{number: 9080, name: http, protocol: HTTP{target}}}}}]}}"
)


def test_an_ingress_port_leads_to_its_target_port(tmp_path: Path) -> None:
    mesh = bookinfo()
    mesh.apply(INGRESS.format(target=", targetPort: 8888"))
    decision = mesh.call(PAGE, "http://details:9080/")
    assert (decision.workload, decision.inbound.endpoint) == ("details-v1", "10.0.0.2:8888")
    accepted(mesh.compiled("details-v1"), tmp_path)


def test_an_ingress_port_without_target_leads_to_itself() -> None:
    mesh = bookinfo()
    mesh.apply(INGRESS.format(target=""))
    assert mesh.call(PAGE, "http://details:9080/").inbound.endpoint == "10.0.0.2:9080"


def test_applications_are_called_on_loopback_where_the_mesh_says_so() -> None:
    mesh = bookinfo(inboundTrafficPolicy={"mode": "LOCALHOST"})
    assert mesh.call(PAGE, "http://details:9080/").inbound.endpoint == "127.0.0.1:9080"
    assert bookinfo().call(PAGE, "http://details:9080/").inbound.endpoint == "10.0.0.2:9080"


def test_a_gateway_is_not_served_as_a_sidecar() -> None:
    with pytest.raises(NodeError, match="type 'router' is not served by this version"):
        parse_node(base_pb2.Node(id="router~10.0.0.1~gw.default~default.svc.cluster.local"))


WILD = (
    f"{NETWORKING}kind: ServiceEntry\nmetadata: {{name: wild}}\nspec: {{hosts: ['*.wild.example.com'], resolution: DNS, "
    "ports: [{number: 80, name: http, protocol: HTTP, targetPort: 443}], endpoints: [{address: lb.example.com}]}"
)


@pytest.mark.parametrize(
    ("settings", "good", "bad"),
    [
        (
            "mode: SIMPLE",
            ("a.wild.example.com", "*.wild.example.com"),
            ("a.example.com", "wild.example.com.evil", "evil"),
        ),
        (
            "mode: SIMPLE, sni: b.wild.example.com",
            ("b.wild.example.com", "*.wild.example.com"),
            ("a.wild.example.com",),
        ),
        (
            "mode: SIMPLE, subjectAltNames: [lb.example.com]",
            ("lb.example.com", "*.example.com"),
            ("a.wild.example.com",),
        ),
    ],
)
def test_tls_towards_a_wildcard_host_asks_for_a_name_that_it_covers(
    settings: str, good: tuple[str, ...], bad: tuple[str, ...], tmp_path: Path
) -> None:
    mesh = bookinfo()
    mesh.apply(WILD)
    mesh.apply(rule(f"host: '*.wild.example.com', trafficPolicy: {{tls: {{{settings}}}}}"))
    tls = mesh.proxy(PAGE).table.clusters["outbound|80||*.wild.example.com"].tls
    assert tls is not None
    assert tls.validation is not None
    judge = compile_judge(tls.validation.sans)
    assert judge is not None
    assert all(judge(PeerIdentity(dns_sans=(name,))) for name in good)
    assert not any(judge(PeerIdentity(dns_sans=(name,))) for name in bad)
    accepted(mesh.compiled(PAGE), tmp_path)


@pytest.mark.parametrize(
    ("settings", "asked", "judged"),
    [
        ("mode: SIMPLE", True, True),
        ("mode: SIMPLE, sni: b.wild.example.com", False, False),
        ("mode: SIMPLE, subjectAltNames: [lb.example.com]", True, False),
        ("mode: SIMPLE, insecureSkipVerify: true", True, False),
    ],
)
def test_a_wildcard_host_is_asked_for_the_name_of_each_request(
    settings: str, asked: bool, judged: bool
) -> None:
    mesh = bookinfo()
    mesh.apply(WILD)
    mesh.apply(rule(f"host: '*.wild.example.com', trafficPolicy: {{tls: {{{settings}}}}}"))
    cluster = mesh.proxy(PAGE).table.clusters["outbound|80||*.wild.example.com"]
    assert (cluster.auto_sni, cluster.auto_san_validation) == (asked, judged)
