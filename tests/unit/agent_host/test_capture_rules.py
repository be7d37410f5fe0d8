"""The nft text: what is in it, in which order, and what can never be in it."""

from __future__ import annotations

import re
from ipaddress import ip_network

from hypothesis import given, settings
from hypothesis import strategies as st

from agent.host import config
from agent.host.capture.rules import Rules, WorkloadRules, own_ports, render
from agent.host.capture.table import rules_for

ONE = WorkloadRules(outbound=15001, inbound=15006, dns=15053, ports=(9080,))


def chain(text: str, name: str) -> list[str]:
    match = re.search(rf"chain {name} {{\n(.*?)\n  }}", text, re.DOTALL)
    assert match is not None
    return [line.strip() for line in match[1].splitlines()][1:]


def position(lines: list[str], start: str) -> int:
    return next(index for index, line in enumerate(lines) if line.startswith(start))


def test_dns_is_taken_before_loopback_passes() -> None:
    lines = chain(render(Rules((ONE,))), "output")
    assert position(lines, "udp dport 53") < position(lines, 'oifname "lo" return')
    assert position(lines, "tcp dport 53") < position(lines, 'oifname "lo" return')


def test_the_agents_own_traffic_is_let_go_first_by_mark_and_by_user() -> None:
    lines = chain(render(Rules((ONE,), agent_uids=(990,))), "output")
    assert position(lines, 'meta mark 0x539 oifname != "lo" return') < position(lines, "udp dport 53")
    assert position(lines, 'meta skuid { 990 } oifname != "lo" return') < position(lines, "udp dport 53")


def test_ssh_and_the_agents_ports_are_never_captured_whatever_is_included() -> None:
    rules = Rules((ONE,), agent_ports=(15020, 15021), include_inbound_ports=(22, 15021, 80))
    lines = chain(render(rules), "prerouting")
    first = next(line for line in lines if line.startswith("tcp dport"))
    assert first == "tcp dport { 22, 15001, 15006, 15020, 15021, 15053 } return"
    assert chain(render(rules), "output").index("tcp dport { 22 } return") >= 0


def test_only_the_included_ports_are_redirected_when_a_list_is_given() -> None:
    lines = chain(render(Rules((ONE,), include_inbound_ports=(80,))), "prerouting")
    assert lines[-1] == "tcp dport { 80 } counter redirect to :15006"
    assert not any("9080" in line for line in lines)
    assert "redirect" not in " ".join(chain(render(Rules((ONE,), include_inbound_ports=())), "prerouting"))


def test_each_workload_has_its_users_traffic_and_its_ports() -> None:
    second = WorkloadRules(outbound=15101, inbound=15106, dns=15153, uid=1001, ports=(7000,))
    text = render(Rules((ONE, second)))
    out = chain(text, "output")
    assert out[-2:] == [
        "meta skuid 1001 meta l4proto tcp counter redirect to :15101",
        "meta l4proto tcp counter redirect to :15001",
    ]
    assert "meta skuid 1001 udp dport 53 counter redirect to :15153" in out
    inbound = chain(text, "prerouting")
    assert "tcp dport { 7000 } counter redirect to :15106" in inbound
    assert inbound[-1] == "meta l4proto tcp counter redirect to :15006"


def test_when_every_workload_has_a_user_other_users_are_left_alone() -> None:
    work = WorkloadRules(outbound=15001, inbound=15006, dns=15053, uid=1001, ports=(9080,))
    redirects = [
        line for line in chain(render(Rules((work,))), "output") if "15001" in line or "15053" in line
    ]
    assert redirects
    assert all(line.startswith("meta skuid 1001 ") for line in redirects)


def test_networks_are_excluded_and_included_by_family() -> None:
    rules = Rules(
        (ONE,), include_outbound=(ip_network("10.0.0.0/8"),), exclude_outbound=(ip_network("fd00::/8"),)
    )
    lines = chain(render(rules), "output")
    assert "ip6 daddr @excluded6 return" in lines
    assert "ip daddr != @included4 return" in lines
    assert "meta nfproto ipv6 return" in lines
    assert not any("@excluded4" in line for line in lines)


@settings(deadline=None)  # the machine may be busy
@given(
    ports=st.lists(st.integers(1, 65535), max_size=5),
    uid=st.none() | st.integers(1, 2**32 - 2),
    networks=st.lists(st.ip_addresses(v=4).map(lambda a: ip_network(f"{a}/32")), max_size=4),
)
def test_nothing_but_known_words_and_numbers_is_written(
    ports: list[int], uid: int | None, networks: list[object]
) -> None:
    rules = Rules(
        (WorkloadRules(15001, 15006, 15053, uid, tuple(ports)),),
        exclude_inbound_ports=tuple(ports),
        exclude_outbound=tuple(networks),  # type: ignore[arg-type]
    )
    text = re.sub(r'comment "[a-z\' ]+"', "", render(rules))
    assert re.fullmatch(r"[a-z0-9_{}()|@;:,.=!&\-/\" \n]+", text)
    assert text.count("{") == text.count("}")
    assert 22 in own_ports(rules)


def test_the_rules_follow_the_configuration() -> None:
    parsed = config.parse(
        """
istiod: ["a:1"]
workloads:
  - {service: a, ports: [{name: http, port: 8080}]}
  - {service: b, user: bob, ports: [{name: tcp, port: 9000}]}
capture: {excludeInboundPorts: [5432], excludeOutboundCIDRs: [10.9.0.0/16], excludeOutboundUsers: [dns]}
"""
    )
    rules = rules_for(parsed, {"bob": 1001, "dns": 99}, (0, 990))
    assert rules.agent_uids == (990,)
    assert rules.workloads[1] == WorkloadRules(15101, 15106, 15153, 1001, (9000,))
    assert rules.exclude_outbound_uids == (99,)
    assert 15021 in own_ports(rules)
