"""A real Consul server for tests: development mode, ports and data of its own, ended by its own process id.

Rule: no Consul on the machine is a failure with the way out in its message, never a skip.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from tests.ports import free_port


class ConsulProcess:
    """One `consul agent -dev`; `stop` and `start` keep its address, not its (in-memory) state."""

    def __init__(self, directory: Path) -> None:
        self._binary = shutil.which("consul")
        if self._binary is None:
            raise AssertionError("no `consul` on PATH: run .ci/install-consul (as root or with sudo)")
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._ports = [free_port() for _ in range(3)]
        self._settings: dict[str, Any] = {}
        self.token = ""
        self.address = f"http://127.0.0.1:{self._ports[0]}"

    def configure(self, settings: dict[str, Any]) -> None:
        """Settings as Consul's configuration file has them, for the next start."""
        self._settings = settings

    def start(self) -> None:
        http, serf, server = self._ports
        data = self._directory / "data"
        data.mkdir(parents=True, exist_ok=True)
        configuration = self._directory / "settings.json"
        configuration.write_text(json.dumps(self._settings))
        log = (self._directory / "consul.log").open("ab")
        with log:
            self._process = subprocess.Popen(
                [
                    *(str(self._binary), "agent", "-dev", "-data-dir", str(data)),
                    *("-config-file", str(configuration)),
                    *("-bind", "127.0.0.1", "-client", "127.0.0.1", "-log-level", "warn"),
                    *("-http-port", str(http), "-dns-port", "-1", "-grpc-port", "-1"),
                    *("-serf-lan-port", str(serf), "-serf-wan-port", "-1", "-server-port", str(server)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 30
        while not self._has_leader():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = (self._directory / "consul.log").read_text(errors="replace")
                raise AssertionError(f"consul did not start:\n{text[-2000:]}")
            time.sleep(0.05)  # a poll with a deadline: another process's start has no event to wait for

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def ask(self, path: str) -> Any:
        """GET `path` of the HTTP API, past our own client."""
        headers = {"X-Consul-Token": self.token} if self.token else {}
        request = urllib.request.Request(self.address + path, headers=headers)
        with urllib.request.urlopen(request, timeout=5) as response:
            return json.load(response)

    def _has_leader(self) -> bool:
        try:
            # A leader alone is not enough: the server must have registered itself before writes are served.
            return bool(self.ask("/v1/status/leader")) and bool(self.ask("/v1/catalog/nodes"))
        except OSError:
            return False
