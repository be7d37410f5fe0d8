"""meshctl: the admin's command line.

Job: put the commands together and turn failures into one readable message and exit status 1 (2 is typer's,
for wrong usage).
Rule: words and flags are kubectl's and istioctl's where they have the thing. A command imports what it needs
when it runs, so that completion and --help stay quick.
Not for: what the commands do (one module each beside this).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from istiod.admin_context import ContextError
from istiod.ctl import (
    access,
    apply,
    bootstrap,
    delete,
    get,
    proxies,
    proxy_config,
    tokens,
    version,
    workloads,
)
from istiod.ctl.failure import CommandError, report
from istiod.ctl.output import console
from istiod.ctl.session import Session

app = typer.Typer(
    name="meshctl",
    help="Administer a hostmesh service mesh.",
    no_args_is_help=True,
    invoke_without_command=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    ctx: typer.Context,
    context: Annotated[
        Path | None,
        typer.Option(
            "--context",
            envvar="HOSTMESH_CONTEXT",
            help="The admin context file (default: ~/.config/hostmesh/context.yaml).",
            dir_okay=False,
        ),
    ] = None,
    show_version: Annotated[
        bool, typer.Option("--version", help="Print meshctl's version.", is_eager=True)
    ] = False,
) -> None:
    """Administer a hostmesh service mesh."""
    if show_version:
        from importlib.metadata import version as distribution_version

        typer.echo(f"meshctl {distribution_version('hostmesh')}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        ctx.fail("Missing command.")
    ctx.obj = Session(context, os.environ)


apply.add_to(app)
delete.add_to(app)
get.add_to(app)
tokens.add_to(app)
workloads.add_to(app)
access.add_to(app)
proxies.add_to(app)
proxy_config.add_to(app)
bootstrap.add_to(app)
version.add_to(app)


def hoisted(words: list[str]) -> list[str]:
    """The command line with `--context FILE` in front, wherever it was written: it is an option of every command."""
    front: list[str] = []
    rest: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        if word == "--":
            break
        if word == "--context":
            front += words[position : position + 2]
            position += 1
        elif word.startswith("--context="):
            front.append(word)
        else:
            rest.append(word)
        position += 1
    return [*front, *rest, *words[position:]]


def main() -> None:
    """The console script."""
    try:
        app(hoisted(sys.argv[1:]))
    except CommandError as failure:
        report(failure, console(errors=True))
        sys.exit(1)
    except ContextError as error:
        report(CommandError(str(error)), console(errors=True))
        sys.exit(1)
    except BrokenPipeError:  # `meshctl get … | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
