"""The agent's command line as a person meets it: what is printed where, and with which exit status."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

AGENT = Path(sys.executable).parent / "hostmesh-agent"
NAMES = ("admin", "outbound", "inbound", "metrics", "readiness", "dns")


def agent(*arguments: str) -> tuple[int, str, str]:
    done = subprocess.run([str(AGENT), *arguments], capture_output=True, text=True, timeout=30, check=False)
    return done.returncode, done.stdout, done.stderr


def config(directory: Path, **more: object) -> str:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in NAMES]
    ports = dict(zip(NAMES, (sock.getsockname()[1] for sock in sockets), strict=True))
    for sock in sockets:
        sock.close()
    path = directory / "agent.yaml"
    content = {
        "istiod": ["127.0.0.1:1"],
        "stateDir": str(directory / "state"),
        "runDir": str(directory / "run"),
        "addresses": ["127.0.0.1"],
        "workloads": [{"service": "reviews", "ports": [{"name": "http", "port": 9080}]}],
        "capture": {"enabled": False},
        "proxy": {"workers": 1, "ports": ports},
        **more,
    }
    path.write_text(yaml.safe_dump(content))
    return str(path)


def test_a_good_configuration_is_said_to_be_good(tmp_path: Path) -> None:
    path = config(tmp_path)
    status, output, errors = agent("check-config", "--config", path)
    assert (status, errors) == (0, "")
    assert output.startswith(f"{path}: ok: 1 workload(s)")


@pytest.mark.parametrize(
    ("more", "problem"),
    [
        ({"capture": {"excludeInboundPort": [1]}}, "capture.excludeInboundPort: unknown field, did you mean"),
        ({"workloads": [{"service": "a", "user": "nobody-has-this-name"}]}, "no such user on this host"),
    ],
)
def test_a_bad_one_is_explained_on_standard_error(
    tmp_path: Path, more: dict[str, object], problem: str
) -> None:
    path = config(tmp_path, **more)
    status, output, errors = agent("check-config", "--config", path)
    assert (status, output) == (1, "")
    assert problem in errors
    assert agent("run", "--config", path)[0] == 1


def test_what_needs_a_running_agent_says_that_there_is_none(tmp_path: Path) -> None:
    path = config(tmp_path)
    for command in (("status",), ("drain",), ("capture", "down")):
        status, output, errors = agent(*command, "--config", path)
        assert (status, output) == (1, "")
        assert "no agent is running" in errors


def test_a_port_that_is_taken_is_named_with_its_purpose(tmp_path: Path) -> None:
    path = config(tmp_path)
    port = yaml.safe_load(Path(path).read_text())["proxy"]["ports"]["metrics"]
    with socket.create_server(("127.0.0.1", port)):
        status, _, errors = agent("run", "--config", path)
        assert status == 1
        assert f"port {port} (metrics): Address already in use" in errors
        assert "Traceback" not in errors


def test_usage_errors_have_a_status_of_their_own() -> None:
    assert agent("explode")[0] == 2
    assert agent("status", "-o", "xml")[0] == 2
    assert agent("version") == (0, "0.1.0\n", "")
