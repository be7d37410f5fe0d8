"""The agent never endangers its host: rights of what it starts, hung workers, hostile local and remote clients."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.hosts.agent.conftest import Mesh, eventually
from wire import x509
from wire.secret_file import write_secret

REVIEWS = {
    "service": "reviews",
    "serviceAccount": "bookinfo-reviews",
    "labels": {"app": "reviews", "version": "v2"},
    "ports": [{"name": "http", "port": 9080}],
}


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status by key."""
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def curl(*arguments: str) -> str:
    command = ["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def as_nobody() -> dict[str, Any]:
    """Options of a process of another user, where this one may start such."""
    return {"user": 65534, "group": 65534, "extra_groups": []} if os.geteuid() == 0 else {}


def test_workers_have_no_rights_and_a_hung_one_is_replaced(mesh: Any) -> None:
    agent = mesh.agent("one", REVIEWS).start().ready()
    (worker,) = agent.status()["workers"]
    found = status_of(worker["pid"])
    assert int(found["CapEff"], 16) == 0
    if os.geteuid() == 0:
        assert set(found["Uid"].split()) == {"65534"}
        assert "there is no user 'hostmesh'" in agent.process.text()
    os.kill(worker["pid"], signal.SIGSTOP)
    try:
        replaced = eventually(
            "another worker serves",
            lambda: [
                one for one in agent.status()["workers"] if one["pid"] != worker["pid"] and one["generation"]
            ],
            25,
        )
    finally:
        if Path(f"/proc/{worker['pid']}").exists():
            os.kill(worker["pid"], signal.SIGCONT)
    assert replaced[0]["restarts"] == 1
    assert "does not answer and is replaced" in agent.process.text()


def test_only_the_agents_owner_changes_something(mesh: Any) -> None:
    agent = mesh.agent("one", REVIEWS).start().ready()
    admin, path = f"http://127.0.0.1:{agent.ports['admin']}", agent.directory / "run" / "admin.sock"
    for page in (
        "quitquitquit",
        "drain_listeners",
        "reset_counters",
        "logging?level=debug",
        "healthcheck/fail",
    ):
        assert curl("-X", "POST", f"{admin}/{page}") == "403"
    assert curl("-H", "Host: evil.example", f"{admin}/config_dump") == "403"
    assert curl("-H", "Origin: http://evil.example", f"{admin}/stats") == "403"
    assert curl(f"{admin}/stats") == "200"
    assert path.stat().st_mode & 0o777 == 0o600
    if os.geteuid() == 0:
        # Even where the folders above let everybody through, as /run does.
        for folder in (path.parent, *path.parent.parents):
            folder.chmod(folder.stat().st_mode | 0o011)
        connect = f"import socket; socket.socket(socket.AF_UNIX).connect({str(path)!r})"
        refused = subprocess.run(
            ["/usr/bin/python3", "-c", connect],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
            **as_nobody(),
        )
        assert "PermissionError" in refused.stderr
    assert curl("--unix-socket", str(path), "-X", "POST", "http://localhost/reset_counters") == "200"
    assert curl("--unix-socket", str(path), "-X", "POST", "http://localhost/quitquitquit") == "200"
    assert agent.process.process.wait(15) == 0


def expiring_authority(directory: Path, seconds: int) -> None:
    """A plugged CA (as Istio's cacerts) that ends soon, and with it everything that it issues."""
    directory.mkdir()
    key = x509.new_key()
    root = x509.self_signed_root(key, ttl=timedelta(seconds=seconds), now=datetime.now(UTC))
    for name in ("ca-cert.pem", "root-cert.pem", "cert-chain.pem"):
        (directory / name).write_bytes(x509.to_pem(root))
    write_secret(directory / "ca-key.pem", x509.key_to_pem(key))


def test_an_expired_identity_makes_the_host_unready_and_says_so(tmp_path: Path) -> None:
    expiring_authority(tmp_path / "cacerts", 20)
    with ExitStack() as stack:
        mesh = Mesh(tmp_path, stack, ca={"plugged": str(tmp_path / "cacerts")})
        agent = mesh.agent("one", REVIEWS).start().ready()
        readiness = f"http://127.0.0.1:{agent.ports['readiness']}/healthz/ready"
        assert curl(readiness) == "200"
        eventually("unready", lambda: curl(readiness) == "503", 30)
        status = agent.status()
        assert status["ready"] is False
        (reason,) = status["notServing"]
        assert reason.startswith("the certificate of default/reviews has expired: ")
        assert (
            "not captured until this ends: the certificate of default/reviews has expired"
            in agent.process.text()
        )


@pytest.mark.parametrize(("port", "path"), [("readiness", "healthz/ready"), ("metrics", "stats/prometheus")])
def test_slow_clients_do_not_take_readiness_and_metrics_away(mesh: Any, port: str, path: str) -> None:
    agent = mesh.agent("one", REVIEWS).start().ready()
    with ExitStack() as stack:
        for _ in range(80):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", agent.ports[port])))
            slow.send(b"GET / HTTP/1.1\r\nhost: x\r\n")
        assert curl(f"http://127.0.0.1:{agent.ports[port]}/{path}") == "200"
