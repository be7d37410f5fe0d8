"""The real rules in a real kernel: what is captured, what is not, and that they die with their holder."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.lab.namespaces import has_other_users

pytestmark = pytest.mark.netns

AGENT = """
istiod: ["10.99.0.2:15012"]
workloads: [{service: reviews, ports: [{name: http, port: 9080}]}]
capture: {excludeInboundPorts: [8081], excludeOutboundCIDRs: [10.99.7.0/24]}
"""
TWO = """
istiod: ["10.99.0.2:15012"]
workloads:
  - {service: a, user: 1001, ports: [{name: http, port: 9080}]}
  - {service: b, user: 1002, ports: [{name: http, port: 7000}]}
"""
MARK = str(0x539)
TOOL = Path(__file__).with_name("traffic.py")


def eventually_gone(host: Any) -> None:
    deadline = time.monotonic() + 5
    while "hostmesh" in host.tables():
        assert time.monotonic() < deadline, "the table outlived its holder"


def test_outbound_calls_reach_the_proxy_with_their_true_destination(hosts: Any, tmp_path: Path) -> None:
    host, peer = hosts
    host.serve("15001", "15006", "9080")
    peer.serve("80", "22")
    assert host.call("10.99.0.2", 80).startswith("80 ")
    host.hold(AGENT, tmp_path)
    assert host.call("10.99.0.2", 80) == "15001 10.99.0.2 80"
    assert host.call("fd99::2", 80) == "15001 fd99::2 80"
    assert host.call("10.99.0.2", 80, "--mark", MARK).startswith("80 ")
    assert host.call("fd99::2", 80, "--mark", MARK).startswith("80 ")
    assert host.call("10.99.0.2", 22).startswith("22 ")


def test_inbound_calls_reach_the_proxy_at_declared_ports_only(hosts: Any, tmp_path: Path) -> None:
    host, peer = hosts
    host.serve("15001", "15006", "15021", "9080", "22", "8081", "9999")
    host.hold(AGENT, tmp_path)
    assert peer.call("10.99.0.1", 9080) == "15006 10.99.0.1 9080"
    assert peer.call("fd99::1", 9080) == "15006 fd99::1 9080"
    for port in (22, 8081, 9999, 15021):
        assert peer.call("10.99.0.1", port).startswith(f"{port} ")
    assert peer.call("10.99.0.1", 15006) == "refused"
    assert peer.call("fd99::1", 15001) == "refused"


def test_every_inbound_port_is_captured_by_choice(hosts: Any, tmp_path: Path) -> None:
    host, peer = hosts
    host.serve("15006", "9080", "22", "8081", "9999")
    host.hold(AGENT.replace("capture: {", 'capture: {includeInboundPorts: "*", '), tmp_path)
    assert peer.call("10.99.0.1", 9999) == "15006 10.99.0.1 9999"
    assert peer.call("fd99::1", 9080) == "15006 fd99::1 9080"
    for port in (22, 8081):
        assert peer.call("10.99.0.1", port).startswith(f"{port} ")


def test_own_addresses_and_loopback(hosts: Any, tmp_path: Path) -> None:
    host, _ = hosts
    host.serve("15001", "15006", "9080")
    host.hold(AGENT, tmp_path)
    assert host.call("127.0.0.1", 9080).startswith("9080 ")
    assert host.call("10.99.0.1", 9080).startswith("9080 ")
    assert host.call("127.0.0.1", 9080, "--mark", MARK).startswith("9080 ")
    # The proxy calling an own endpoint goes through the inbound side; its hop to the application does not.
    assert host.call("10.99.0.1", 9080, "--mark", MARK) == "15006 10.99.0.1 9080"
    assert host.call("fd99::1", 9080, "--mark", MARK) == "15006 fd99::1 9080"
    assert host.call("10.99.0.1", 9080, "--mark", MARK, "--source", "127.0.0.6").startswith("9080 ")
    assert host.call("fd99::1", 9080, "--mark", MARK, "--source", "::1").startswith("9080 ")
    assert host.call("10.99.0.1", 9080, "--mark", str(0x53A)).startswith("9080 ")


def test_dns_is_taken_wherever_it_was_going_and_answered_from_there(hosts: Any, tmp_path: Path) -> None:
    host, _ = hosts
    host.serve("udp/15053", "15053")
    host.hold(AGENT, tmp_path)
    for address in ("127.0.0.53", "127.0.0.1", "10.99.0.2", "fd99::2", "::1"):
        assert host.ask(address) == "dns:question"
    assert host.call("127.0.0.53", 53) == "15053 127.0.0.53 53"
    assert host.call("10.99.0.2", 53) == "15053 10.99.0.2 53"


def test_a_killed_holder_leaves_nothing_even_with_children_alive(hosts: Any, tmp_path: Path) -> None:
    host, peer = hosts
    peer.serve("80")
    holder = host.hold(AGENT, tmp_path, "--child")
    assert host.call("10.99.0.2", 80) == "refused"
    holder.kill()
    holder.wait()
    eventually_gone(host)
    assert host.call("10.99.0.2", 80).startswith("80 ")


def test_nobody_else_can_change_the_table_and_down_removes_it(hosts: Any, tmp_path: Path) -> None:
    host, _ = hosts
    holder = host.hold(AGENT, tmp_path)
    with pytest.raises(AssertionError, match="not permitted"):
        host.run("nft", "delete", "table", "inet", "hostmesh")
    (tmp_path / "second").mkdir()
    with pytest.raises(AssertionError):
        host.hold(AGENT, tmp_path / "second")
    holder.terminate()
    assert holder.stdout is not None
    assert holder.stdout.readline() == "down\n"
    assert "hostmesh" not in host.tables()


def test_two_workloads_are_told_apart_by_their_users(hosts: Any, tmp_path: Path) -> None:
    host, peer = hosts
    assert has_other_users(), (
        "several users need root, or uidmap and a range of ids in /etc/subuid and /etc/subgid"
    )
    host.serve("15001", "15006", "15101", "15106", "9080", "7000", "15053", "15153")
    peer.serve("80")
    host.hold(TWO, tmp_path, "--agent-uid", "990")
    assert host.call("10.99.0.2", 80, "--uid", "1001") == "15001 10.99.0.2 80"
    assert host.call("10.99.0.2", 80, "--uid", "1002") == "15101 10.99.0.2 80"
    assert host.call("10.99.0.2", 80).startswith("80 "), "root belongs to no workload"
    assert host.call("10.99.0.2", 80, "--uid", "990").startswith("80 "), "the agent's own user"
    assert host.call("127.0.0.53", 53, "--uid", "1002") == "15153 127.0.0.53 53"
    assert peer.call("10.99.0.1", 7000) == "15106 10.99.0.1 7000"
    assert peer.call("10.99.0.1", 9080) == "15006 10.99.0.1 9080"
    # Calling the neighbour by the host's own address is not a way around its policies.
    assert host.call("10.99.0.1", 7000, "--uid", "1001") == "15001 10.99.0.1 7000"
    assert host.call("10.99.0.1", 7000, "--uid", "990") == "15106 10.99.0.1 7000"


def test_names_resolve_for_whom_ever_they_are_asked_by_udp_and_tcp(hosts: Any, tmp_path: Path) -> None:
    host, peer = hosts
    config = tmp_path / "agent.yaml"
    config.write_text(AGENT)
    peer.start(sys.executable, str(TOOL), "resolve", "10.99.0.2")
    host.start(sys.executable, str(TOOL), "names", str(config), "10.99.0.2")

    def dig(*arguments: str) -> list[str]:
        return str(host.run("dig", "+short", "+tries=1", "+time=5", *arguments)).split()

    for server in ("10.99.0.2", "127.0.0.53", "fd99::2", "::1"):
        assert dig(f"@{server}", "reviews") == ["240.240.0.1"]
        assert dig(f"@{server}", "reviews.default.svc.cluster.local", "AAAA") == ["2001:2::1"]
        assert dig(f"@{server}", "+tcp", "reviews") == ["240.240.0.1"]
    assert dig("@10.99.0.2", "elsewhere.example") == ["192.0.2.7"]
    assert dig("@10.99.0.2", "+tcp", "elsewhere.example") == ["192.0.2.7"]
    assert dig("@10.99.0.2", "long.example") == ["192.0.2.7"], "truncated over UDP, then asked by TCP"
    assert "status: NXDOMAIN" in host.run("dig", "@10.99.0.2", "nobody.default.svc.cluster.local")
    assert "status: NOERROR" in host.run("dig", "@10.99.0.2", "reviews", "MX")
