"""A real hostmesh-istiod process on loopback, with its state in a temporary directory."""

from __future__ import annotations

import http.client
import io
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from istiod.ctl import cli as meshctl

CASES = Path(__file__).parents[2].parent / "shared" / "cases"
BIN = Path(sys.executable).parent
START_SECONDS = 30.0

CONFIG = """
stateDir: {state}
listen:
  xds: "127.0.0.1:0"
  xdsPlaintext: "{plaintext}"
  admin: "127.0.0.1:0"
  monitoring: "127.0.0.1:0"
registration: {{graceSeconds: {grace}}}
"""


def poll(condition: Callable[[], Any], seconds: float = 10.0, what: str = "condition") -> Any:
    """The first true value of `condition` before the deadline."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.02)
    return value


@dataclass(frozen=True)
class Done:
    """What a command said and how it ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Istiod:
    """A running istiod and the ways to it."""

    directory: Path
    grace: float = 1.0
    extra: str = ""
    """Further lines of the configuration file."""
    plaintext: str = "127.0.0.1:0"
    process: subprocess.Popen[bytes] | None = None
    about: dict[str, Any] = field(default_factory=dict)
    starts: int = 0

    @property
    def state(self) -> Path:
        return self.directory / "state"

    @property
    def context(self) -> Path:
        return self.state / "admin-context.yaml"

    @property
    def log(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.directory.glob("log.*")))

    def start(self) -> Istiod:
        config = self.directory / "istiod.yaml"
        config.write_text(
            CONFIG.format(state=self.state, grace=self.grace, plaintext=self.plaintext) + self.extra
        )
        self.starts += 1
        log = self.directory / f"log.{self.starts}"
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [BIN / "hostmesh-istiod", "run", "--config", config, "--log-level", "debug"],
                stderr=file,
                stdout=file,
            )

        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, f"istiod ended:\n{log.read_text()}"
            return " ready " in log.read_text()

        poll(ready, START_SECONDS, "istiod ready")
        self.about = self.api("/api/v1/version")
        return self

    def api(self, path: str, method: str = "GET", body: bytes | None = None) -> Any:
        """A raw call of the admin API with the context's certificate."""
        from istiod.admin_context import read
        from istiod.ctl.client import AdminClient

        with AdminClient(read(self.context)) as client:
            return client.call(method, path, body=json.loads(body) if body else None)

    def address(self, name: str) -> tuple[str, int]:
        """What istiod listens on: xds, xdsPlaintext, admin, monitoring."""
        host, _, port = self.about["listen"][name].rpartition(":")
        return host, int(port)

    def meshctl(self, *arguments: str | Path, stdin: str | None = None) -> Done:
        """One call of meshctl's own main(), in this process: starting Python each time would take the time."""
        out, err = io.StringIO(), io.StringIO()
        argv, stdin_before = sys.argv, sys.stdin
        sys.argv = ["meshctl", "--context", str(self.context), *map(str, arguments)]
        sys.stdin = io.StringIO(stdin or "")
        status: object = 0
        try:
            with redirect_stdout(out), redirect_stderr(err):
                meshctl.main()
        except SystemExit as end:
            status = end.code
        finally:
            sys.argv, sys.stdin = argv, stdin_before
        return Done(status if isinstance(status, int) else 0, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str | Path, stdin: str | None = None) -> str:
        """A meshctl call that must work; its standard output."""
        done = self.meshctl(*arguments, stdin=stdin)
        assert done.returncode == 0, f"meshctl {arguments}: {done.stdout}{done.stderr}\n{self.log[-4000:]}"
        return done.stdout

    def json(self, *arguments: str | Path) -> Any:
        return json.loads(self.ok(*arguments, "-o", "json"))

    def monitoring(self, path: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(*self.address("monitoring"), timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def stop(self) -> int:
        """SIGTERM; the exit status."""
        if self.process is None:
            return 0
        self.process.terminate()
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()
            self.process.wait()
            self.process = None

    def kill(self) -> None:
        """SIGKILL: what a crash looks like."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None


@pytest.fixture
def istiod(tmp_path: Path) -> Iterator[Istiod]:
    process = Istiod(tmp_path).start()
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture
def fresh_istiod(tmp_path: Path) -> Iterator[Istiod]:
    """Not started yet."""
    process = Istiod(tmp_path)
    try:
        yield process
    finally:
        process.stop()


@pytest.fixture(scope="module")
def shared_istiod(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Istiod]:
    """One for all tests of a module that only read or name their own resources."""
    process = Istiod(tmp_path_factory.mktemp("istiod")).start()
    try:
        yield process
    finally:
        process.stop()
