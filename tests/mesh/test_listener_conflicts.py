"""Two documents, or two ports, that claim the same connections: the older has them, and the listener stays whole."""

from __future__ import annotations

from pathlib import Path

import pytest

from registry.model import Port
from tests.mesh.bookinfo import bookinfo
from tests.mesh.simulation import Mesh
from tests.unit.istiod.test_compile_envoy import accepted

NETWORKING = "apiVersion: networking.istio.io/v1\n"
PAGE = "productpage-v1"
TCP = "{number: 5432, name: tcp, protocol: TCP}"


def entry(name: str, spec: str, namespace: str = "default") -> str:
    return f"{NETWORKING}kind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}"


def mesh_with(*documents: str) -> Mesh:
    mesh = bookinfo()
    for text in documents:
        mesh.apply(text)
    return mesh


BLOCKS = (
    entry(
        "a", f"hosts: [a.example.com], addresses: [10.8.0.0/16], resolution: NONE, ports: [{TCP}]", "team-a"
    ),
    entry(
        "b",
        f"hosts: [b.example.com], addresses: [10.8.1.2/16, 10.9.0.0/16], resolution: NONE, ports: [{TCP}]",
        "team-b",
    ),
)


def test_the_older_of_two_entries_has_an_address_block(tmp_path: Path) -> None:
    mesh = mesh_with(*BLOCKS)
    assert mesh.call(PAGE, "tcp://10.8.3.4:5432").outbound.cluster == "outbound|5432||a.example.com"
    assert mesh.call(PAGE, "tcp://10.9.3.4:5432").outbound.cluster == "outbound|5432||b.example.com"
    accepted(mesh.compiled(PAGE), tmp_path)


def test_age_decides_and_not_the_name() -> None:
    mesh = mesh_with(*reversed(BLOCKS))
    assert mesh.call(PAGE, "tcp://10.8.3.4:5432").outbound.cluster == "outbound|5432||b.example.com"


def test_the_older_of_two_entries_has_an_address(tmp_path: Path) -> None:
    static = "resolution: STATIC, endpoints: [{{address: {}}}], ports: [{}]"
    mesh = mesh_with(
        entry("z", "hosts: [z.example.com], addresses: [10.8.0.1], " + static.format("192.0.2.1", TCP)),
        entry(
            "a", "hosts: [a.example.com], addresses: [10.8.0.1, 10.8.0.2], " + static.format("192.0.2.2", TCP)
        ),
    )
    assert mesh.call(PAGE, "tcp://10.8.0.1:5432").workload == "192.0.2.1:5432"
    assert mesh.call(PAGE, "tcp://10.8.0.2:5432").workload == "192.0.2.2:5432"
    accepted(mesh.compiled(PAGE), tmp_path)


TWO_NAMES = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: s}
spec: {hosts: [x.example.com, y.example.com], resolution: NONE, ports: [{number: 443, name: tls, protocol: TLS}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: v}
spec:
  hosts: [x.example.com, y.example.com]
  tls:
  - {match: [{sniHosts: [x.example.com]}], route: [{destination: {host: x.example.com}}]}
  - {match: [{sniHosts: [y.example.com]}], route: [{destination: {host: y.example.com}}]}
"""


def test_rules_of_two_hosts_by_server_name_are_one_listener(tmp_path: Path) -> None:
    mesh = mesh_with(TWO_NAMES)
    for name in ("x.example.com", "y.example.com"):
        decision = mesh.call(PAGE, f"https://{name}", address="203.0.113.5")
        assert (decision.outbound.cluster, decision.workload) == (f"outbound|443||{name}", "203.0.113.5:443")
    accepted(mesh.compiled(PAGE), tmp_path)


@pytest.mark.parametrize("names", ["['*part.example.com', x.example.com]", "[X.EXAMPLE.com]"])
def test_server_names_become_what_envoy_can_match(names: str, tmp_path: Path) -> None:
    mesh = mesh_with(
        TWO_NAMES.partition("---")[0],
        f"{NETWORKING}kind: VirtualService\nmetadata: {{name: v}}\n"
        f"spec: {{hosts: ['*.com'], tls: [{{match: [{{sniHosts: {names}}}], "
        "route: [{destination: {host: y.example.com}}]}]}",
    )
    decision = mesh.call(PAGE, "https://x.example.com", address="203.0.113.5")
    assert decision.outbound.cluster == "outbound|443||y.example.com"
    accepted(mesh.compiled(PAGE), tmp_path)


def test_two_blocks_that_are_equal_after_masking_are_one(tmp_path: Path) -> None:
    mesh = mesh_with(
        entry(
            "a",
            f"hosts: [a.example.com], addresses: [10.8.1.0/16, 10.8.2.0/16], resolution: NONE, ports: [{TCP}]",
        ),
        f"{NETWORKING}kind: VirtualService\nmetadata: {{name: v}}\n"
        "spec: {hosts: [a.example.com], tcp: [{match: [{destinationSubnets: [10.8.1.1/24, 10.8.1.2/24]}],"
        " route: [{destination: {host: a.example.com}}]}, {route: [{destination: {host: a.example.com}}]}]}",
    )
    assert mesh.call(PAGE, "tcp://10.8.3.4:5432").outbound.cluster == "outbound|5432||a.example.com"
    accepted(mesh.compiled(PAGE), tmp_path)


def test_two_ports_of_a_workload_may_lead_to_one_of_its_application(tmp_path: Path) -> None:
    mesh = bookinfo()
    mesh.add("shop-1", service="shop", port=(Port("http", 80, "", 8080), Port("http-alt", 8080)))
    assert mesh.call(PAGE, "http://shop/").workload == "shop-1"
    assert mesh.call(PAGE, "http://shop:8080/").workload == "shop-1"
    accepted(mesh.compiled("shop-1"), tmp_path)
