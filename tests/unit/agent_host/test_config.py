"""What the agent's configuration file accepts, and how it explains what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.host import config
from agent.host.config import AgentConfigError, HostPort

DESIGN = """
istiod: ["istiod-1.example.net:15012", "istiod-2.example.net:15012"]
joinToken: {credential: join-token}
locality: eu-west/eu-west-1a
workloads:
  - service: reviews
    namespace: default
    serviceAccount: bookinfo-reviews
    labels: {app: reviews, version: v2}
    ports: [{name: http, port: 9080}]
    user: reviews
    probe: {httpGet: {path: /health, port: 9080}, periodSeconds: 5}
capture: {excludeInboundPorts: [22], excludeOutboundCIDRs: []}
proxy: {workers: auto, drainSeconds: 30}
"""

SMALL = "istiod: ['a:1']\nworkloads: [{service: reviews}]\n"


def test_the_example_of_the_design_is_accepted() -> None:
    parsed = config.parse(DESIGN)
    workload = parsed.workloads[0]
    assert workload.key == "default/reviews"
    assert workload.service_account == "bookinfo-reviews"
    assert workload.probe is not None
    assert workload.probe.failure_threshold == 3
    assert parsed.state_dir == Path("/var/lib/hostmesh")
    assert parsed.proxy.worker_count() >= 1


def test_a_second_workload_has_proxy_ports_of_its_own() -> None:
    parsed = config.parse("istiod: ['a:1']\nworkloads: [{service: a}, {service: b, user: b}]")
    assert (parsed.proxy_ports(1).outbound, parsed.proxy_ports(1).inbound) == (15101, 15106)
    assert parsed.proxy_ports(1).dns == 15153


def test_a_credential_is_read_from_the_directory_that_systemd_names(monkeypatch: pytest.MonkeyPatch) -> None:
    token = config.parse(DESIGN).join_token
    assert token is not None
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert token.path() is None
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/x")
    assert token.path() == Path("/run/credentials/x/join-token")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            SMALL + "capture: {excludeInboundPort: [1]}",
            "capture.excludeInboundPort: unknown field, did you mean",
        ),
        (SMALL + "proxies: {}", "proxies: unknown field, did you mean proxy?"),
        (
            "istiod: ['a:1']\nworkloads: [{servce: a, service: a}]",
            "workloads[0].servce: unknown field, did you",
        ),
        (
            "istiod: ['a:1']\nworkloads: [{service: a, probe: {httpGet: {pth: /, port: 1}}}]",
            "workloads[0].probe.httpGet.pth: unknown field, did you mean path?",
        ),
        ("istiod: ['a:1']\nworkloads: [{service: a, probe: {}}]", "workloads[0].probe: give exactly one of"),
        ("istiod: ['a:1']\nworkloads: [{}]", "workloads[0].service: required"),
        ("istiod: ['a:1']\nworkloads: []", "workloads: "),
        ("istiod: ['a']\nworkloads: [{service: a}]", "istiod[0]: must be HOST:PORT"),
        ("istiod: ['::1:80']\nworkloads: [{service: a}]", "istiod[0]: must be HOST:PORT; an IPv6"),
        ("istiod: ['a:1']\nworkloads: [{service: 'a; flush'}]", "workloads[0].service: must be a DNS label"),
        (
            "istiod: ['a:1']\nworkloads: [{service: a}, {service: b}]",
            "only one workload may be without a user",
        ),
        (
            "istiod: ['a:1']\nworkloads: [{service: a, user: u}, {service: b, user: u}]",
            "the user u is given to two workloads",
        ),
        (SMALL + "proxy: {ports: {admin: 15001}}", "15001 would serve both"),
        (SMALL + "joinToken: {credential: a, file: /b}", "joinToken: give exactly one of"),
        (SMALL + "capture: {excludeOutboundCIDRs: ['10.0.0.1/8']}", "capture.excludeOutboundCIDRs[0]: "),
        (SMALL + "capture: {excludeInboundPorts: ['22; drop']}", "capture.excludeInboundPorts[0]: "),
        (SMALL + "locality: a\nlocality: b", "the key 'locality' stands twice"),
        ("- a", "the file must hold a mapping"),
        ("a: [", "while parsing"),
    ],
)
def test_a_wrong_file_is_refused_with_the_place_and_the_reason(text: str, problem: str) -> None:
    with pytest.raises(AgentConfigError) as caught:
        config.parse(text)
    assert any(problem in line for line in caught.value.problems), caught.value.problems


def test_every_problem_is_listed_at_once() -> None:
    with pytest.raises(AgentConfigError) as caught:
        config.parse("istiod: ['a']\nworkloads: [{service: A}]\nnonsense: 1")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h:1", HostPort("h", 1)),
        ("10.0.0.1:15012", HostPort("10.0.0.1", 15012)),
        ("[::1]:2", HostPort("::1", 2)),
    ],
)
def test_authorities(text: str, expected: HostPort) -> None:
    assert HostPort.parse(text) == expected


def test_a_missing_file_is_a_problem_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(AgentConfigError, match=r"nothing\.yaml"):
        config.load(tmp_path / "nothing.yaml")
