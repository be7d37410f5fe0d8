"""How meshctl prints: tables in istioctl's column style, JSON and YAML.

Job: columns without borders, never cut to the terminal's width (lines are for grep and awk too), colours
only on a terminal; `-o json|yaml` print exactly the data that the table was made of.
Rule: data goes to standard output, everything said about it to standard error. Rich is imported for tables and for
terminals; a line into a pipe does without, since scripts call meshctl often.
Not for: what to print (the commands).
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer
import yaml

from wire.log_text import one_line

if TYPE_CHECKING:
    from rich.console import Console

_WIDE_ENOUGH = 100_000
_STYLES = {
    "SYNCED": "green",
    "HEALTHY": "green",
    "created": "green",
    "configured": "yellow",
    "deleted": "yellow",
    "STALE": "yellow",
    "PENDING": "yellow",
    "NOT SENT": "dim",
    "UNHEALTHY": "red",
    "ERROR": "red",
}


def console(*, errors: bool = False) -> Console:
    """Standard output, or standard error, for people."""
    from rich.console import Console

    return Console(stderr=errors, highlight=False)


class Format(StrEnum):
    """`-o` of commands that print data."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"

    @property
    def is_data(self) -> bool:
        """Whether it is for programs: everything in one JSON or YAML document."""
        return self in (Format.JSON, Format.YAML)


def printed(data: Any, form: Format) -> bool:
    """Print data as JSON, as YAML or by name; False: it is to be a table, which the command makes (wide or not)."""
    if form.is_data:
        print_data(data, form)
    elif form is Format.NAME:
        for item in data if isinstance(data, list) else [data]:
            typer.echo(name_of(item))
    else:
        return False
    return True


def name_of(item: Any) -> str:
    """What a thing is called in other commands: `namespace/name`, a name alone, or an id."""
    if not isinstance(item, dict):
        return str(item)
    if item.get("namespace") and item.get("name"):
        return f"{item['namespace']}/{item['name']}"
    keys = ("name", "id", "serial", "endpoint", "serviceAccount", "identity", "client")
    return next((str(item[key]) for key in keys if item.get(key)), "")


def print_data(data: Any, form: Format) -> None:
    """Print data as JSON or YAML."""
    if form is Format.JSON:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False))
    else:
        typer.echo(yaml.safe_dump(data, sort_keys=False, allow_unicode=True).rstrip("\n"))


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    empty: str,
    *,
    header: bool = True,
    widths: Sequence[int] = (),
) -> None:
    """Print a table, or `empty` (on standard error) when it has no rows; `widths` are the columns' least ones."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stdout = console()
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold", show_header=header)
    for position, name in enumerate(columns):
        table.add_column(name, no_wrap=True, min_width=widths[position] if widths else None)
    count = 0
    for row in rows:
        table.add_row(*(Text(one_line(cell), style=_style(cell)) for cell in row))
        count += 1
    if not count:
        note(empty)
        return
    # Rich fits tables to the terminal; these are for grep and awk too, so they get the width they need.
    width = stdout.measure(table, options=stdout.options.update(width=_WIDE_ENOUGH)).maximum
    text = io.StringIO()
    Console(
        file=text,
        width=max(width, 1),
        force_terminal=stdout.is_terminal,
        no_color=stdout.no_color,
        highlight=False,
    ).print(table)
    # Padding after the last column would make every line as long as the longest.
    typer.echo("\n".join(line.rstrip() for line in text.getvalue().rstrip("\n").split("\n")))


def _style(cell: str) -> str:
    return _STYLES.get(cell, _STYLES.get(cell.split(" ", 1)[0], ""))


def say(text: str, style: str = "") -> None:
    """One line about what happened, on standard output (results such as `created`)."""
    text = one_line(text)
    if not sys.stdout.isatty():
        typer.echo(text)
        return
    from rich.text import Text

    console().print(Text(text, style=style), soft_wrap=True)


def note(text: str) -> None:
    """One line about what happened, on standard error."""
    typer.echo(one_line(text), err=True)


def age(seconds: float) -> str:
    """Seconds as kubectl prints ages: 45s, 5m, 3h, 2d."""
    whole = max(0, int(seconds))
    for size, letter in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= 2 * size or (whole >= size and letter != "m"):
            return f"{whole // size}{letter}"
    return f"{whole}s"
