"""The local socket, the small HTTP server and the messages to the service manager."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import Any

import pytest
import trio

from agent.host.admin import local_socket, pages
from agent.host.admin.local_socket import CommandError, NotRunning
from agent.host.admin.page import Page
from agent.host.log import LineHandler, fields, journal_entry
from agent.host.service_notify import ServiceNotifier


async def echo(question: dict[str, Any]) -> Any:
    await trio.lowlevel.checkpoint()
    if question.get("fail"):
        raise CommandError("cannot")
    return {"said": question.get("word")}


def test_a_command_gets_its_answer_or_its_reason(tmp_path: Path) -> None:
    path = tmp_path / "run" / "agent.sock"

    async def main() -> None:
        with pytest.raises(NotRunning, match="no agent is running"):
            await local_socket.ask(path, "echo")
        async with trio.open_nursery() as nursery:
            await nursery.start(local_socket.serve, path, {"echo": echo})
            assert path.stat().st_mode & 0o777 == 0o600
            assert await local_socket.ask(path, "echo", word="hello") == {"said": "hello"}
            with pytest.raises(CommandError, match="cannot"):
                await local_socket.ask(path, "echo", fail=True)
            with pytest.raises(CommandError, match="unknown command"):
                await local_socket.ask(path, "explode")
            stream = await trio.open_unix_socket(path)
            await stream.send_all(b"not json\n")
            assert b'"ok": false' in await stream.receive_some(1000)
            await stream.aclose()
            with pytest.raises(CommandError, match="another agent"):
                await local_socket.serve(path, {})
            nursery.cancel_scope.cancel()
        assert not path.exists()

    trio.run(main)


def test_a_socket_that_a_killed_agent_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(local_socket.serve, path, {"echo": echo})
            assert await local_socket.ask(path, "echo") == {"said": None}
            nursery.cancel_scope.cancel()

    trio.run(main)


async def answer(method: str, path: str, body: bytes) -> Page:
    await trio.lowlevel.checkpoint()
    return Page(200, "text/plain", f"{method} {path} {len(body)}".encode())


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET /a?b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", b"\r\n\r\nGET /a?b 0"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nConnection: close\r\n\r\nabc", b"POST / 3"),
        (b"GET / HTTP/1.0\r\n\r\n", b"GET / 0"),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n" + bytes(2_000_000), b"413"),
        (b"nonsense\r\n\r\n", b""),
    ],
)
def test_the_small_server_answers_and_survives(request_bytes: bytes, expected: bytes) -> None:
    async def main() -> None:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                await nursery.start(pages.serve, listeners, answer)
                port = listeners[0].socket.getsockname()[1]
                for _ in range(2):
                    received = b""
                    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
                        try:
                            await stream.send_all(request_bytes)
                            while data := await stream.receive_some(65536):
                                received += data
                        except trio.BrokenResourceError:
                            continue  # refused in the middle of its body
                    assert expected in received
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_service_manager_is_told(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        notifier = ServiceNotifier({"NOTIFY_SOCKET": str(path), "WATCHDOG_USEC": "20000"})
        notifier.ready("serving")
        notifier.stopping()
        assert manager.recv(100) == b"READY=1\nSTATUS=serving"
        assert manager.recv(100).startswith(b"STOPPING=1")

        async def beat() -> None:
            with trio.move_on_after(0.05):
                await notifier.watchdog()

        trio.run(beat)
        assert manager.recv(100) == b"WATCHDOG=1"
    ServiceNotifier({}).ready("nobody listens")


def test_log_lines_cannot_be_forged() -> None:
    record = logging.LogRecord("hostmesh.xds", logging.WARNING, "", 0, "lost: %s", ("why",), None)
    record.__dict__.update(fields(peer="a\nb", plain="c"))
    line = LineHandler().format(record)
    assert line.endswith('warning xds: lost: why peer="a\\nb" plain=c')
    entry = journal_entry(record)
    assert b"MESSAGE=lost: why\nPRIORITY=4\n" in entry
    assert b"HOSTMESH_PEER\n" + (3).to_bytes(8, "little") + b"a\nb\n" in entry
