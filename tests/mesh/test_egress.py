"""Calls that leave the mesh, and what a workload sees of it: ServiceEntry, outboundTrafficPolicy, Sidecar, exportTo."""

from __future__ import annotations

import pytest

from tests.mesh.bookinfo import bookinfo
from tests.mesh.simulation import Decision, Mesh

NETWORKING = "apiVersion: networking.istio.io/v1\n"
PAGE = "productpage-v1"
HTTP_PORT = "{number: 80, name: http, protocol: HTTP}"
TLS_PORT = "{number: 443, name: tls, protocol: TLS}"


def entry(spec: str, name: str = "outside", namespace: str = "default") -> str:
    """A ServiceEntry."""
    return f"{NETWORKING}kind: ServiceEntry\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}"


def sidecar(spec: str, namespace: str = "default") -> str:
    """A Sidecar."""
    return f"{NETWORKING}kind: Sidecar\nmetadata: {{name: sidecar, namespace: {namespace}}}\nspec: {{{spec}}}"


def mesh_with(*documents: str, **config: object) -> Mesh:
    """Bookinfo, the names of the outside world, and these resources."""
    mesh = bookinfo(**config)
    mesh.internet = {
        "www.example.com": "203.0.113.80",
        "api.example.com": "203.0.113.81",
        "en.wiki.example": "203.0.113.82",
    }
    for text in documents:
        mesh.apply(text)
    return mesh


CLOSED = {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY"}}


def blocked(decision: Decision) -> bool:
    """Nothing left the host: 502 for requests, a closed connection for bytes."""
    assert decision.workload or decision.status == 502 or decision.refused, str(decision)
    return not decision.workload


@pytest.mark.parametrize(
    "url", ["http://www.example.com/", "https://www.example.com", "http://www.example.com:9080/"]
)
def test_the_unknown_is_reached_where_anything_may_be_called(url: str) -> None:
    decision = mesh_with().call(PAGE, url)
    assert decision.workload.startswith("203.0.113.80:")
    assert decision.outbound.cluster == "PassthroughCluster"
    assert decision.outbound.upstream_tls is None


@pytest.mark.parametrize(
    "url", ["http://www.example.com/", "https://www.example.com", "http://www.example.com:9080/"]
)
def test_the_unknown_is_blocked_where_only_the_registry_may_be_called(url: str) -> None:
    assert blocked(mesh_with(**CLOSED).call(PAGE, url))


def test_services_of_the_mesh_stay_reachable_when_the_outside_is_blocked() -> None:
    assert mesh_with(**CLOSED).call(PAGE, "http://details:9080/").workload == "details-v1"


def test_an_entry_opens_one_name_and_no_other() -> None:
    text = entry(f"hosts: [www.example.com], ports: [{HTTP_PORT}, {TLS_PORT}], resolution: DNS")
    mesh = mesh_with(text, **CLOSED)
    assert mesh.call(PAGE, "http://www.example.com/").workload == "www.example.com:80"
    assert mesh.call(PAGE, "https://www.example.com").workload == "www.example.com:443"
    assert blocked(mesh.call(PAGE, "http://api.example.com/"))
    assert blocked(mesh.call(PAGE, "https://api.example.com"))


def test_a_name_of_an_entry_gets_an_address_of_the_mesh() -> None:
    mesh = mesh_with(entry(f"hosts: [db.example.com], ports: [{TLS_PORT}], resolution: DNS"))
    assert mesh.resolve(PAGE, "db.example.com").startswith("240.240.")
    assert mesh.resolve(PAGE, "www.example.com") == "203.0.113.80"


def test_a_wildcard_entry_lets_each_call_go_where_it_wanted() -> None:
    mesh = mesh_with(entry(f"hosts: ['*.wiki.example'], ports: [{TLS_PORT}], resolution: NONE"), **CLOSED)
    decision = mesh.call(PAGE, "https://en.wiki.example")
    assert decision.workload == "203.0.113.82:443"
    assert decision.outbound.cluster == "outbound|443||*.wiki.example"
    assert blocked(mesh.call(PAGE, "https://www.example.com"))


def test_static_endpoints_are_balanced_and_called_without_mesh_tls() -> None:
    text = entry(
        "hosts: [legacy.example], location: MESH_EXTERNAL, resolution: STATIC, "
        "ports: [{number: 8080, name: http, protocol: HTTP, targetPort: 9090}], "
        "endpoints: [{address: 192.0.2.1}, {address: 192.0.2.2, ports: {http: 7070}}]"
    )
    mesh = mesh_with(text)
    found = {mesh.call(PAGE, "http://legacy.example:8080/", random=n * 7919).workload for n in range(40)}
    assert found == {"192.0.2.1:9090", "192.0.2.2:7070"}
    assert mesh.call(PAGE, "http://legacy.example:8080/").outbound.upstream_tls is None


def test_a_workload_entry_is_an_instance_of_a_service_in_the_mesh() -> None:
    machine = (
        f"{NETWORKING}kind: WorkloadEntry\nmetadata: {{name: vm, labels: {{app: old}}}}\n"
        "spec: {address: 192.0.2.7, serviceAccount: vm-sa, labels: {app: old, security.istio.io/tlsMode: istio}}"
    )
    service = entry(
        f"hosts: [old.example], location: MESH_INTERNAL, resolution: STATIC, ports: [{HTTP_PORT}], "
        "workloadSelector: {labels: {app: old}}"
    )
    decision = mesh_with(machine, service).call(PAGE, "http://old.example/")
    assert decision.workload == "192.0.2.7:80"
    tls = decision.outbound.upstream_tls
    assert tls is not None
    assert tls.validation is not None
    assert [one.match.value for one in tls.validation.sans] == ["spiffe://cluster.local/ns/default/sa/vm-sa"]


def test_a_virtual_service_bounds_calls_to_the_outside() -> None:
    # https://istio.io/latest/docs/tasks/traffic-management/egress/egress-control/
    mesh = mesh_with(entry(f"hosts: [httpbin.org], ports: [{HTTP_PORT}], resolution: DNS"))
    mesh.apply(
        f"{NETWORKING}kind: VirtualService\nmetadata: {{name: httpbin}}\n"
        "spec: {hosts: [httpbin.org], http: [{timeout: 3s, route: [{destination: {host: httpbin.org}, weight: 100}]}]}"
    )
    assert mesh.call(PAGE, "http://httpbin.org/delay/5").outbound.timeout == 3.0


# What a workload sees


def test_a_sidecar_hides_what_it_does_not_import() -> None:
    mesh = mesh_with(sidecar("egress: [{hosts: ['./details.default.svc.cluster.local']}]"), **CLOSED)
    assert mesh.call(PAGE, "http://details:9080/").workload == "details-v1"
    assert mesh.resolve(PAGE, "ratings") == ""
    assert blocked(mesh.call(PAGE, "http://ratings:9080/", address="240.240.0.3"))


def test_a_sidecar_opens_the_outside_for_one_workload() -> None:
    mesh = mesh_with(
        sidecar(
            "workloadSelector: {labels: {app: productpage}}, outboundTrafficPolicy: {mode: ALLOW_ANY}, "
            "egress: [{hosts: ['*/*']}]"
        ),
        **CLOSED,
    )
    assert not blocked(mesh.call(PAGE, "http://www.example.com/"))
    assert blocked(mesh.call("details-v1", "http://www.example.com/"))


def test_the_root_namespaces_sidecar_is_the_default_of_all() -> None:
    mesh = mesh_with(sidecar("egress: [{hosts: ['./*']}]", "istio-system"))
    mesh.add("stranger-v1", service="stranger", namespace="other")
    assert mesh.resolve("stranger-v1", "details.default") == ""
    assert mesh.call(PAGE, "http://details:9080/").workload == "details-v1"


def test_an_entry_may_keep_to_its_namespace() -> None:
    mesh = mesh_with(
        entry(
            f"hosts: [www.example.com], ports: [{HTTP_PORT}], resolution: DNS, exportTo: ['.']",
            namespace="other",
        ),
        **CLOSED,
    )
    mesh.add("stranger-v1", service="stranger", namespace="other")
    assert not blocked(mesh.call("stranger-v1", "http://www.example.com/"))
    assert blocked(mesh.call(PAGE, "http://www.example.com/"))


def test_a_callers_own_rules_come_before_the_services() -> None:
    def rule(namespace: str, connections: int) -> str:
        return (
            f"{NETWORKING}kind: DestinationRule\nmetadata: {{name: details, namespace: {namespace}}}\n"
            f"spec: {{host: details.default.svc.cluster.local, trafficPolicy: "
            f"{{connectionPool: {{tcp: {{maxConnections: {connections}}}}}}}}}"
        )

    mesh = mesh_with(rule("default", 1), rule("other", 2), rule("istio-system", 3))
    mesh.add("stranger-v1", service="stranger", namespace="other")
    mesh.add("third-v1", service="third", namespace="third")

    def limit(name: str, host: str = "details.default.svc.cluster.local") -> int:
        return mesh.proxy(name).table.clusters[f"outbound|9080||{host}"].default_thresholds.max_connections

    assert (limit("stranger-v1"), limit(PAGE), limit("third-v1")) == (2, 1, 1)
    # The root namespace speaks where neither does.
    mesh.resources = {key: one for key, one in mesh.resources.items() if one.namespace == "istio-system"}
    mesh.changed()
    assert limit("third-v1") == 3


def test_names_of_other_namespaces_need_their_namespace() -> None:
    mesh = mesh_with()
    mesh.add("stranger-v1", service="stranger", namespace="other")
    assert mesh.resolve("stranger-v1", "details") == ""
    assert mesh.call("stranger-v1", "http://details.default:9080/").workload == "details-v1"
    assert mesh.call("stranger-v1", "http://details.default.svc.cluster.local:9080/").workload == "details-v1"
    # A bare name of another namespace is a foreign authority: the address decides, not the name.
    assert mesh.call("stranger-v1", "http://reviews.default:9080/", host="details").workload.startswith(
        "reviews-"
    )
