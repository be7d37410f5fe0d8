"""ServiceEntries and WorkloadEntries as Istio reads them: several for one host, DNS, identities, weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.table.build import build
from agent.table.tls import UpstreamTls
from istiod.compile import compile_proxy
from istiod.proxy import ProxyInfo
from istiod.resources.problem import Problem
from tests.mesh.bookinfo import bookinfo
from tests.mesh.simulation import DATA_PLANE, Mesh, expected_names
from tests.unit.istiod.test_compile_envoy import accepted
from wire.xds import CLUSTER

NETWORKING = "apiVersion: networking.istio.io/v1\n"
PAGE = "productpage-v1"
HTTP = "{number: 80, name: http, protocol: HTTP}"
TLS = "{number: 443, name: tls, protocol: TLS}"
TCP = "{number: 5432, name: tcp, protocol: TCP}"


def entry(name: str, spec: str, namespace: str = "default") -> str:
    return f"{NETWORKING}kind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}"


def mesh_with(*documents: str, **config: object) -> Mesh:
    mesh = bookinfo(**config)
    for text in documents:
        mesh.apply(text)
    return mesh


def told(mesh: Mesh) -> list[Problem]:
    return list(mesh.snapshot.conflicts)


# Several entries for one host


def test_entries_of_one_host_have_all_their_ports() -> None:
    mesh = mesh_with(
        entry("a", f"hosts: [api.partner.example], resolution: DNS, ports: [{HTTP}]"),
        entry("b", f"hosts: [api.partner.example], resolution: DNS, ports: [{TLS}]"),
    )
    assert mesh.call(PAGE, "http://api.partner.example/").workload == "api.partner.example:80"
    assert mesh.call(PAGE, "https://api.partner.example").workload == "api.partner.example:443"
    assert not told(mesh)


def test_endpoints_serve_the_ports_of_their_own_entry() -> None:
    static = "hosts: [db.example], location: MESH_INTERNAL, resolution: STATIC"
    mesh = mesh_with(
        entry("a", f"{static}, ports: [{HTTP}], endpoints: [{{address: 192.0.2.1}}]"),
        entry("b", f"{static}, ports: [{HTTP.replace('80', '81')}], endpoints: [{{address: 192.0.2.2}}]"),
    )
    for port, address in ((80, "192.0.2.1"), (81, "192.0.2.2")):
        found = {mesh.call(PAGE, f"http://db.example:{port}/", random=n * 7919).workload for n in range(20)}
        assert found == {f"{address}:{port}"}


def test_of_a_port_that_two_entries_have_the_older_counts() -> None:
    static = f"hosts: [db.example], resolution: STATIC, ports: [{HTTP}], endpoints: "
    mesh = mesh_with(
        entry("z", static + "[{address: 192.0.2.1}]"), entry("a", static + "[{address: 192.0.2.2}]")
    )
    assert mesh.call(PAGE, "http://db.example/").workload == "192.0.2.1:80"


def test_an_entry_that_resolves_otherwise_is_not_merged_and_gets_a_name() -> None:
    mesh = mesh_with(
        entry("a", f"hosts: [api.partner.example], resolution: DNS, ports: [{HTTP}]"),
        entry("b", f"hosts: [api.partner.example], resolution: NONE, ports: [{TLS}]"),
    )
    assert mesh.call(PAGE, "http://api.partner.example/").workload == "api.partner.example:80"
    (problem,) = told(mesh)
    assert problem.subject == "ServiceEntry default/b"
    assert "older ServiceEntry default/a" in problem.message


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("addresses: [10.8.0.0/16], ", "addresses: [10.8.1.1/16], "),
        ("addresses: [10.8.0.1], ", "addresses: [10.8.0.1], "),
        ("", ""),
    ],
    ids=["blocks", "addresses", "ports"],
)  # fmt: skip
def test_the_younger_of_two_entries_on_one_place_is_named(first: str, second: str) -> None:
    open_tcp = f"resolution: NONE, ports: [{TCP}]"
    mesh = mesh_with(
        entry("a", f"hosts: [a.example], {first}{open_tcp}", "team-a"),
        entry("b", f"hosts: [b.example], {second}{open_tcp}", "team-b"),
    )
    (problem,) = told(mesh)
    assert problem.subject == "ServiceEntry team-b/b"
    assert "older ServiceEntry team-a/a (a.example)" in problem.message


def test_entries_that_nobody_sees_together_do_not_conflict() -> None:
    private = f"addresses: [10.8.0.1], exportTo: ['.'], resolution: NONE, ports: [{TCP}]"
    mesh = mesh_with(
        entry("a", f"hosts: [a.example], {private}", "team-a"),
        entry("b", f"hosts: [b.example], {private}", "team-b"),
    )
    assert not told(mesh)


def test_what_envoy_cannot_match_or_balance_is_named() -> None:
    mesh = mesh_with(
        entry("wild", f"hosts: ['*part.example'], resolution: NONE, ports: [{TLS}]"),
        f"{NETWORKING}kind: DestinationRule\nmetadata: {{name: r}}\n"
        "spec: {host: details, trafficPolicy: {loadBalancer: {simple: PASSTHROUGH}}}",
    )
    assert [(one.subject, one.path) for one in told(mesh)] == [
        ("DestinationRule default/r", "spec.trafficPolicy.loadBalancer.simple"),
        ("ServiceEntry default/wild", "spec.hosts"),
    ]


# DNS


@pytest.mark.parametrize(
    ("addresses", "family"),
    [(("10.0.0.1",), "v4_only"), (("fd00::1",), "v6_only"), (("10.0.0.1", "fd00::1"), "all")],
)
def test_names_are_resolved_in_the_families_of_the_host(addresses: tuple[str, ...], family: str) -> None:
    mesh = mesh_with(entry("s", f"hosts: [api.example.com], resolution: DNS, ports: [{HTTP}]"))
    assert mesh.proxy(PAGE).table.clusters["outbound|80||api.example.com"].dns_family == "v4_only"
    mesh.workloads[PAGE].address = addresses[0]
    info = ProxyInfo("default", addresses=addresses)
    compiled = compile_proxy(mesh.snapshot, info, mesh._cache)
    table = build({url: {key: one.body for key, one in compiled.of(url).items()} for url in DATA_PLANE})
    assert table.clusters["outbound|80||api.example.com"].dns_family == family


def test_names_are_resolved_once_a_minute_or_as_the_mesh_says() -> None:
    text = entry("s", f"hosts: [api.example.com], resolution: DNS, ports: [{HTTP}]")
    name = "outbound|80||api.example.com"
    assert mesh_with(text).proxy(PAGE).table.clusters[name].dns_refresh == 60.0
    assert mesh_with(text, dnsRefreshRate="7s").proxy(PAGE).table.clusters[name].dns_refresh == 7.0


def tls_of(mesh: Mesh, url: str) -> UpstreamTls | None:
    return mesh.call(PAGE, url).outbound.upstream_tls


MACHINE = (
    f"{NETWORKING}kind: WorkloadEntry\nmetadata: {{name: vm1}}\n"
    "spec: {address: ADDRESS, labels: {app: legacy}, serviceAccount: legacy}"
)
LEGACY = entry(
    "legacy",
    "hosts: [legacy.example.com], location: MESH_INTERNAL, resolution: RESOLUTION,"
    f" ports: [{HTTP}], workloadSelector: {{labels: {{app: legacy}}}}",
)


@pytest.mark.parametrize(
    ("resolution", "address"),
    [("STATIC", "10.5.5.5"), ("DNS", "vm1.example.com"), ("DNS_ROUND_ROBIN", "vm1.example.com")],
)
def test_a_workload_with_a_service_account_is_called_with_mutual_tls(
    resolution: str, address: str, tmp_path: Path
) -> None:
    mesh = mesh_with(MACHINE.replace("ADDRESS", address), LEGACY.replace("RESOLUTION", resolution))
    decision = mesh.call(PAGE, "http://legacy.example.com/")
    assert decision.workload == f"{address}:80"
    assert expected_names(decision.outbound.upstream_tls) == ("spiffe://cluster.local/ns/default/sa/legacy",)
    accepted(mesh.compiled(PAGE), tmp_path)


def test_the_label_says_otherwise() -> None:
    text = MACHINE.replace("ADDRESS", "10.5.5.5").replace(
        "app: legacy", "app: legacy, security.istio.io/tlsMode: disabled"
    )
    assert (
        tls_of(mesh_with(text, LEGACY.replace("RESOLUTION", "STATIC")), "http://legacy.example.com/") is None
    )


def test_an_endpoint_of_dns_whose_policy_is_plain_is_called_in_plain() -> None:
    mesh = mesh_with(MACHINE.replace("ADDRESS", "vm1.example.com"), LEGACY.replace("RESOLUTION", "DNS"))
    assert tls_of(mesh, "http://legacy.example.com/") is not None
    mesh.apply(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {name: p}\n"
        "spec: {selector: {matchLabels: {app: legacy}}, mtls: {mode: DISABLE}}"
    )
    assert tls_of(mesh, "http://legacy.example.com/") is None


def test_a_plain_endpoint_of_dns_outside_the_mesh_stays_plain() -> None:
    mesh = mesh_with(
        entry("s", f"hosts: [api.example.com], location: MESH_INTERNAL, resolution: DNS, ports: [{HTTP}]")
    )
    assert tls_of(mesh, "http://api.example.com/") is None


# Numbers that add up to more than there is room for


def test_weights_beyond_all_bounds_keep_their_ratio(tmp_path: Path) -> None:
    most = 2**32 - 1
    heavy = ", ".join(
        f"{{address: 192.0.2.{n}, weight: {most if n < 4 else most // 2}}}" for n in range(1, 5)
    )
    mesh = mesh_with(
        entry("h", f"hosts: [heavy.example], resolution: STATIC, ports: [{HTTP}], endpoints: [{heavy}]"),
        entry("d", f"hosts: [dns.example], resolution: DNS, ports: [{HTTP}], endpoints: [{heavy}]"),
        f"{NETWORKING}kind: VirtualService\nmetadata: {{name: v}}\nspec: {{hosts: [details], http: [{{route: ["
        + ", ".join(
            f"{{destination: {{host: {host}}}, weight: {2**31 - 1}}}"
            for host in ("details", "ratings", "reviews")
        )
        + "]}]}",
        f"{NETWORKING}kind: VirtualService\nmetadata: {{name: t}}\nspec: {{hosts: [reviews], tcp: [{{route: ["
        + ", ".join(
            f"{{destination: {{host: {host}}}, weight: {2**31 - 1}}}"
            for host in ("details", "ratings", "reviews")
        )
        + "]}]}",
    )
    table = mesh.proxy(PAGE).table
    weights = [one.weight for one in table.assignments["outbound|80||heavy.example"].endpoints]
    assert sum(weights) <= most
    assert [round(weight / weights[3]) for weight in weights] == [2, 2, 2, 1]
    accepted(mesh.compiled(PAGE), tmp_path)


def test_numbers_beyond_what_the_kernel_and_envoy_take_harm_nothing(tmp_path: Path) -> None:
    mesh = mesh_with(
        f"{NETWORKING}kind: DestinationRule\nmetadata: {{name: r}}\nspec:\n  host: details\n  trafficPolicy:\n"
        "    connectionPool: {tcp: {idleTimeout: 2562047h, maxConnectionDuration: 2562047h, "
        "tcpKeepalive: {probes: 127, time: 32767s, interval: 32767s}}}\n"
        "    outlierDetection: {interval: 2562047h, baseEjectionTime: 2562047h}\n",
        f"{NETWORKING}kind: VirtualService\nmetadata: {{name: v}}\n"
        "spec: {hosts: [details], http: [{timeout: 2562047h, route: [{destination: {host: details}}]}]}",
    )
    table = mesh.proxy(PAGE).table
    assert table.clusters["outbound|9080||details.default.svc.cluster.local"].tcp_keepalive == (
        127,
        32767,
        32767,
    )
    assert mesh.call(PAGE, "http://details:9080/").workload == "details-v1"
    assert CLUSTER in mesh.compiled(PAGE).types
    accepted(mesh.compiled(PAGE), tmp_path)
