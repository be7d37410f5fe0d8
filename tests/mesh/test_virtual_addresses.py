"""Calls never end at a virtual address: whatever authority, name or port a caller uses, they arrive or are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.model import Port
from tests.mesh.bookinfo import bookinfo
from tests.mesh.simulation import Decision, Mesh
from tests.unit.istiod.test_compile_envoy import accepted

NETWORKING = "apiVersion: networking.istio.io/v1\n"
PAGE = "productpage-v1"
RULE = f"{NETWORKING}kind: DestinationRule\nmetadata: {{name: r}}\nspec: "


def large(**config: object) -> Mesh:
    """Bookinfo, a service with a sniffed port, one that is opaque, and an entry with an address of the mesh's."""
    mesh = bookinfo(**config)
    mesh.add("sniffed-1", service="sniffed", port=Port("", 7000))
    mesh.add("db-1", service="db", port=Port("mysql", 3306))
    mesh.apply(
        f"{NETWORKING}kind: ServiceEntry\nmetadata: {{name: partner}}\n"
        "spec: {hosts: [api.partner.example], resolution: DNS, ports: [{number: 9080, name: http, protocol: HTTP}]}"
    )
    return mesh


def nowhere(decision: Decision) -> bool:
    """Nothing was connected to."""
    return not decision.workload and (decision.status == 503 or bool(decision.refused))


def test_a_foreign_authority_arrives_at_the_service_whose_address_was_called() -> None:
    mesh = large()
    decision = mesh.call(PAGE, "http://details:9080/x", host="shop.example.com")
    assert (decision.workload, decision.mtls, decision.status) == ("details-v1", True, 200)
    assert decision.received is not None
    assert decision.received.authority == b"shop.example.com"
    assert mesh.call(PAGE, "http://ratings:9080/", host="shop.example.com:80").workload == "ratings-v1"
    assert (
        mesh.call(PAGE, "http://api.partner.example:9080/", host="x").workload == "api.partner.example:9080"
    )


def test_an_authority_of_the_mesh_still_decides() -> None:
    assert large().call(PAGE, "http://details:9080/", host="ratings").workload == "ratings-v1"


def test_a_foreign_authority_follows_the_rules_of_a_sniffed_service() -> None:
    mesh = large()
    mesh.apply(
        f"{NETWORKING}kind: VirtualService\nmetadata: {{name: sniffed}}\n"
        "spec: {hosts: [sniffed], http: [{timeout: 3s, route: [{destination: {host: sniffed}}]}]}"
    )
    decision = mesh.call(PAGE, "http://sniffed:7000/", host="shop.example.com")
    assert (decision.workload, decision.outbound.timeout) == ("sniffed-1", 3.0)


@pytest.mark.parametrize("name", ["details.default.svc.cluster.local.", "details", "details.default"])
def test_a_name_with_a_final_dot_has_the_rules_of_the_name(name: str) -> None:
    mesh = large()
    mesh.apply(
        f"{NETWORKING}kind: VirtualService\nmetadata: {{name: details}}\n"
        "spec: {hosts: [details], http: [{timeout: 3s, route: [{destination: {host: details}}]}]}"
    )
    decision = mesh.call(PAGE, "http://details:9080/", host=name)
    assert (decision.workload, decision.outbound.timeout) == ("details-v1", 3.0)


def test_a_host_that_only_a_route_has_may_end_with_a_dot() -> None:
    mesh = large()
    mesh.add("web-1", service="web", port=80)
    mesh.apply(
        f"{NETWORKING}kind: VirtualService\nmetadata: {{name: front}}\n"
        "spec: {hosts: [front.example], http: [{route: [{destination: {host: details, port: {number: 9080}}}]}]}"
    )
    for name in ("front.example", "front.example."):
        assert (
            mesh.call(PAGE, "http://front.example/", address="203.0.113.9", host=name).workload
            == "details-v1"
        )


@pytest.mark.parametrize(
    "url", ["tcp://details:9999", "http://details:9999/", "https://details:9443", "tcp://details:9080"]
)
def test_a_port_that_the_service_does_not_have_is_refused_at_once(url: str) -> None:
    assert nowhere(large().call(PAGE, url))


def test_a_port_that_only_others_have_is_refused_at_once() -> None:
    mesh = large()
    # 9080 is HTTP of the others, 3306 opaque of db alone.
    assert nowhere(mesh.call(PAGE, "http://sniffed:9080/"))
    assert nowhere(mesh.call(PAGE, "http://sniffed:9080/", host="shop.example.com"))
    assert nowhere(mesh.call(PAGE, "tcp://details:3306"))


def test_addresses_that_exist_are_passed_on_as_before() -> None:
    mesh = large()
    for url in ("http://www.example.com:9080/", "tcp://www.example.com:9999", "tcp://www.example.com:9080"):
        assert mesh.call(PAGE, url, address="203.0.113.80").outbound.cluster == "PassthroughCluster"


def test_with_the_registry_alone_a_foreign_authority_is_blocked() -> None:
    mesh = large(outboundTrafficPolicy={"mode": "REGISTRY_ONLY"})
    assert mesh.call(PAGE, "http://details:9080/", host="shop.example.com").status == 502
    assert mesh.call(PAGE, "http://details:9080/").workload == "details-v1"


@pytest.mark.parametrize("host", ["details", "db"])
def test_passing_through_is_no_way_to_balance_a_virtual_address(host: str) -> None:
    mesh = large()
    mesh.apply(RULE + f"{{host: {host}, trafficPolicy: {{loadBalancer: {{simple: PASSTHROUGH}}}}}}")
    url = {"details": "http://details:9080/", "db": "tcp://db:3306"}[host]
    assert mesh.call(PAGE, url).workload.startswith(host)


def test_passing_through_keeps_an_address_that_exists() -> None:
    mesh = large()
    mesh.apply(
        f"{NETWORKING}kind: ServiceEntry\nmetadata: {{name: real}}\nspec: {{hosts: [real.example], addresses: [192.0.2.5],"
        " resolution: STATIC, ports: [{number: 9080, name: http, protocol: HTTP}], endpoints: [{address: 192.0.2.6}]}"
    )
    mesh.apply(RULE + "{host: real.example, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}")
    assert mesh.call(PAGE, "http://real.example:9080/").workload == "192.0.2.5:9080"


@pytest.mark.envoy
def test_the_real_envoy_accepts_the_routes_by_destination(tmp_path: Path) -> None:
    accepted(large().compiled(PAGE), tmp_path)
