"""Processes of a benchmark: the backend, the two proxies, their memory and their end."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType

from bench.bootstraps import Hop, bootstrap

BIN = Path(sys.executable).parent
PEERS = ("envoy", "ours")
_base_ids = itertools.count(os.getpid() % 20000 * 10 + 3)


class BenchError(RuntimeError):
    """A process that does not come up, or ended; the message holds the end of what it printed."""


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Running:
    """A process with its output in a file; ended, with all its children, when the context ends."""

    def __init__(self, name: str, command: list[str], log: Path, admin_port: int = 0) -> None:
        self.name = name
        self._admin_port = admin_port
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_for(self, port: int, seconds: float = 30.0) -> None:
        """Return when the port accepts. Raises BenchError."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return
            if self._process.poll() is not None:
                raise BenchError(f"{self.name} ended at its start:\n{self.output()}")
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name} does not listen on {port}:\n{self.output()}")
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(0.02)

    def output(self) -> str:
        """The end of what it printed."""
        return self._log.read_text(errors="replace")[-3000:]

    def check(self) -> None:
        """Raises BenchError if the process has ended."""
        if self._process.poll() is not None:
            raise BenchError(f"{self.name} ended:\n{self.output()}")

    def tls_versions(self) -> set[str]:
        """What its clients negotiated, as both proxies count it (`listener.*.ssl.versions.*`)."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self._admin_port}/stats", timeout=10) as page:
            return set(re.findall(r"\.ssl\.versions\.(\S+): [1-9]", page.read().decode()))

    def stop(self) -> None:
        """End the process group."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
            try:
                self._process.wait(3)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def tree(self) -> list[int]:
        """The process and all its descendants."""
        found = [self._process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    found.extend(int(child) for child in (task / "children").read_text().split())
        return found

    def memory_mb(self) -> tuple[float, float]:
        """PSS and RSS of the whole tree in MB (10^6 bytes)."""
        pss = rss = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        pss += int(line.split()[1])
                    elif line.startswith("Rss:"):
                        rss += int(line.split()[1])
        return pss * 1024 / 1e6, rss * 1024 / 1e6

    def cpu_seconds(self) -> float:
        """Processor time of the whole tree so far, exact (schedstat), whatever else the machine does."""
        nanoseconds = 0
        for pid in self.tree():
            with contextlib.suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    nanoseconds += int((task / "schedstat").read_text().split()[0])
        return nanoseconds / 1e9


def proxy(peer: str, hop: Hop) -> Running:
    """Start one of PEERS with one worker on the hop's bootstrap."""
    file = hop.folder / f"{peer}-{hop.name}.yaml"
    file.write_text(bootstrap(hop))
    if peer == "envoy":
        command = [
            str(BIN / "envoy"), "-c", str(file), "--base-id", str(next(_base_ids)),
            "--concurrency", "1", "--log-level", "warning",
        ]  # fmt: skip
    else:
        command = [str(BIN / "hostmesh-agent"), "proxy", "--config", str(file), "--workers", "1"]
    return Running(f"{peer} ({hop.name})", command, hop.folder / f"{peer}-{hop.name}.log", hop.admin_port)


_NGINX = """
daemon off; master_process off; worker_processes 1; error_log stderr crit; pid {folder}/nginx.pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; sendfile on; tcp_nopush on;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ default_type text/plain; return 200 "{body}"; }}
    location = /big {{ root {folder}; }}
  }}
}}
"""


def backend(folder: Path) -> tuple[Running, int]:
    """nginx with one worker: 100 bytes on every path, 64 MB on /big. Returns it and its port."""
    nginx = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if nginx is None:
        raise BenchError(
            "nginx is not installed (Debian package nginx-light; `make setup` installs it as root)"
        )
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(folder=folder, port=port, body="x" * 100))
    (folder / "big").write_bytes(bytes(64_000_000))
    return Running("nginx", [nginx, "-c", str(config), "-e", "stderr"], folder / "nginx.log"), port
