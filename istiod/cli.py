"""hostmesh-istiod: the control plane's command.

Job: `run` (the systemd service) and `check-config`; failures at start become one readable line and status 1.
Rule: nothing but argument handling; the process is `istiod.server`.
Not for: administering a running istiod (`meshctl`).
"""

from __future__ import annotations

import logging
import os
import sys
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Annotated

import typer

from istiod.config import DEFAULT_PATH, ConfigError, load

app = typer.Typer(
    name="hostmesh-istiod",
    help="The hostmesh control plane.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The configuration file.", dir_okay=False)]


@app.command()
def run(
    config: ConfigOption = DEFAULT_PATH,
    log_level: Annotated[str, typer.Option("--log-level", help="debug, info, warning, error.")] = "info",
    log_format: Annotated[
        str, typer.Option("--log-format", help="text or json; under systemd the journal's fields are used.")
    ] = "text",
) -> None:
    """Run the control plane until SIGTERM."""
    if log_level.upper() not in logging.getLevelNamesMapping():
        raise typer.BadParameter(f"{log_level!r} is not a log level")
    if log_format not in ("text", "json"):
        raise typer.BadParameter("--log-format must be text or json")
    import trio

    from istiod import log, server

    log.configure(log_level, log_format)
    try:
        settings = load(config)
        trio.run(server.run, settings, dict(os.environ), config)
    except ConfigError as error:
        _fail(str(error))
    except server.StartError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        sys.exit(130)


@app.command("check-config")
def check_config(config: ConfigOption = DEFAULT_PATH) -> None:
    """Check the configuration file and exit."""
    try:
        load(config)
    except ConfigError as error:
        _fail(str(error))
    typer.echo(f"{config}: ok")


@app.command()
def version() -> None:
    """Show the version."""
    typer.echo(distribution_version("hostmesh"))


def _fail(message: str) -> None:
    typer.echo(f"hostmesh-istiod: {message}", err=True)
    sys.exit(1)


def main() -> None:
    """The console script."""
    app()


if __name__ == "__main__":
    main()
