"""DNS on hosts as they are: local resolvers, split zones, daemons that ask for everybody, sockets that are kept."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

from tests.hosts.lab.namespaces import has_other_users

pytestmark = pytest.mark.netns

AGENT = """
istiod: ["10.99.0.2:15012"]
workloads: [{service: reviews, ports: [{name: http, port: 9080}]}]
"""
WITH_USER = """
istiod: ["10.99.0.2:15012"]
workloads: [{service: reviews, user: 1000, ports: [{name: http, port: 9080}]}]
"""
TOOL = Path(__file__).with_name("resolving.py")
OTHERS = (
    "add table inet other; add chain inet other nat { type nat hook postrouting priority 100; };"
    "add rule inet other nat ip saddr 172.17.0.0/16 masquerade; add chain inet other in { type filter hook input priority 0; };"
    "add rule inet other in ct state established accept"
)
UPSTREAM, ELSEWHERE, LOCAL = "192.0.2.7", "192.0.2.8", "192.0.2.99"


def start(host: Any, *command: str) -> Popen[str]:
    """Start a process that prints `ready`, with a standard input; ended with the test."""
    process = Popen(host.inside(*command), stdin=PIPE, stdout=PIPE, text=True, bufsize=1)

    def end() -> None:
        process.kill()
        process.communicate()

    host.stack.callback(end)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def tool(host: Any, *arguments: str) -> Popen[str]:
    return start(host, sys.executable, str(TOOL), *arguments)


def agent(host: Any, tmp_path: Path, text: str = AGENT, *search: str) -> Popen[str]:
    config = tmp_path / "agent.yaml"
    config.write_text(text)
    return tool(host, "agent", str(config), "10.99.0.2", *search)


def dig(host: Any, *arguments: str) -> list[str]:
    return str(host.run("dig", "+short", "+tries=1", "+time=3", *arguments)).split()


@pytest.fixture
def host(hosts: Any) -> Iterator[Any]:
    """A host with a name server on the wire."""
    host, peer = hosts
    tool(peer, "server", "10.99.0.2", UPSTREAM)
    yield host


def dnsmasq(host: Any, tmp_path: Path, address: str) -> None:
    """A caching resolver on the host: Consul's zone goes to Consul, the rest to the wire."""
    tool(host, "server", "127.0.0.1", LOCAL, "8600")
    command = [
        "dnsmasq", "--keep-in-foreground", "--user=root", "--group=root", "--pid-file=", "--no-resolv", "--no-hosts",
        "--conf-file=/dev/null", f"--listen-address={address}", "--bind-interfaces", "--server=10.99.0.2",
        "--server=/consul/127.0.0.1#8600", "--log-facility=-",
    ]  # fmt: skip
    process = Popen(host.inside(*command), stderr=PIPE, text=True)

    def end() -> None:
        process.kill()
        process.communicate()

    host.stack.callback(end)
    assert process.stderr is not None
    for line in process.stderr:
        if "using nameserver 10.99.0.2" in line:
            return
    raise AssertionError("dnsmasq did not start")


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.53"], ids=["dnsmasq", "a stub as resolved's"])
def test_a_resolver_of_the_host_keeps_its_zones_and_learns_the_meshs_names(
    host: Any, tmp_path: Path, address: str
) -> None:
    dnsmasq(host, tmp_path, address)
    agent(host, tmp_path)
    assert dig(host, f"@{address}", "outside.example") == [UPSTREAM]
    assert dig(host, f"@{address}", "web.service.consul") == [LOCAL]
    assert dig(host, f"@{address}", "reviews") == ["240.240.0.1"]
    assert dig(host, "+tcp", f"@{address}", "web.service.consul") == [LOCAL]


def test_a_question_goes_on_to_the_server_that_was_asked(host: Any, hosts: Any, tmp_path: Path) -> None:
    _, peer = hosts
    peer.run("ip", "address", "add", "10.99.0.3/24", "dev", "wire")
    tool(peer, "server", "10.99.0.3", ELSEWHERE)
    agent(host, tmp_path)
    assert dig(host, "@10.99.0.3", "outside.example") == [ELSEWHERE]
    assert dig(host, "@10.99.0.2", "outside.example") == [UPSTREAM]
    assert dig(host, "+tcp", "@10.99.0.3", "outside.example") == [ELSEWHERE]
    assert dig(host, "@10.99.0.3", "reviews") == ["240.240.0.1"]


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_resolver_that_keeps_its_socket_is_served_as_one_with_a_fresh_one(
    host: Any, tmp_path: Path, how: str
) -> None:
    # Somebody else's rules keep tracking and translation alive when ours are gone, as on a host with docker.
    host.run("nft", OTHERS)
    client = tool(host, "keep", "10.99.0.2")
    assert client.stdin is not None
    assert client.stdout is not None

    def ask(name: str) -> str:
        client.stdin.write(f"{name}\n")
        return client.stdout.readline().strip()

    assert ask("outside.example") == UPSTREAM
    holder = agent(host, tmp_path)
    assert ask("reviews.default.svc.cluster.local") == "240.240.0.1"
    assert ask("outside.example") == UPSTREAM
    if how == "killed":
        holder.send_signal(signal.SIGKILL)
    else:
        assert holder.stdin is not None
        holder.stdin.write("\n")
    holder.wait(10)
    assert ask("outside.example") == UPSTREAM
    assert ask("reviews.default.svc.cluster.local") == "nothing"
    agent(host, tmp_path)
    assert ask("reviews.default.svc.cluster.local") == "240.240.0.1"


def test_the_meshs_names_come_before_a_wildcard_of_the_search_domain(host: Any, tmp_path: Path) -> None:
    agent(host, tmp_path, AGENT, "corp.example")
    assert dig(host, "@10.99.0.2", "reviews.corp.example") == ["240.240.0.1"], "what the C library asks first"
    assert dig(host, "@10.99.0.2", "reviews.default.corp.example") == ["240.240.0.1"]
    assert dig(host, "@10.99.0.2", "other.corp.example") == [UPSTREAM]


def test_a_daemon_that_resolves_for_every_user_gets_the_meshs_own_names(host: Any, tmp_path: Path) -> None:
    assert has_other_users(), "several users need root, or uidmap and a range of ids"
    agent(host, tmp_path, WITH_USER)

    def as_user(uid: int, name: str) -> list[str]:
        return dig_as(host, uid, "@10.99.0.2", name)

    assert as_user(1000, "reviews") == ["240.240.0.1"]
    assert as_user(0, "reviews") == ["240.240.0.1"], "nscd and nss-resolve ask as users of their own"
    # An outside name with a virtual address is one only for those whose connections are captured.
    assert as_user(1000, "api.example") == ["240.240.0.2"]
    assert as_user(0, "api.example") == [UPSTREAM]
    assert as_user(0, "outside.example") == [UPSTREAM]


def dig_as(host: Any, uid: int, *arguments: str) -> list[str]:
    user = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
    return str(host.run(*user, "dig", "+short", "+tries=1", "+time=3", *arguments)).split()
