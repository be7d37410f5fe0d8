"""Our proxy and the real Envoy as processes on one bootstrap each, started on free ports and ended by their own id."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.ports import free_port

BIN = Path(sys.executable).parent
_base_ids = itertools.count(os.getpid() % 20000 * 10)


class Proxy:
    """One running proxy. `ports` are its listeners by the name that the bootstrap's placeholders use."""

    def __init__(
        self,
        kind: str,
        template: str,
        names: list[str],
        fixed: dict[str, str],
        folder: Path,
        workers: int = 1,
    ) -> None:
        self.kind = kind
        self.ports = {name: free_port() for name in [*names, "admin"]}
        values = {
            **fixed,
            **{name: str(port) for name, port in self.ports.items()},
            "kind": kind,
            "folder": str(folder),
        }
        text = re.sub(r"@\{(\w+)\}", lambda found: values[found[1]], template)
        self.config = folder / f"{kind}.yaml"
        self.config.write_text(text)
        self.access = folder / f"{kind}.access"
        self.log = folder / f"{kind}.log"
        if kind == "envoy":
            command = [
                str(BIN / "envoy"), "-c", str(self.config), "--base-id", str(next(_base_ids)),
                "--concurrency", str(workers), "--log-level", "warning", "--drain-time-s", "1",
                "--file-flush-interval-msec", "10",
            ]  # fmt: skip
        else:
            command = [
                str(BIN / "hostmesh-agent"), "proxy", "--config", str(self.config), "--workers", str(workers),
                "--file-flush-interval-msec", "10",
            ]  # fmt: skip
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
            )

    def wait(self, seconds: float = 20.0) -> None:
        """Return when every listener accepts; raise with the log when the proxy ended or did not come up."""
        deadline = time.monotonic() + seconds
        for port in [v for k, v in self.ports.items() if k != "admin"]:
            while True:
                if self._process.poll() is not None:
                    raise RuntimeError(f"{self.kind} ended at start:\n{self.log.read_text()[-4000:]}")
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                    break
                if time.monotonic() > deadline:
                    raise RuntimeError(
                        f"{self.kind} does not listen on {port}:\n{self.log.read_text()[-4000:]}"
                    )
                self._process_alive_pause()

    def _process_alive_pause(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.02)

    def lines(self, since: int, count: int, seconds: float = 2.0) -> list[str]:
        """What was logged after the first `since` bytes: at least `count` lines, unless they do not come in time."""
        deadline = time.monotonic() + seconds
        while True:
            text = self.access.read_bytes()[since:].decode("utf-8", "replace") if self.access.exists() else ""
            if text.count("\n") >= count or time.monotonic() > deadline:
                return text.splitlines()
            self._process_alive_pause()

    def logged(self) -> int:
        """Bytes of access log so far."""
        return self.access.stat().st_size if self.access.exists() else 0

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self._process.pid

    def wait_for_end(self, seconds: float = 20.0) -> int:
        """Its exit status."""
        return self._process.wait(seconds)

    def terminate(self) -> None:
        """Have it end in its own time."""
        self._process.send_signal(signal.SIGTERM)

    @property
    def running(self) -> bool:
        """Whether the process lives."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process; nothing of it stays. Ours must not have failed inside: that is logged, and nothing else shows it."""
        if self.running:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(3)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        assert self.kind != "ours" or "ERROR hostmesh.worker" not in self.log.read_text(), (
            self.log.read_text()[-4000:]
        )
