"""Peers that give a worker as much to do as they can: everybody else is served meanwhile, and nothing stays of them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.attack.load import GET, answers, under_attack

PATIENCE = 0.4
"""Seconds that the median request may take under attack: some 10 ms on a free machine; without bounds seconds, or for ever."""
SECONDS = 1.5
BLOCK = bytes(1 << 20)
_TCP = "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
SPEC: dict[str, Any] = {
    "listeners": {
        "main": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [
                        {"match": {"prefix": "/direct"}, "direct_response": {"status": 200, "body": {"inline_string": "ok"}}},
                        {"match": {"prefix": "/evil"}, "route": {"cluster": "b", "timeout": "0s"}},
                        {"match": {"prefix": "/"}, "route": {"cluster": "a"}},
                    ],
                }
            ],
        },
        "opaque": {"filters": [{"name": "t", "typed_config": {"@type": _TCP, "stat_prefix": "t", "cluster": "b"}}]},
    }
}  # fmt: skip


def for_ever(head: bytes, block: bytes) -> Callable[[socket.socket], None]:
    """An upstream that never stops answering."""

    def talk(sock: socket.socket) -> None:
        sock.recv(65536)
        sock.sendall(head)
        while True:
            sock.sendall(block)

    return talk


def swallow(sock: socket.socket) -> None:
    """An upstream that never answers."""
    while sock.recv(1 << 20):
        pass


def served(waits: list[float]) -> None:
    assert waits[len(waits) // 2] < PATIENCE, (
        f"{len(waits)} answers, the median one after {waits[len(waits) // 2]:.2f} s"
    )


def asks_and_reads(path: bytes) -> Callable[[socket.socket], object]:
    def work(sock: socket.socket) -> None:
        sock.sendall(GET % path)
        while data := sock.recv(1 << 20):
            assert data
        raise ConnectionError

    return work


def test_four_streams_at_full_speed(tmp_path: Path) -> None:
    with under_attack(SPEC, tmp_path, {"a": answers, "b": for_ever(b"", BLOCK)}) as attack:
        for _ in range(4):
            attack.attacker(asks_and_reads(b"evil"), "opaque")
        served(attack.waits(SECONDS))


def test_refused_clients_that_go_on_sending(tmp_path: Path) -> None:
    def work(sock: socket.socket) -> None:
        sock.sendall(b"GARBAGE\r\n\r\n")
        while True:
            sock.sendall(BLOCK)

    with under_attack(SPEC, tmp_path, {"a": answers}) as attack:
        for _ in range(16):
            attack.attacker(work)
        served(attack.waits(SECONDS))
        (seen,) = (
            int(line.rsplit(" ", 1)[1])
            for line in attack.page("stats").splitlines()
            if line.startswith("http.ingress.downstream_cx_rx_bytes_total:")
        )
        assert seen < 100 << 20, "what refused clients send is read without end"


def test_upstreams_with_informational_responses_without_end(tmp_path: Path) -> None:
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 50
    with under_attack(SPEC, tmp_path, {"a": answers, "b": for_ever(b"", hints)}) as attack:
        for _ in range(30):
            attack.attacker(asks_and_reads(b"evil"))
        served(attack.waits(SECONDS))


def test_responses_in_chunks_of_one_byte(tmp_path: Path) -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    with under_attack(SPEC, tmp_path, {"a": answers, "b": for_ever(head, b"1\r\nx\r\n" * 10_000)}) as attack:
        for _ in range(30):
            attack.attacker(asks_and_reads(b"evil"))
        served(attack.waits(SECONDS))


def test_requests_in_chunks_of_one_byte(tmp_path: Path) -> None:
    head = b"POST /evil HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"

    def work(sock: socket.socket) -> None:
        sock.sendall(head)
        while True:
            sock.sendall(b"1\r\nx\r\n" * 10_000)

    with under_attack(SPEC, tmp_path, {"a": answers, "b": swallow}) as attack:
        for _ in range(8):
            attack.attacker(work)
        served(attack.waits(SECONDS))


@pytest.mark.parametrize("reads", [True, False], ids=["reading", "not reading"])
def test_clients_that_pipeline_without_end(tmp_path: Path, reads: bool) -> None:
    def work(sock: socket.socket) -> None:
        sock.setblocking(False)
        for _ in count():
            try:
                sock.send((GET % b"direct") * 2000)
            except BlockingIOError:
                time.sleep(0.001)
            if reads:
                try:
                    while sock.recv(1 << 20):
                        pass
                except BlockingIOError:
                    continue
                raise ConnectionError

    with under_attack(SPEC, tmp_path, {"a": answers}) as attack:
        before = attack.resident()
        for _ in range(8):
            attack.attacker(work)
        served(attack.waits(SECONDS))
        assert attack.resident() - before < 40 << 20, "answers that nobody reads pile up"


def test_clients_that_leave_while_nothing_is_read_of_them(tmp_path: Path) -> None:
    """The upstream never answers and the route has no timeout: only their departure ends these requests."""
    with under_attack(SPEC, tmp_path, {"a": answers, "b": swallow}) as attack:
        for _ in range(20):
            sock = attack.connect()
            sock.sendall((GET % b"evil") * 2)
        attack.waits(0.2)
