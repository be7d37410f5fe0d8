"""What is measured: each scenario builds its hops, warms up and measures one round of one proxy.

Rule: a round starts fresh processes, so that no proxy profits from what an earlier round left behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.bootstraps import BARE, FULL, NO_RBAC, Features, Hop
from bench.load import Result, closed_loop, open_loop
from bench.processes import BenchError, Running, free_port, proxy


@dataclass(frozen=True)
class Settings:
    """Of one run."""

    seconds: float
    connections: int
    rate: float
    """Requests a second of the constant-rate load."""


@dataclass(frozen=True)
class Measured:
    """One round of one proxy: the value by which it is judged, and the rest for the record."""

    value: float
    details: dict[str, float]
    tls: tuple[str, ...] = ()
    """The versions that were negotiated between the hops."""


@dataclass(frozen=True)
class Scenario:
    """`better` is `higher` or `lower`; `goal` is the wanted ratio ours/Envoy (None: for information)."""

    name: str
    title: str
    unit: str
    better: str
    goal: float | None
    run: Callable[[str, int, Path, Settings], Measured]


def negotiated(running: list[Running]) -> tuple[str, ...]:
    """The TLS versions that the hops of a chain have negotiated."""
    return tuple(sorted({version for process in running for version in process.tls_versions()}))


@contextlib.contextmanager
def chain(
    peer: str, backend_port: int, folder: Path, features: Features, *, hops: int, mode: str = "http"
) -> Iterator[tuple[int, list[Running]]]:
    """One hop plain, or two hops with mutual TLS between them; gives the entry port and the processes."""
    ports = [free_port() for _ in range(hops)]
    with contextlib.ExitStack() as stack:
        running: list[Running] = []
        for index in reversed(range(hops)):
            last = index == hops - 1
            hop = Hop(
                name=f"hop{index + 1}",
                port=ports[index],
                admin_port=free_port(),
                upstream_port=backend_port if last else ports[index + 1],
                folder=folder,
                mode=mode,
                tls_in=index > 0,
                tls_out=not last,
                features=features,
            )
            process = stack.enter_context(proxy(peer, hop))
            process.wait_for(hop.port)
            running.append(process)
        yield ports[0], running
        for process in running:
            process.check()


def _http(features: Features, hops: int) -> Callable[[str, int, Path, Settings], Measured]:
    def run(peer: str, backend_port: int, folder: Path, settings: Settings) -> Measured:
        with chain(peer, backend_port, folder, features, hops=hops) as (port, running):
            closed_loop(port, seconds=1, connections=settings.connections)
            before = sum(process.cpu_seconds() for process in running)
            result = closed_loop(port, seconds=settings.seconds, connections=settings.connections)
            spent = sum(process.cpu_seconds() for process in running) - before
            memory = [process.memory_mb() for process in running]
            tls = negotiated(running)
        _no_errors(peer, result)
        requests = result.requests_per_second * settings.seconds
        return Measured(
            result.requests_per_second,
            {
                "p50_ms": result.p50_ms,
                "p99_ms": result.p99_ms,
                "cpu_us_per_request": spent / requests * 1e6 if requests else 0.0,
                "pss_mb": sum(pss for pss, _ in memory),
                "rss_mb": sum(rss for _, rss in memory),
            },
            tls,
        )

    return run


def _latency(peer: str, backend_port: int, folder: Path, settings: Settings) -> Measured:
    with chain(peer, backend_port, folder, FULL, hops=2) as (port, _):
        open_loop(port, seconds=1, rate=settings.rate, connections=settings.connections)
        result = open_loop(
            port, seconds=settings.seconds, rate=settings.rate, connections=settings.connections
        )
    _no_errors(peer, result)
    return Measured(
        result.p99_ms, {"p50_ms": result.p50_ms, "requests_per_second": result.requests_per_second}
    )


def _throughput(peer: str, backend_port: int, folder: Path, settings: Settings) -> Measured:
    with chain(peer, backend_port, folder, BARE, hops=2, mode="tcp") as (port, running):
        closed_loop(port, seconds=1, connections=4, path="/big")
        result = closed_loop(port, seconds=settings.seconds, connections=4, path="/big")
        tls = negotiated(running)
    return Measured(result.bytes_per_second / 1e6, {"errors": result.errors}, tls)


def _handshakes(peer: str, backend_port: int, folder: Path, settings: Settings) -> Measured:
    with chain(peer, backend_port, folder, BARE, hops=2, mode="tcp") as (port, running):
        closed_loop(port, seconds=1, connections=16, close=True)
        result = closed_loop(port, seconds=settings.seconds, connections=16, close=True)
        tls = negotiated(running)
    _no_errors(peer, result)
    return Measured(result.requests_per_second, {"p99_ms": result.p99_ms}, tls)


def _memory(peer: str, backend_port: int, folder: Path, settings: Settings) -> Measured:
    with chain(peer, backend_port, folder, FULL, hops=2) as (port, running):
        closed_loop(port, seconds=min(3.0, settings.seconds), connections=settings.connections)
        memory = [process.memory_mb() for process in running]
    # RSS: a host runs one proxy, which shares its pages with nobody; PSS halves what two of a kind share.
    rss = sum(rss for _, rss in memory) / len(memory)
    return Measured(rss, {"pss_mb": sum(pss for pss, _ in memory) / len(memory)})


def _no_errors(peer: str, result: Result) -> None:
    if result.errors:
        raise BenchError(f"{peer}: {result.errors} errors under load")


SCENARIOS = (
    Scenario("http1-plain", "HTTP/1.1, one hop, plain, bare", "req/s", "higher", None, _http(BARE, 1)),
    Scenario(
        "http1-mtls", "HTTP/1.1, two hops, mTLS, without RBAC", "req/s", "higher", 1.5, _http(NO_RBAC, 2)
    ),
    Scenario(
        "http1-mtls-rbac", "HTTP/1.1, two hops, mTLS, all features", "req/s", "higher", 1.5, _http(FULL, 2)
    ),
    Scenario("http1-p99", "p99 at equal load, two hops, all features", "ms", "lower", 1.0, _latency),
    Scenario("tcp-mtls", "TCP, two hops, mTLS, throughput", "MB/s", "higher", 1.0, _throughput),
    Scenario("mtls-connections", "new mTLS connections, two hops", "conn/s", "higher", 0.7, _handshakes),
    Scenario("memory", "memory of one proxy after load (RSS)", "MB", "lower", 0.7, _memory),
)
"""All features: RBAC, retries, circuit breakers, outlier detection, access log to a file, metrics, in each hop."""
