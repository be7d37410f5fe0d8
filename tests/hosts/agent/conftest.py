"""A real istiod and real agents on loopback ports of their own, without capture."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from agent.host.admin import local_socket
from tests.hosts.agent.held import of_agent
from tests.leftovers import Leftovers
from tests.ports import free_port

ROOT = Path(__file__).parents[3]
BIN = Path(sys.executable).parent


def eventually(what: str, condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.05)
    return value


class Process:
    """A program with its output in a file."""

    def __init__(self, stack: ExitStack, log: Path, *command: str) -> None:
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(command, stdout=output, stderr=output, cwd=ROOT)
        stack.callback(self.kill)

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8")

    def terminate(self, seconds: float = 15.0) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


class Mesh:
    """istiod with its state directory; agents join it."""

    def __init__(self, directory: Path, stack: ExitStack, **settings: Any) -> None:
        """`settings`: further top-level settings of istiod.yaml."""
        self.directory, self.stack = directory, stack
        self.xds_port = free_port()
        self.state = directory / "istiod"
        config = {
            "stateDir": str(self.state),
            "registry": {"sqlite": str(self.state / "registry.db")},
            "listen": {
                "xds": f"127.0.0.1:{self.xds_port}",
                "xdsPlaintext": "127.0.0.1:0",
                "admin": f"127.0.0.1:{free_port()}",
                "monitoring": "127.0.0.1:0",
            },
            **settings,
        }
        self.config = directory / "istiod.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.istiod: Process
        self.agents: list[Agent] = []
        self.start_istiod()

    def start_istiod(self) -> None:
        log = self.directory / f"istiod-{time.monotonic_ns()}.log"
        self.istiod = Process(
            self.stack, log, str(BIN / "hostmesh-istiod"), "run", "--config", str(self.config)
        )
        eventually("istiod is ready", lambda: re.search(r" ready ", self.istiod.text()))

    def meshctl(self, *arguments: str) -> str:
        context = str(self.state / "admin-context.yaml")
        done = subprocess.run(
            [str(BIN / "meshctl"), "--context", context, *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def workloads(self) -> list[dict[str, Any]]:
        found = json.loads(self.meshctl("workload", "list", "-o", "json"))
        return list(found.get("items", found)) if isinstance(found, dict) else list(found)

    def agent(self, name: str, workload: dict[str, Any], **more: Any) -> Agent:
        self.agents.append(Agent(self, name, workload, more))
        return self.agents[-1]

    def check_leftovers(self) -> None:
        """Every agent that still serves holds what it held when it became ready."""
        for agent in self.agents:
            agent.check_leftovers()


class Agent:
    """One agent: its configuration, its processes over time."""

    def __init__(self, mesh: Mesh, name: str, workload: dict[str, Any], more: dict[str, Any]) -> None:
        self.mesh, self.name = mesh, name
        self.directory = mesh.directory / name
        self.directory.mkdir()
        names = ("admin", "outbound", "inbound", "metrics", "readiness", "dns")
        self.ports = {each: free_port() for each in names}
        self.token = self.directory / "token"
        namespace = workload.get("namespace", "default")
        account = workload.get("serviceAccount", "default")
        arguments = ("--namespace", namespace, "--service-account", account, "--service", workload["service"])
        self.token.write_text(mesh.meshctl("token", "create", *arguments))
        config = {
            "istiod": [f"127.0.0.1:{mesh.xds_port}"],
            "joinToken": {"file": str(self.token)},
            "stateDir": str(self.directory / "state"),
            "runDir": str(self.directory / "run"),
            "addresses": ["127.0.0.1"],
            "workloads": [workload],
            "capture": {"enabled": False},
            "proxy": {"workers": 1, "drainSeconds": 2, "ports": self.ports},
            **more,
        }
        self.config = self.directory / "agent.yaml"
        self.config.write_text(yaml.safe_dump(config))
        self.process: Process
        self._left: Leftovers | None = None

    def start(self) -> Agent:
        self._left = None
        log = self.directory / f"agent-{time.monotonic_ns()}.log"
        command = (str(BIN / "hostmesh-agent"), "run", "--config", str(self.config))
        self.process = Process(self.mesh.stack, log, *command)
        return self

    def status(self) -> dict[str, Any] | None:
        """What `hostmesh-agent status -o json` prints, asked directly; None while no agent runs."""
        try:
            found: dict[str, Any] = trio.run(
                local_socket.ask, self.directory / "run" / "agent.sock", "status"
            )
        except (local_socket.NotRunning, local_socket.CommandError):
            return None
        return found

    def ready(self) -> Agent:
        eventually(f"{self.name} is ready", lambda: (self.status() or {}).get("ready"), 30)
        if self._left is None:
            pid, admin = self.process.process.pid, self.ports["admin"]
            self._left = Leftovers(lambda: of_agent(pid, admin, self.mesh.xds_port))
        return self

    def check_leftovers(self) -> None:
        """See tests.leftovers; nothing where it does not serve any more."""
        if self._left is not None and (self.status() or {}).get("ready"):
            self._left.check()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with ExitStack() as stack:
        mesh = Mesh(tmp_path, stack)
        yield mesh
        mesh.check_leftovers()
