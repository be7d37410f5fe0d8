"""Two hosts on a wire, as network namespaces: `host` (where the agent is) and `peer` (somebody else)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from subprocess import PIPE, Popen

import pytest

from tests.hosts.lab.namespaces import user_namespace

ROOT = Path(__file__).parents[3]
TOOL = Path(__file__).with_name("traffic.py")


@dataclass
class Host:
    """A network namespace, held by a sleeping process."""

    pid: int
    stack: ExitStack
    rootless: bool

    def inside(self, *command: str) -> list[str]:
        user = ["-U", "--preserve-credentials"] if self.rootless else []
        return ["nsenter", "-t", str(self.pid), *user, "-n", *command]

    def run(self, *command: str) -> str:
        done = subprocess.run(self.inside(*command), capture_output=True, text=True, timeout=20, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *command: str) -> Popen[str]:
        """Start a process that prints a line when it is ready; ended with the test."""
        process = Popen(self.inside(*command), stdout=PIPE, text=True, cwd=ROOT)
        self.stack.callback(_end, process)
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        return process

    def serve(self, *ports: str) -> None:
        self.start(sys.executable, str(TOOL), "serve", *ports)

    def hold(self, agent_yaml: str, tmp: Path, *extra: str) -> Popen[str]:
        """Hold the rules of a configuration; the process's end must be their end."""
        path = tmp / "agent.yaml"
        path.write_text(agent_yaml)
        return self.start(sys.executable, str(TOOL), "hold", str(path), *extra)

    def call(self, address: str, port: int, *options: str) -> str:
        """`PORT ORIGINAL` as the server that got the connection says, or `refused`."""
        return self.run(sys.executable, str(TOOL), "call", address, str(port), *options).strip()

    def ask(self, address: str) -> str:
        """What a UDP datagram to port 53 of the address comes back with, and from where."""
        return self.run(sys.executable, str(TOOL), "ask", address).strip()

    def tables(self) -> str:
        return self.run("nft", "list", "tables")


def _end(process: Popen[str]) -> None:
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _namespace(stack: ExitStack, prefix: list[str], *, user: bool) -> int:
    flags = user_namespace() if user else []
    process = Popen(
        [*prefix, "unshare", *flags, "--net", "sh", "-c", "echo $$; exec sleep 600"], stdout=PIPE, text=True
    )
    stack.callback(_end, process)
    assert process.stdout is not None
    return int(process.stdout.readline())


@pytest.fixture
def hosts() -> Iterator[tuple[Host, Host]]:
    rootless = os.geteuid() != 0
    with ExitStack() as stack:
        host = Host(_namespace(stack, [], user=rootless), stack, rootless)
        peer = Host(_namespace(stack, host.inside() if rootless else [], user=False), stack, rootless)
        host.run("ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", str(peer.pid))
        for one, number in ((host, 1), (peer, 2)):
            one.run("ip", "link", "set", "lo", "up")
            one.run("ip", "address", "add", f"10.99.0.{number}/24", "dev", "wire")
            one.run("ip", "address", "add", f"fd99::{number}/64", "dev", "wire", "nodad")
            one.run("ip", "link", "set", "wire", "up")
        yield host, peer
