"""Load: wrk for as much as goes, and an open loop at a constant rate for latency.

Rule: errors are counted and returned; the caller decides whether a round counts.
"""

from __future__ import annotations

import re
import select
import shutil
import socket
import subprocess
import time
from collections import deque
from dataclasses import dataclass

from bench.processes import BenchError

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_SIZES = {"B": 1.0, "KB": 1024.0, "MB": 1024.0**2, "GB": 1024.0**3}


@dataclass(frozen=True)
class Result:
    """One round."""

    requests_per_second: float
    bytes_per_second: float
    p50_ms: float
    p99_ms: float
    errors: int


def closed_loop(
    port: int, *, seconds: float, connections: int, path: str = "/", close: bool = False
) -> Result:
    """wrk: every connection asks again as soon as it is answered. `close`: a new connection for each request."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise BenchError("wrk is not installed (Debian package wrk; `make setup` installs it as root)")
    command = [
        wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--latency", "--timeout", "10s",
        *(["-H", "Connection: close"] if close else []), f"http://127.0.0.1:{port}{path}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60)
    text = done.stdout
    errors = sum(int(number) for number in re.findall(r"(?:connect|read|write|timeout) (\d+)", text))
    errors += sum(int(number) for number in re.findall(r"Non-2xx or 3xx responses: (\d+)", text))
    return Result(
        requests_per_second=float(_find(text, r"Requests/sec:\s+([\d.]+)")[0]),
        bytes_per_second=_size(*_find(text, r"Transfer/sec:\s+([\d.]+)([KMG]?B)")),
        p50_ms=_milliseconds(text, "50%"),
        p99_ms=_milliseconds(text, "99%"),
        errors=errors,
    )


def _find(text: str, pattern: str) -> tuple[str, ...]:
    found = re.search(pattern, text)
    if found is None:
        raise BenchError(f"wrk printed no {pattern}:\n{text}")
    return found.groups()


def _size(number: str, unit: str) -> float:
    return float(number) * _SIZES[unit]


def _milliseconds(text: str, percentile: str) -> float:
    number, unit = _find(text, rf"{percentile}\s+([\d.]+)(us|ms|s|m)\b")
    return float(number) * _UNITS[unit]


class _Connection:
    """One client connection: at most one request in flight."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setblocking(False)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.due = 0.0
        self.received = b""

    def complete(self) -> bool:
        """Has a whole answer arrived? (content-length only: what the backend sends)."""
        head, end, body = self.received.partition(b"\r\n\r\n")
        if not end:
            return False
        found = re.search(rb"content-length: *(\d+)", head, re.IGNORECASE)
        return found is not None and len(body) >= int(found[1])


def open_loop(port: int, *, seconds: float, rate: float, connections: int, path: str = "/") -> Result:
    """A constant rate of requests, whatever the answers do.

    Latency counts from when a request was due, so that waiting for a free connection is not left out
    (no coordinated omission). An answer that is not 200, or does not come within 10 s after the end, is an error.
    """
    request = f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode()
    everyone = [_Connection(port) for _ in range(connections)]
    by_fd = {connection.socket.fileno(): connection for connection in everyone}
    idle = deque(everyone)
    waiting: deque[float] = deque()
    latencies: list[float] = []
    errors = sent = 0
    total = int(seconds * rate)
    start = time.perf_counter() + 0.05
    due = start
    deadline = start + seconds + 10
    while len(latencies) + errors < total and time.perf_counter() < deadline:
        now = time.perf_counter()
        while sent < total and due <= now:
            waiting.append(due)
            sent += 1
            due = start + sent / rate
        while waiting and idle:
            connection = idle.popleft()
            connection.due = waiting.popleft()
            connection.received = b""
            connection.socket.send(request)
        wait = max(0.0, due - time.perf_counter()) if sent < total and idle else 0.1
        # select, because it waits in microseconds: a loop that spins takes a core away from the proxies
        for fd in select.select(by_fd, (), (), wait)[0]:
            connection = by_fd[fd]
            data = connection.socket.recv(65536)
            connection.received += data
            if not data:
                raise BenchError("the proxy closed a connection of the constant-rate load")
            if connection.complete():
                if connection.received.startswith(b"HTTP/1.1 200"):
                    latencies.append(time.perf_counter() - connection.due)
                else:
                    errors += 1
                idle.append(connection)
    elapsed = time.perf_counter() - start
    errors += total - len(latencies) - errors
    for connection in everyone:
        connection.socket.close()
    latencies.sort()
    if not latencies:
        raise BenchError("no answer to the constant-rate load")
    return Result(
        requests_per_second=len(latencies) / elapsed,
        bytes_per_second=0.0,
        p50_ms=latencies[len(latencies) // 2] * 1e3,
        p99_ms=latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))] * 1e3,
        errors=errors,
    )
