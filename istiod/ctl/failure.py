"""What meshctl says when something does not work.

Job: one exception that every command may raise, and the one place that turns it into text and exit status 1.
Rule: a message says what failed; the hint says what to do next. Usage errors (exit status 2) are typer's.
Not for: deciding what is wrong (the client, the parser and istiod do).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class Detail:
    """One finding: where (file, document, resource), which field, why."""

    where: str
    field: str
    reason: str

    def text(self) -> str:
        """One line: `FILE, document 2, VirtualService default/reviews: spec.htp: unknown field …`."""
        return ": ".join(part for part in (self.where, self.field, self.reason) if part)


@dataclass
class CommandError(Exception):
    """A command failed; `details` are printed one a line, `hint` last; `reason` is the API's word for it."""

    message: str
    hint: str = ""
    details: Sequence[Detail] = field(default_factory=tuple)
    reason: str = ""

    def __str__(self) -> str:
        return self.message


def report(failure: CommandError, console: Console) -> None:
    """Print a failure to `console` (standard error), without wrapping, so that lines can be grepped."""
    from rich.text import Text

    console.print(
        Text.assemble(("error", "bold red"), ": ", failure.message), soft_wrap=True, highlight=False
    )
    for detail in failure.details:
        console.print(Text(f"  {detail.text()}"), soft_wrap=True, highlight=False)
    if failure.hint:
        console.print(Text.assemble(("hint", "bold"), ": ", failure.hint), soft_wrap=True, highlight=False)
