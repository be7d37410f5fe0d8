"""What the demo shows: a live list of steps while it runs, one table of measured lines at the end.

A line is green only if its measurement met its expectation; a failed line makes the demo fail by name.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


@dataclass
class Line:
    """One measured statement."""

    step: str
    what: str
    expected: str
    measured: str
    good: bool


class Board:
    """Collects lines and shows them."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)
        self.lines: list[Line] = []
        self._step = ""
        self._started = time.monotonic()

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """Name what the following lines belong to."""
        self._step = title
        before = time.monotonic()
        self.console.rule(f"[bold]{title}", align="left")
        yield
        self.console.print(f"  [dim]{time.monotonic() - before:.1f} s[/]")

    def check(self, what: str, expected: str, measured: object, good: bool) -> None:
        """Add a measured line and show it at once."""
        line = Line(self._step, what, expected, str(measured), bool(good))
        self.lines.append(line)
        mark = "[green]✓[/]" if line.good else "[bold red]✗[/]"
        self.console.print(
            f"  {mark} {what}: ",
            Text(line.measured, style="bold"),
            f" [dim](expected: {expected})[/]",
            sep="",
        )

    def note(self, text: str) -> None:
        """Something to see that is not judged."""
        self.console.print(Text(text, style="dim"))

    @contextmanager
    def counting(self, title: str) -> Iterator[Counter]:
        """A live table of requests by version."""
        counter = Counter(title)
        with Live(counter.table(), console=self.console, refresh_per_second=8, transient=False) as live:
            counter.live = live
            yield counter
            live.update(counter.table())

    def failed(self) -> list[Line]:
        """The lines that did not meet their expectation."""
        return [line for line in self.lines if not line.good]

    def finish(self) -> None:
        """The table of everything measured."""
        table = Table(
            title=f"hostmesh demo: {len(self.lines)} measurements in {time.monotonic() - self._started:.0f} s"
        )
        for title in ("step", "what", "expected", "measured"):
            table.add_column(title, overflow="fold")
        step = ""
        for line in self.lines:
            style = "green" if line.good else "bold red"
            table.add_row(
                line.step if line.step != step else "",
                line.what,
                line.expected,
                Text(line.measured, style=style),
            )
            step = line.step
        self.console.print(table)


class Counter:
    """Requests by version, for the live table."""

    def __init__(self, title: str) -> None:
        self.title = title
        self.counts: dict[str, int] = {}
        self.live: Live | None = None

    def add(self, found: dict[str, int]) -> None:
        """More answers."""
        for version, count in found.items():
            self.counts[version] = self.counts.get(version, 0) + count
        if self.live is not None:
            self.live.update(self.table())

    def share(self, version: str) -> float:
        """The part of all answers that a version gave."""
        return self.counts.get(version, 0) / max(1, sum(self.counts.values()))

    def table(self) -> Table:
        """As drawn."""
        table = Table(title=self.title, title_justify="left", min_width=60)
        table.add_column("version")
        table.add_column("requests", justify="right")
        table.add_column("share", justify="right")
        table.add_column("")
        total = max(1, sum(self.counts.values()))
        for version in sorted(self.counts):
            count = self.counts[version]
            table.add_row(version, str(count), f"{count / total:.1%}", "█" * round(30 * count / total))
        return table
