"""Every file of Istio's test data compiles and becomes a table; what is refused is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from istiod.resources.document import parse
from registry.model import Port
from tests.mesh.bookinfo import bookinfo
from tests.mesh.simulation import CASES, Mesh

CONFIGS = sorted((CASES / "istio-config").glob("*.yaml"))
SAMPLES = sorted((CASES / "istio-samples").glob("*.yaml"))
PORTS = (Port("http", 9080), Port("grpc-x", 9090), Port("tcp", 9000), Port("web", 8080))


def namespaces(path: Path) -> set[str]:
    """The namespaces that the resources of a file live in."""
    found = {"default"}
    for document in yaml.safe_load_all(path.read_text()):
        if document:
            found.add(document.get("metadata", {}).get("namespace", "default"))
    return found


def test_istios_test_data_is_here() -> None:
    assert (len(CONFIGS), len(SAMPLES)) == (30, 24)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_configuration_compiles_and_becomes_a_table(path: Path) -> None:
    mesh = Mesh()
    for namespace in sorted(namespaces(path)):
        for service in ("a", "b"):
            mesh.add(
                f"{service}-{namespace}",
                service=service,
                namespace=namespace,
                port=PORTS,
                labels={"app": service, "version": "v1"},
            )
    mesh.apply(path)
    for name in mesh.workloads:
        table = mesh.proxy(name).table
        assert {"virtualOutbound", "virtualInbound", "0.0.0.0_9080"} <= set(table.listeners)
    for port in (80, 9080, 9090):
        name = next(iter(mesh.workloads))
        for domain in domains(mesh, name, port):
            decision = mesh.call(name, f"http://{domain}:{port}/", address="203.0.113.9")
            assert decision.status, f"{domain}:{port} {decision}"


def domains(mesh: Mesh, name: str, port: int) -> list[str]:
    """The names that a proxy's routes of a port know."""
    routes = mesh.proxy(name).table.routes.get(str(port))
    hosts = routes.virtual_hosts if routes is not None else ()
    return [domain.replace("*", "any") for host in hosts for domain in host.domains if "[" not in domain]


def patches_envoy(path: Path) -> bool:
    """Whether a sample has an EnvoyFilter, which this version refuses rather than ignores."""
    return "kind: EnvoyFilter" in path.read_text()


@pytest.mark.parametrize("path", list(filter(patches_envoy, SAMPLES)), ids=lambda path: path.stem)
def test_a_sample_that_patches_envoy_is_refused_for_that_alone(path: Path) -> None:
    assert {problem.message for problem in parse(path.read_text()).blocking()} == {
        "kind EnvoyFilter is not supported by this version"
    }


@pytest.mark.parametrize(
    "path", [path for path in SAMPLES if not patches_envoy(path)], ids=lambda path: path.stem
)
def test_a_sample_compiles_and_becomes_a_table(path: Path) -> None:
    mesh = bookinfo()
    mesh.apply(path)
    for name in mesh.workloads:
        assert mesh.proxy(name).table.listeners


REFUSED = {
    "http: [{match: [{uri: {regex: '/(?=x)'}}], route: [{destination: {host: b}}]}]": "http[0].match[0].uri.regex",
    "http: [{route: [{destination: {host: b}, wieght: 3}]}]": "http[0].route[0].wieght",
    "http: [{redirect: {uri: /x}, route: [{destination: {host: b}}]}]": "http[0]",
    "http: [{timeout: 1x, route: [{destination: {host: b}}]}]": "http[0].timeout",
}


@pytest.mark.parametrize(("http", "path"), REFUSED.items())
def test_what_cannot_be_is_refused_by_the_name_of_its_field(http: str, path: str) -> None:
    head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: x}\n"
    blocking = parse(f"{head}spec: {{hosts: [b], {http}}}").blocking()
    assert blocking[0].path.startswith(f"spec.{path}"), blocking
