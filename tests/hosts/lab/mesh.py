"""A running mesh on the lab's hosts: istiod, agents and plain applications, all as real processes.

Everything is started and steered as an operator would: configuration files, join tokens, meshctl.
Not for: judging what it does (tests/hosts/demo and the tests do).
"""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.hosts.lab.namespaces import Host, Lab, python

BIN = Path(python()).parent
APPS = Path(__file__).parents[1] / "apps"
APP_UID, AGENT_UID = 1000, 1001
PORT = 9080
SAMPLES = Path(__file__).parents[3] / ".." / "shared" / "cases" / "istio-samples"


def wait_for(what: str, condition: Callable[[], Any], seconds: float = 30.0, pause: float = 0.02) -> Any:
    """Poll until the condition is true and return its value; TimeoutError names what was waited for."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds:g} s for {what}")
        time.sleep(pause)
    return value


@dataclass
class Workload:
    """One application with its host and, when enrolled, its agent."""

    host: Host
    service: str
    version: str
    application: subprocess.Popen[bytes]
    agent: subprocess.Popen[bytes] | None = None
    folder: Path = field(default_factory=Path)


class Mesh:
    """istiod on its own host and workloads on theirs."""

    def __init__(
        self, lab: Lab, *, registry: str = "sqlite", mesh_config: dict[str, Any] | None = None
    ) -> None:
        self.lab, self.registry = lab, registry
        self.folder = lab.folder
        self.workloads: dict[str, Workload] = {}
        with (self.folder / "resolver.log").open("ab") as log:
            self._resolver = subprocess.Popen(
                [python(), str(APPS / "resolver.py"), "10.77.0.1"], stdout=log, stderr=log
            )
        self.istiod_host = lab.add("istiod")
        self.state = self.folder / "istiod" / "state"
        self.consul: subprocess.Popen[bytes] | None = None
        if registry == "consul":
            self.consul = self._start_consul()
        self._config = self._write_istiod_config(mesh_config or {})
        self.istiod = self.start_istiod()

    def _start_consul(self) -> subprocess.Popen[bytes]:
        process = self.istiod_host.start(
            "consul", "agent", "-dev", "-log-level=warn", "-bind=127.0.0.1", "-client=127.0.0.1",
            log=self.folder / "consul.log",
        )  # fmt: skip
        leader = ("curl", "-sf", "http://127.0.0.1:8500/v1/status/leader")
        wait_for("Consul's leader", lambda: ":" in self.istiod_host.run(*leader, check=False).stdout)
        return process

    def _write_istiod_config(self, mesh_config: dict[str, Any]) -> Path:
        registry: dict[str, Any] = {"sqlite": str(self.state / "registry.db")}
        if self.registry == "consul":
            registry = {"consul": {"address": "http://127.0.0.1:8500", "prefix": "hostmesh"}}
        config = {
            "stateDir": str(self.state),
            "registry": registry,
            "listen": {
                "xds": "0.0.0.0:15012", "xdsPlaintext": "127.0.0.1:15010",
                "admin": "127.0.0.1:8443", "monitoring": "127.0.0.1:15014",
            },
            "mesh": {"accessLogFile": "/dev/stdout", **mesh_config},
        }  # fmt: skip
        path = self.folder / "istiod" / "istiod.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return path

    def start_istiod(self) -> subprocess.Popen[bytes]:
        """Start the control plane and wait until it is ready."""
        process = self.istiod_host.start(
            str(BIN / "hostmesh-istiod"), "run", "--config", str(self._config), log=self.folder / "istiod.log"
        )
        ready = ("curl", "-sf", "-o", "/dev/null", "http://127.0.0.1:15014/ready")
        self._await_ready(
            "istiod", process, lambda: self.istiod_host.run(*ready, check=False).returncode == 0
        )
        return process

    def _await_ready(self, what: str, process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
        def condition() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"{what} ended with {process.returncode}:\n{self.log(what)}")
            return ready()

        try:
            wait_for(f"{what} to be ready", condition)
        except TimeoutError as error:
            raise TimeoutError(f"{error}; its log ends:\n{self.log(what)}") from error

    def log(self, what: str, size: int = 3000) -> str:
        """The end of a process's log."""
        path = self.folder / f"{what}.log"
        return path.read_text(errors="replace")[-size:] if path.exists() else ""

    def meshctl(
        self, *argv: str, stdin: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run meshctl on istiod's host with the admin context that istiod wrote."""
        context = str(self.state / "admin-context.yaml")
        return self.istiod_host.run(
            str(BIN / "meshctl"), "--context", context, *argv, stdin=stdin, check=check
        )

    def apply(self, text: str, *options: str) -> str:
        """Apply resources from a text."""
        return self.meshctl("apply", "-f", "-", *options, stdin=text).stdout

    def apply_sample(self, name: str, *options: str) -> str:
        """Apply one of Istio's samples, unchanged."""
        return self.meshctl("apply", "-f", str((SAMPLES / name).resolve()), *options).stdout

    def run_application(self, name: str, service: str, version: str) -> Workload:
        """A host with a plain web server and nothing else."""
        host = self.lab.add(name)
        application = host.start(
            python(),
            str(APPS / "web.py"),
            service,
            version,
            str(PORT),
            log=self.folder / f"{name}-app.log",
            uid=APP_UID,
        )
        workload = Workload(host, service, version, application, folder=self.folder / name)
        self.workloads[name] = workload
        return workload

    def enrol(self, name: str, **extra: Any) -> Workload:
        """Give the host a join token and start its agent, without waiting for it."""
        workload = self.workloads[name]
        account = f"bookinfo-{workload.service}"
        # Hosts of the lab have an address of each family; istiod is called over IPv4, so the other one is granted.
        token = self.meshctl(
            "token", "create", "--namespace", "default", "--service-account", account,
            "--service", workload.service, "--address", "own", "--address", workload.host.v6,
        ).stdout.strip()  # fmt: skip
        token_file = workload.folder / "join-token"
        token_file.touch(mode=0o600)
        token_file.write_text(token + "\n")
        config = {
            "istiod": [f"{self.istiod_host.v4}:15012"],
            "joinToken": {"file": str(token_file)},
            "locality": "lab/lab-1a",
            "stateDir": str(workload.folder / "state"),
            "runDir": str(workload.folder / "run"),
            "workloads": [
                {
                    "service": workload.service, "namespace": "default", "serviceAccount": account,
                    "labels": {"app": workload.service, "version": workload.version},
                    "ports": [{"name": "http", "port": PORT}],
                    "probe": {"httpGet": {"path": "/health", "port": PORT}, "periodSeconds": 1},
                }
            ],
            "proxy": {"workers": 1, "drainSeconds": 2, "user": AGENT_UID},
            **extra,
        }  # fmt: skip
        path = workload.folder / "agent.yaml"
        path.write_text(yaml.safe_dump(config, sort_keys=False))
        return self.start_agent(name)

    def start_agent(self, name: str) -> Workload:
        """Start the agent of a host that was enrolled, without waiting for it."""
        workload = self.workloads[name]
        path = workload.folder / "agent.yaml"
        workload.agent = workload.host.start(
            str(BIN / "hostmesh-agent"), "run", "--config", str(path), log=self.folder / f"{name}.log"
        )
        return workload

    def await_agent(self, name: str) -> None:
        """Return when the agent says that it is ready (port 15021)."""
        workload = self.workloads[name]
        assert workload.agent is not None
        ready = ("curl", "-sf", "-m", "2", "-o", "/dev/null", "http://127.0.0.1:15021/healthz/ready")
        self._await_ready(
            name, workload.agent, lambda: workload.host.run(*ready, check=False).returncode == 0
        )

    def healthy(self) -> list[dict[str, Any]]:
        """The registry's healthy workloads, as meshctl lists them."""
        listed = json.loads(self.meshctl("workload", "list", "-A", "-o", "json").stdout)
        items = listed.get("items", listed) if isinstance(listed, dict) else listed
        return [item for item in items if str(item.get("health", "")).lower() == "healthy"]

    def curl(self, name: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A plain curl on a workload's host, as the application's user."""
        host = self.lab.hosts[name]
        return host.run("curl", "-sS", "-m", "15", *argv, uid=APP_UID, check=check)

    def versions(self, name: str, url: str, count: int, *argv: str) -> dict[str, int]:
        """How often each version answered `count` calls from a host."""
        out = self.curl(
            name, *argv, "-o", "/dev/null", "-w", "%header{x-version} %{http_code}\n", f"{url}?n=[1-{count}]"
        )
        found: dict[str, int] = {}
        for line in out.stdout.splitlines():
            version, _, status = line.partition(" ")
            key = version if status == "200" else f"HTTP {status}"
            found[key] = found.get(key, 0) + 1
        return found

    def close(self) -> None:
        """End what runs; the namespaces take the rest with them."""
        processes = [w.agent for w in self.workloads.values()] + [
            w.application for w in self.workloads.values()
        ]
        processes += [self.istiod, self.consul, self._resolver]
        alive = [process for process in processes if process is not None and process.poll() is None]
        for process in alive:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + 5
        for process in alive:
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def commands_inside(host: Host, argv: Sequence[str]) -> str:
    """How a person enters a host from outside the lab."""
    return " ".join(host.command(argv))
