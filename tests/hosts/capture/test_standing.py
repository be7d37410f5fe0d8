"""Connections in progress: rules that come and go, by order or by a kill, leave them alone."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest

pytestmark = pytest.mark.netns

AGENT = """
istiod: ["10.99.0.2:15012"]
workloads: [{service: reviews, ports: [{name: tcp, port: 9080}]}]
"""
EVERY_PORT = AGENT + 'capture: {includeInboundPorts: "*"}\n'
TOOL = Path(__file__).with_name("standing.py")
KEEPER = "inet hm-keeper"
STATEFUL = """table inet somebody {
  chain established {
    type filter hook input priority 0; policy accept;
    ct state established accept
  }
  chain nat {
    type nat hook output priority -100; policy accept;
  }
}"""


class Talk:
    """One connection from a host."""

    def __init__(self, stack: ExitStack, host: Any, address: str, port: int) -> None:
        command = host.inside(sys.executable, str(TOOL), "talk", address, str(port))
        self.process = Popen(command, stdin=PIPE, stdout=PIPE, text=True, bufsize=1)
        stack.callback(self.end)
        assert self.read() == "ready"

    def says(self, word: str) -> str:
        """What comes back for a word."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        return self.read()

    def read(self) -> str:
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], 5)[0]:
            return "nothing within 5 s"
        return self.process.stdout.readline().strip()

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def echo(host: Any, *ports: int) -> None:
    host.start(sys.executable, str(TOOL), "echo", *map(str, ports))


@pytest.mark.parametrize("tracked", [False, True], ids=["first use of conntrack", "beside another firewall"])
def test_connections_that_stood_before_the_rules_go_on(
    hosts: Any, tmp_path: Path, stack: ExitStack, tracked: bool
) -> None:
    host, peer = hosts
    if tracked:
        subprocess.run(host.inside("nft", "-f", "-"), input=STATEFUL, text=True, check=True)
    echo(host, 22, 7001, 15001, 15006)
    echo(peer, 22, 7002)
    standing = [
        Talk(stack, host, "10.99.0.2", 7002),
        Talk(stack, host, "fd99::2", 7002),
        Talk(stack, host, "10.99.0.2", 22),
        Talk(stack, peer, "10.99.0.1", 7001),
        Talk(stack, peer, "fd99::1", 22),
    ]
    assert [one.says("before") for one in standing] == ["before"] * 5
    host.hold(EVERY_PORT, tmp_path)
    assert [one.says("after") for one in standing] == ["after"] * 5


def redirected(hosts: Any, tmp_path: Path, stack: ExitStack) -> tuple[Popen[str], int, list[Talk]]:
    """The process that holds the rules, its worker, and connections through that."""
    host, peer = hosts
    echo(peer, 7002)
    echo(host, 9080)
    config = tmp_path / "agent.yaml"
    config.write_text(AGENT)
    holder = host.start(sys.executable, str(TOOL), "relay", str(config))
    worker = int(holder.stdout.readline())
    stack.callback(os.kill, worker, signal.SIGKILL)
    talks = [
        Talk(stack, host, "10.99.0.2", 7002),
        Talk(stack, host, "fd99::2", 7002),
        Talk(stack, peer, "10.99.0.1", 9080),
    ]
    assert [one.says("through the proxy") for one in talks] == ["through the proxy"] * 3
    counted = host.run("nft", "list", "table", "inet", "hostmesh")
    assert counted.count("counter packets 1 ") + counted.count("counter packets 2 ") >= 2, counted
    return holder, worker, talks


def test_redirected_connections_outlive_a_killed_agent_as_long_as_its_workers(
    hosts: Any, tmp_path: Path, stack: ExitStack
) -> None:
    host, _ = hosts
    holder, worker, talks = redirected(hosts, tmp_path, stack)
    holder.kill()
    holder.wait()
    assert "table inet hostmesh\n" not in host.tables()
    assert KEEPER in host.tables()
    assert [one.says("still") for one in talks] == ["still"] * 3
    descriptor = os.pidfd_open(worker)
    os.kill(worker, signal.SIGKILL)
    select.select([descriptor], [], [], 5)
    os.close(descriptor)
    assert KEEPER not in host.tables(), "the keeper ends with the last worker"
