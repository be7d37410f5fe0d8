"""Beside others who have rules: docker's published ports, host firewalls, strangers on the proxy's ports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.netns

AGENT = """
istiod: ["10.99.0.2:15012"]
workloads: [{service: reviews, ports: [{name: http, port: 9080}]}]
"""
DOCKER = """table ip docker {
  chain published {
    type nat hook prerouting priority -100; policy accept;
    tcp dport { 8080, 9080 } dnat to 10.99.0.1:7777
  }
}"""
FIREWALL = """table inet fw {
  chain input {
    type filter hook input priority 0; policy drop;
    ct state established,related accept
    iif lo accept
    tcp dport { PORTS } accept
    icmp type echo-request accept
    icmpv6 type { nd-neighbor-solicit, nd-neighbor-advert, nd-router-advert } accept
  }
}"""


def load(host: Any, rules: str) -> None:
    subprocess.run(host.inside("nft", "-f", "-"), input=rules, text=True, check=True)


@pytest.mark.parametrize("first", ["docker", "agent"])
def test_declared_ports_are_captured_and_other_published_ports_are_dockers(
    hosts: Any, tmp_path: Path, first: str
) -> None:
    host, peer = hosts
    host.serve("15006", "7777")
    if first == "docker":
        load(host, DOCKER)
    host.hold(AGENT, tmp_path)
    if first == "agent":
        load(host, DOCKER)
    assert peer.call("10.99.0.1", 9080) == "15006 10.99.0.1 9080", "no plain call gets past the policies"
    assert peer.call("10.99.0.1", 8080) == "7777 10.99.0.1 8080"


def hostmesh_agent(host: Any, tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    config = tmp_path / "agent.yaml"
    config.write_text(yaml.safe_dump({**yaml.safe_load(AGENT), "runDir": str(tmp_path / "run")}))
    command = (str(Path(sys.executable).parent / "hostmesh-agent"), *arguments, "-c", str(config))
    return subprocess.run(host.inside(*command), capture_output=True, text=True, timeout=30, check=False)


def test_the_check_names_a_firewall_that_drops_what_is_redirected_and_the_rule_it_needs(
    hosts: Any, tmp_path: Path
) -> None:
    host, peer = hosts
    load(host, FIREWALL.replace("PORTS", "22, 9080"))
    checked = hostmesh_agent(host, tmp_path, "capture", "check")
    said = " ".join(checked.stdout.split())
    assert "inet fw input drops redirected connections" in said
    assert "add `tcp dport 15006 ct status dnat accept`" in said
    assert checked.returncode == 1
    # The rule is enough, and opens nothing but the declared ports.
    host.run("nft", "add rule inet fw input tcp dport 15006 ct status dnat accept")
    host.serve("15006", "9080", "5432")
    host.hold(AGENT, tmp_path)
    assert peer.call("10.99.0.1", 9080) == "15006 10.99.0.1 9080"
    with pytest.raises((AssertionError, subprocess.TimeoutExpired)):
        peer.call("10.99.0.1", 5432)
    checked = hostmesh_agent(host, tmp_path, "capture", "check")
    assert checked.stderr == ""
    assert "table inet hostmesh exists" in " ".join(checked.stdout.split())
    assert "no filter chain drops what is redirected" in " ".join(checked.stdout.split())


def test_the_check_says_when_mesh_names_have_no_route(hosts: Any, tmp_path: Path) -> None:
    host, _ = hosts
    checked = hostmesh_agent(host, tmp_path, "capture", "check")
    assert "ip route add 240.240.0.0/16 dev INTERFACE" in " ".join(checked.stdout.split())
    assert checked.returncode == 1
    host.run("ip", "route", "add", "240.240.0.0/16", "dev", "wire")
    checked = hostmesh_agent(host, tmp_path, "capture", "check")
    assert "240.240.0.0/16) have a route" in " ".join(checked.stdout.split())
    host.serve("15001")
    host.hold(AGENT, tmp_path)
    assert host.call("240.240.0.5", 80) == "15001 240.240.0.5 80", "the route that it named is enough"


def test_capture_by_hand_brings_no_traffic_to_nobody_or_to_a_stranger(hosts: Any, tmp_path: Path) -> None:
    host, _ = hosts
    refused = hostmesh_agent(host, tmp_path, "capture", "up")
    assert refused.returncode == 1
    assert "nothing listens on port 15001" in refused.stderr
    assert "hostmesh" not in host.tables()
    stranger = (
        ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "--"] if not host.rootless else []
    )
    if stranger:
        tool = str(Path(__file__).with_name("traffic.py"))
        host.start(*stranger, sys.executable, tool, "serve", "15001", "15006")
        refused = hostmesh_agent(host, tmp_path, "capture", "up")
        assert "port 15001 is listened on by user 1000" in refused.stderr
