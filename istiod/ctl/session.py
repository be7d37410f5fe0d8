"""What one meshctl call knows: which context was chosen, and the client made from it on first use.

Job: hand commands an `AdminClient`; commands that work offline never cause one to be made.
Rule: the context is read only when it is needed.
Not for: the calls themselves (`istiod.ctl.client`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from istiod.ctl import context

if TYPE_CHECKING:
    from istiod.ctl.client import AdminClient


class Session:
    """The state that typer carries from the global options to the command."""

    def __init__(self, option: Path | None, environ: Mapping[str, str]) -> None:
        self._option = option
        self._environ = environ

    @contextmanager
    def client(self) -> Iterator[AdminClient]:
        """A connected-on-demand client. Raises `ContextError` or `CommandError`."""
        from istiod.ctl.client import AdminClient

        with AdminClient(context.find(self._option, self._environ)) as client:
            yield client


def session_of(ctx: typer.Context) -> Session:
    """The session of a command's context."""
    session = ctx.find_object(Session)
    assert session is not None, "the global callback makes it"
    return session
