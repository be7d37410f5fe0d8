"""Probes: Kubernetes' thresholds, and real HTTP, TCP and command checks."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from agent.host.config import ExecAction, HttpGet, Probe, TcpSocket
from agent.host.probes import command as probe_command
from agent.host.probes import probe as probes
from agent.host.probes.probe import Target
from agent.host.probes.state import ProbeState
from agent.host.workers.worker_process import RunAs

HERE = Target()


@pytest.mark.parametrize(
    ("success", "failure", "results", "verdicts"),
    [
        (1, 3, "+", [True]),
        (1, 3, "-", [None]),
        (1, 3, "---", [None, None, False]),
        (1, 3, "+--+---", [True, True, True, True, True, True, False]),
        (2, 1, "+-++", [None, False, False, True]),
    ],
)
def test_thresholds_count_results_in_a_row(
    success: int, failure: int, results: str, verdicts: list[bool | None]
) -> None:
    state, seen = ProbeState(success, failure), []
    for result in results:
        state = state.after(result == "+")
        seen.append(state.ready)
    assert seen == verdicts


def with_server(reply: bytes | None, test: Callable[[int], Awaitable[None]]) -> list[bytes]:
    """A TCP server that reads a request and sends a fixed reply (None: never); what it read."""
    read: list[bytes] = []

    async def connection(stream: trio.SocketStream) -> None:
        read.append(bytes(await stream.receive_some(65536)))
        if reply is None:
            await trio.sleep_forever()
        else:
            try:
                await stream.send_all(reply)
            except trio.BrokenResourceError:
                return
        await stream.aclose()

    async def main() -> None:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                nursery.start_soon(trio.serve_listeners, connection, listeners)
                await test(listeners[0].socket.getsockname()[1])
                nursery.cancel_scope.cancel()

    trio.run(main)
    return read


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", None),
        (b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", None),
        (b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", None),
        (b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n", "HTTP status 503"),
        (b"SSH-2.0-nonsense\r\n\r\n", "illegal status line"),
        (b"", "closed"),
    ],
)
def test_http_probes_judge_by_status(reply: bytes, reason: str | None) -> None:
    async def test(port: int) -> None:
        action = HttpGet.model_validate(
            {"path": "/health", "port": port, "httpHeaders": [{"name": "X-Probe", "value": "1"}]}
        )
        got = await probes.check(Probe.model_validate({"httpGet": action}), HERE)
        if reason is None:
            assert got is None
        else:
            assert got is not None
            assert reason in got

    (request,) = with_server(reply, test)
    assert request.startswith(b"GET /health HTTP/1.1\r\n")
    assert b"x-probe: 1" in request.lower()


def test_a_probe_that_hangs_fails_by_its_timeout() -> None:
    async def test(port: int) -> None:
        probe = Probe.model_validate({"httpGet": HttpGet(port=port), "timeoutSeconds": 0.1})
        assert await probes.check(probe, HERE) == "no answer within 0.1 s"
        command = Probe.model_validate({"exec": ExecAction(command=("sleep", "60")), "timeoutSeconds": 0.1})
        assert await probes.check(command, HERE) == "no answer within 0.1 s"

    with_server(None, test)


def test_tcp_and_command_probes() -> None:
    async def test(port: int) -> None:
        assert await probes.check(Probe.model_validate({"tcpSocket": TcpSocket(port=port)}), HERE) is None
        for command, reason in ((("true",), None), (("false",), "exit status 1")):
            action = ExecAction(command=command)
            assert await probes.check(Probe.model_validate({"exec": action}), HERE) == reason
        missing = await probes.check(Probe.model_validate({"exec": ExecAction(command=("/no/such",))}), HERE)
        assert missing is not None
        assert "No such file" in missing

    with_server(b"", test)

    async def closed() -> None:
        refused = await probes.check(Probe.model_validate({"tcpSocket": TcpSocket(port=1)}), HERE)
        assert refused is not None
        assert "refused" in refused

    trio.run(closed)


def test_changes_are_reported_once() -> None:
    seen: list[tuple[bool, str]] = []
    status = [b"200 OK"]

    async def main() -> None:
        async def connection(stream: trio.SocketStream) -> None:
            await stream.receive_some(65536)
            await stream.send_all(b"HTTP/1.1 " + status[0] + b"\r\ncontent-length: 0\r\n\r\n")
            await stream.aclose()

        async def report(ready: bool, reason: str) -> None:
            seen.append((ready, reason))
            status[0] = b"500 Broken" if ready else b"200 OK"
            await trio.lowlevel.checkpoint()
            if len(seen) == 3:
                nursery.cancel_scope.cancel()

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                nursery.start_soon(trio.serve_listeners, connection, listeners)
                probe = Probe.model_validate(
                    {
                        "httpGet": HttpGet(port=listeners[0].socket.getsockname()[1]),
                        "periodSeconds": 0.01,
                        "failureThreshold": 2,
                    }
                )
                nursery.start_soon(probes.run, probe, Target, report)

    trio.run(main)
    assert seen == [(True, "the probe passes"), (False, "HTTP status 500"), (True, "the probe passes")]


def processes_of(marker: str) -> list[int]:
    """Living processes whose command line has the marker."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_whatever_a_command_started_ends_with_the_probe() -> None:
    marker = "86399.25"
    script = f"sleep {marker} & sleep {marker}; true"

    async def test() -> None:
        for shell, reason in (
            (script, "no answer within 0.3 s"),
            (f"sleep {marker} & exit 3", "exit status 3"),
        ):
            action = ExecAction(command=("sh", "-c", shell))
            probe = Probe.model_validate({"exec": action, "timeoutSeconds": 0.3})
            assert await probes.check(probe, HERE) == reason
            with trio.fail_after(5):
                while processes_of(marker):
                    await trio.sleep(0.01)

    trio.run(test)


def test_a_failing_command_is_told_apart_by_its_first_line_and_never_fills_memory_or_its_pipe() -> None:
    async def test() -> None:
        assert (
            await probe_command.run(["sh", "-c", "echo no disk; echo more; exit 1"], None)
            == "exit status 1: no disk"
        )
        loud = await probe_command.run(["sh", "-c", "head -c 3000000 /dev/zero | tr '\\0' x; exit 2"], None)
        assert loud is not None
        assert loud.startswith("exit status 2: xxx")
        assert len(loud) < 1100

    trio.run(test)


def test_a_command_has_neither_the_agents_environment_nor_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/secret")
    run_as = RunAs(65534, 65534) if os.geteuid() == 0 else None

    async def test() -> None:
        shown = await probe_command.run(
            ["sh", "-c", "echo $(id -u) ${CREDENTIALS_DIRECTORY-none}; exit 1"], run_as
        )
        assert shown == f"exit status 1: {os.geteuid() if run_as is None else 65534} none"

    trio.run(test)


def test_an_application_on_loopback_only_is_named_as_unreachable_for_callers() -> None:
    async def test(port: int) -> None:
        for action in ({"tcpSocket": TcpSocket(port=port)}, {"httpGet": HttpGet(port=port)}):
            reason = await probes.check(Probe.model_validate(action), Target("127.0.0.2"))
            assert reason is not None
            assert f"listens on 127.0.0.1:{port} only" in reason
            assert f"127.0.0.2:{port}" in reason

    with_server(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", test)
