"""`python -m bench`: runs the scenarios in turn, prints the table, writes JSON to bench/results/."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import certificates, config_latency, report
from bench.processes import PEERS, BenchError, backend
from bench.scenarios import SCENARIOS, Scenario, Settings

_CONFIG = "config"
"""The name of bench.config_latency among the scenarios; it has no Envoy to compare with."""
_console = Console(stderr=True)
_RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """Exit status 0, or 1 where a proxy failed under load."""
    arguments = _arguments()
    chosen = tuple(s for s in SCENARIOS if not arguments.only or s.name in arguments.only)
    settings = Settings(arguments.seconds, arguments.connections, arguments.rate)
    peers = (arguments.peer,) if arguments.peer else PEERS
    results: dict[str, report.Rounds] = {}
    failures: list[str] = []
    with tempfile.TemporaryDirectory(prefix="hostmesh-bench-") as name:
        folder = Path(name)
        certificates.make(folder)
        server, port = backend(folder)
        with server:
            server.wait_for(port)
            for scenario in chosen:
                results[scenario.name] = {peer: [] for peer in peers}
                turns = _turns(peers, arguments.rounds)
                failures += _run(scenario, turns, (port, folder, settings), results[scenario.name])
    latency: dict[str, Any] | None = None
    if not arguments.peer and (not arguments.only or _CONFIG in arguments.only):
        try:
            latency = config_latency.measure()
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            failures.append(str(error))
    report.show(results, chosen, settings, latency)
    written = report.write(_RESULTS, report.as_json(results, chosen, settings, latency))
    _console.print(f"written to {written}")
    for failure in failures:
        _console.print(failure, style="red", markup=False, highlight=False)
    return 1 if failures else 0


def _turns(peers: tuple[str, ...], rounds: int) -> list[str]:
    """The peers in turn; who begins changes with every round."""
    return [peer for number in range(rounds) for peer in (peers if number % 2 == 0 else reversed(peers))]


def _run(
    scenario: Scenario, turns: list[str], place: tuple[int, Path, Settings], measured: report.Rounds
) -> list[str]:
    """Fill in what was measured; returns failures. A peer that fails is left out from then on."""
    port, folder, settings = place
    failures: dict[str, str] = {}
    for peer in turns:
        if peer in failures:
            continue
        try:
            result = scenario.run(peer, port, folder, settings)
        except BenchError as error:
            failures[peer] = f"{scenario.name}: {error}"
            continue
        measured[peer].append(result)
        details = ", ".join(f"{name} {value:.4g}" for name, value in result.details.items())
        _console.print(
            f"{scenario.name} {peer}: {result.value:,.1f} {scenario.unit} ({details})", highlight=False
        )
    return list(failures.values())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    names = [*(scenario.name for scenario in SCENARIOS), _CONFIG]
    parser.add_argument("--only", action="append", choices=names, help="a scenario; may be repeated")
    parser.add_argument("--peer", choices=PEERS, help="only this proxy")
    parser.add_argument("--seconds", type=float, default=5.0, help="of load a round (5)")
    parser.add_argument("--rounds", type=int, default=3, help="a scenario and proxy (3)")
    parser.add_argument("--connections", type=int, default=32, help="client connections (32)")
    parser.add_argument("--rate", type=float, default=1000.0, help="requests/s of the p99 scenario (1000)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
