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
from agent.host.admin.seats import MAX_CONNECTIONS, MAX_PER_PEER, Seats
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


async def exchange(port: int, request: bytes) -> bytes:
    """What one request is answered with, up to the end of the connection."""
    received = b""
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
        await stream.send_all(request)
        while data := await stream.receive_some(65536):
            received += data
    return received


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"Host: 127.0.0.1:15000", b"200"),
        (b"Host: localhost", b"200"),
        (b"Host: [::1]:15000", b"200"),
        (b"Host: evil.example", b"403"),
        (b"Host: 127.0.0.1.evil.example", b"403"),
        (b"Host: 10.0.0.1", b"403"),
        (b"Host: localhost\r\nOrigin: http://evil.example", b"403"),
        (b"Host: localhost\r\nOrigin: null", b"403"),
    ],
)
def test_a_web_page_reaches_nothing_of_a_loopback_port(headers: bytes, status: bytes) -> None:
    async def main() -> None:
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                await nursery.start(pages.serve, listeners, answer, pages.programs_on_this_host)
                port = listeners[0].socket.getsockname()[1]
                request = (
                    b"POST /a HTTP/1.1\r\nConnection: close\r\nContent-Length: 0\r\n" + headers + b"\r\n\r\n"
                )
                assert (await exchange(port, request)).startswith(b"HTTP/1.1 " + status)
                nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_slow_peer_displaces_only_itself() -> None:
    left: list[str] = []
    seats = Seats()

    def sit(address: str) -> None:
        assert seats.take(address, lambda: left.append(address)) is not None

    sit("10.0.0.7")
    for _ in range(200):
        sit("10.0.0.66")
    assert set(left) == {"10.0.0.66"}
    assert len(seats) == 1 + MAX_PER_PEER
    for number in range(100):
        sit(f"2001:db8::{number:x}")
    assert len(seats) == 1 + 2 * MAX_PER_PEER, "an IPv6 /64 is one peer"
    for _ in range(MAX_CONNECTIONS):
        sit("::1")
    left.clear()
    for number in range(300):
        sit(f"10.1.0.{number % 40}" if number < 200 else "127.0.0.1")
    assert "10.0.0.7" not in left, "the greedy ones leave before the one that holds a single place"
    assert "::1" in left


def test_a_busy_seat_is_never_displaced() -> None:
    seats = Seats()
    taken = [seats.take("10.0.0.66", lambda: None) for _ in range(MAX_PER_PEER)]
    for seat in taken:
        assert seat is not None
        seat.waiting = False
    assert seats.take("10.0.0.66", lambda: None) is None
    assert taken[0] is not None
    seats.give_back(taken[0])
    seats.give_back(taken[0])
    assert seats.take("10.0.0.66", lambda: None) is not None
    assert len(seats) == MAX_PER_PEER


def test_a_hundred_half_sent_requests_do_not_keep_a_check_out() -> None:
    async def main() -> None:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
                await nursery.start(pages.serve, listeners, answer)
                port = listeners[0].socket.getsockname()[1]
                slow = []
                for _ in range(100):
                    slow.append(await trio.open_tcp_stream("127.0.0.1", port))
                    await slow[-1].send_all(b"GET / HTTP/1.1\r\nhost: x\r\n")
                request = b"GET /ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
                assert b"GET /ready" in await exchange(port, request)
                for stream in slow:
                    await trio.aclose_forcefully(stream)
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
    assert b"HOSTMESH_PEER=a\\nb\n" in entry
