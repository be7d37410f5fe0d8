"""istiod.yaml: what the design page shows is accepted, and every mistake is named with its field."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from istiod.config import Address, ConfigError, UnixSocket, load, parse
from istiod.resources.mesh_config import mesh_config
from registry.opening import ConsulSettings, SqliteSettings

DESIGN = """
stateDir: /var/lib/hostmesh                          # agent.yaml has it too
registry: {sqlite: /var/lib/hostmesh/registry.db}
listen: {xds: "0.0.0.0:15012", xdsPlaintext: "", admin: "127.0.0.1:8443",
         monitoring: "127.0.0.1:15014"}
ca: {workloadCertificateTTL: 24h, plugged: null}
mesh: {trustDomain: cluster.local, outboundTrafficPolicy: {mode: ALLOW_ANY}, accessLogFile: ""}
"""


def problems_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as failure:
        parse(text, "istiod.yaml")
    return failure.value.problems


def test_the_file_of_the_design_page_is_the_default() -> None:
    config = parse(DESIGN, "istiod.yaml")
    assert config.listen.xds == Address(host="0.0.0.0", port=15012)
    assert config.ca.workload_ttl.total_seconds() == 86400
    assert config.registry_settings({}) == SqliteSettings(Path("/var/lib/hostmesh/registry.db"))
    empty = parse("", "istiod.yaml")
    assert (empty.listen, empty.ca, empty.mesh) == (config.listen, config.ca, config.mesh)
    assert empty.registry_settings({}) == config.registry_settings({})


def test_the_sqlite_file_follows_the_state_directory() -> None:
    config = parse("stateDir: /srv/mesh", "istiod.yaml")
    assert config.registry_settings({}) == SqliteSettings(Path("/srv/mesh/registry.db"))


def test_a_consul_token_comes_from_a_systemd_credential(tmp_path: Path) -> None:
    (tmp_path / "consul-token").write_text("s3cret\n")
    config = parse(
        "registry: {consul: {address: 'http://127.0.0.1:8500', prefix: mesh/a,"
        " tokenCredential: consul-token}}",
        "istiod.yaml",
    )
    settings = config.registry_settings({"CREDENTIALS_DIRECTORY": str(tmp_path)})
    assert settings == ConsulSettings("http://127.0.0.1:8500", "mesh/a", "s3cret")
    assert "s3cret" not in repr(settings)
    with pytest.raises(ConfigError, match="tokenCredential: systemd passed no credentials"):
        config.registry_settings({})
    with pytest.raises(ConfigError, match="cannot read the token"):
        config.registry_settings({"CREDENTIALS_DIRECTORY": str(tmp_path / "nowhere")})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("listn: {}", "listn: unknown field; did you mean listen?"),
        (
            'listen: {xdsPlainText: "127.0.0.1:1"}',
            "listen.xdsPlainText: unknown field; did you mean xdsPlaintext?",
        ),
        ("ca: {zzz: 1}", "ca.zzz: unknown field; known here: workloadCertificateTTL, renewalGrace, plugged"),
        ("registry: {consul: {adress: x}}", "registry.consul.adress: unknown field; did you mean address?"),
        (
            "mesh: {outboundTrafficPolicy: {mod: ALLOW_ANY}}",
            "mesh.outboundTrafficPolicy.mod: unknown field; did you mean mode?",
        ),
        ("mesh: {trustDomain: CLUSTER}", "mesh.trustDomain: not a trust domain: 'CLUSTER'"),
        ("stateDir: var/lib", "stateDir: must be an absolute path"),
        ("listen: 5", "listen: a mapping is expected"),
        ("listen: {xds: 15012}", 'listen.xds: must be an address like "0.0.0.0:15012" or "[::1]:15012"'),
        ('listen: {xds: "::1:15012"}', "listen.xds: an IPv6 address must stand in brackets: [::1]:15012"),
        ('listen: {xds: "0.0.0.0:99999"}', "listen.xds: must end in a port, as 0.0.0.0:15012 does"),
        ("ca: {renewalGrace: 2161h}", "ca.renewalGrace: must be between 0s and 2160h (90 days)"),
        (
            "ca: {workloadCertificateTTL: 5s}",
            "ca.workloadCertificateTTL: must be between 1m and 2160h (90 days)",
        ),
        (
            "registry: {sqlite: /a, consul: {address: 'http://x'}}",
            "registry.consul: may not be set together with sqlite",
        ),
        (
            "registry: {consul: {address: 'http://me:pw@x'}}",
            "registry.consul.address: must not carry a user or password; use tokenCredential",
        ),
        ("- a", "a mapping of settings is expected"),
        ("a: 1\na: 2", "line 2, column 1: the key 'a' is there twice"),
        ("a: [", "line 1, column 5: expected the node content, but found '<stream end>'"),
    ],
)
def test_a_mistake_is_named_with_file_field_and_reason(text: str, problem: str) -> None:
    assert f"istiod.yaml: {problem}" in problems_of(text)


def test_all_mistakes_are_told_at_once() -> None:
    assert len(problems_of("listen: {xds: 1, admin: 2}\nfoo: 3")) == 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing\.yaml: No such file or directory"):
        load(tmp_path / "nothing.yaml")


def test_listeners_may_be_switched_off_and_be_ipv6() -> None:
    config = parse('listen: {xdsPlaintext: null, admin: "[::1]:0"}', "istiod.yaml")
    assert config.listen.xds_plaintext is None
    assert str(config.listen.admin) == "[::1]:0"


def test_the_plaintext_port_is_off_unless_it_is_configured_and_then_of_this_machine_only() -> None:
    for text in ("", "listen: {xdsPlaintext: ''}", "listen: {xdsPlaintext: null}"):
        assert parse(text, "istiod.yaml").listen.xds_plaintext is None
    given = parse("listen: {xdsPlaintext: '[::1]:15010'}", "istiod.yaml").listen.xds_plaintext
    assert str(given) == "[::1]:15010"
    for host in ("0.0.0.0", "10.0.0.1", "", "istiod.example"):
        with pytest.raises(ConfigError, match=r"listen\.xdsPlaintext: must be an address of loopback"):
            parse(f"listen: {{xdsPlaintext: '{host}:15010'}}", "istiod.yaml")


def test_the_plaintext_port_may_be_a_unix_socket_at_an_absolute_path() -> None:
    given = parse("listen: {xdsPlaintext: 'unix:///run/hostmesh/xds.sock'}", "istiod.yaml").listen
    assert given.xds_plaintext == UnixSocket(path=Path("/run/hostmesh/xds.sock"))
    assert str(given.xds_plaintext) == "unix:///run/hostmesh/xds.sock"
    longest = "/" + 106 * "x"
    assert (
        parse(f"listen: {{xdsPlaintext: 'unix://{longest}'}}", "istiod.yaml").listen.xds_plaintext is not None
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("unix:run/xds.sock", "must be an absolute path of a socket after unix://"),
        ("unix://run/xds.sock", "must be an absolute path of a socket after unix://"),
        ("unix:/run/xds.sock", "must be an absolute path of a socket after unix://"),
        ("unix:@xds", "must be an absolute path of a socket after unix://"),
        ("unix:///", "must be an absolute path of a socket after unix://"),
        ("unix:///run/hostmesh/", "must be an absolute path of a socket after unix://"),
        ("unix:///run/\\0", "has a character that no path may have"),
        ("unix:///" + 107 * "x", "the path has 108 bytes; that of a Unix socket has at most 107"),
    ],
)
def test_a_unix_socket_that_cannot_be_is_refused_with_its_field(text: str, reason: str) -> None:
    (problem,) = problems_of(f'listen: {{xdsPlaintext: "{text}"}}')
    assert problem.startswith(f"istiod.yaml: listen.xdsPlaintext: {reason}")


@pytest.mark.parametrize("listener", ["xds", "admin", "monitoring"])
def test_a_unix_socket_is_for_the_plaintext_port_alone(listener: str) -> None:
    (problem,) = problems_of(f"listen: {{{listener}: 'unix:///run/hostmesh/xds.sock'}}")
    assert problem.startswith(f"istiod.yaml: listen.{listener}: must end in a port")


def test_a_policy_of_the_mesh_that_has_no_effect_is_refused() -> None:
    with pytest.raises(
        ValueError, match=re.escape("mesh.outboundTrafficPolicy.mode: ALLOW_ANY_DYNAMIC_DNS is not")
    ):
        mesh_config({"outboundTrafficPolicy": {"mode": "ALLOW_ANY_DYNAMIC_DNS"}})


@pytest.mark.parametrize("mode", ["PASSTHROUGH", "LOCALHOST"])
def test_the_policies_of_the_mesh_that_are_in_force_are_accepted(mode: str) -> None:
    mesh = mesh_config(
        {"inboundTrafficPolicy": {"mode": mode}, "outboundTrafficPolicy": {"mode": "ALLOW_ANY"}}
    )
    assert mesh.inbound_traffic_policy.mode == mode
