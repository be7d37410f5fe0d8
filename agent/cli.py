"""The command line of the agent: `hostmesh-agent run|proxy|capture|status|drain|check-config|version`.

Rule: exit status 0, 1 (failed) or 2 (usage); data goes to standard output, everything else to standard error.
Commands import what they need when they run: `status` must be quick. Not for: doing anything itself.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from agent.host.config import DEFAULT_PATH, AgentConfig, AgentConfigError
from agent.host.config import load as load_config

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="The hostmesh agent: the data plane of one host and its services.",
)
capture_app = typer.Typer(no_args_is_help=True, help="The nftables rules by hand.")
app.add_typer(capture_app, name="capture")

_errors = Console(stderr=True, highlight=False)
_output = Console(highlight=False)


class Format(StrEnum):
    """How data is printed."""

    table = "table"
    json = "json"
    yaml = "yaml"


ConfigOption = Annotated[Path, typer.Option("--config", "-c", help="The agent's configuration file.")]
FormatOption = Annotated[Format, typer.Option("--output", "-o", help="table, json or yaml.")]


def main() -> None:
    """The console script."""
    app()


@app.command()
def run(config: ConfigOption = DEFAULT_PATH) -> None:
    """Serve this host: identity, DNS, capture, workers. This is what systemd starts."""
    import trio

    from agent.host import log
    from agent.host.admin.local_socket import CommandError
    from agent.host.ports import PortTaken

    parsed = _load(config)
    log.configure(parsed.log_level)

    async def serve() -> None:
        from agent.host.service import AgentService

        await AgentService(parsed).run()

    reasons: list[str] = []
    try:
        trio.run(serve, strict_exception_groups=True)
    except* (AgentConfigError, PortTaken, CommandError, OSError, SystemExit) as group:
        reasons = [str(error) for error in _leaves(group)]
    # Outside of except*, which would wrap the exit in a group.
    if reasons:
        _fail(*reasons)


@app.command()
def proxy(
    config: Annotated[Path, typer.Option("--config", "-c", help="An Envoy v3 bootstrap (YAML or JSON).")],
    workers: Annotated[int, typer.Option(min=1, max=256, help="Worker processes.")] = 1,
    flush: Annotated[
        int,
        typer.Option(
            "--file-flush-interval-msec", min=1, max=60_000, help="How often access logs are written, in ms."
        ),
    ] = 1000,
) -> None:
    """The data plane alone, on a static Envoy bootstrap: no root, no nftables, no control plane.

    SIGTERM drains, SIGHUP and SIGUSR1 reopen the access logs.
    """
    from agent.host.proxy.command import replace_this_process

    replace_this_process(config, workers, flush)


@app.command()
def status(config: ConfigOption = DEFAULT_PATH, output: FormatOption = Format.table) -> None:
    """What the running agent does."""
    from agent.host.service import SOCKET_NAME

    parsed = _load(config)
    answer = _ask(parsed.run_dir / SOCKET_NAME, "status")
    if output is Format.table:
        _show_status(answer)
    else:
        _print_data(answer, output)
    if not answer["ready"]:
        raise typer.Exit(1)


@app.command()
def drain(config: ConfigOption = DEFAULT_PATH) -> None:
    """Take this host out: capture down, leave the mesh, let connections finish, end the agent."""
    from agent.host.service import SOCKET_NAME

    typer.echo(_ask(_load(config).run_dir / SOCKET_NAME, "drain"))


@app.command("check-config")
def check_config(config: ConfigOption = DEFAULT_PATH) -> None:
    """Check the configuration file and what it names on this host."""
    from agent.host.node import all_users, host_facts

    parsed = _load(config)
    try:
        all_users(parsed)
        facts = host_facts(parsed)
    except AgentConfigError as error:
        _fail(*error.problems)
    typer.echo(
        f"{config}: ok: {len(parsed.workloads)} workload(s) on {facts.name} ({', '.join(facts.addresses)})"
    )


@app.command()
def version(
    *,
    long: Annotated[bool, typer.Option("--long", help="Also say how the data plane runs.")] = False,
) -> None:
    """Print the version."""
    import platform
    from importlib.metadata import version as of

    from agent import compiled

    typer.echo(of("hostmesh"))
    if long:
        typer.echo(f"data plane: {'compiled' if compiled.active() else 'interpreted'}")
        typer.echo(f"{platform.python_implementation()} {platform.python_version()}")


@capture_app.command("up")
def capture_up(config: ConfigOption = DEFAULT_PATH) -> None:
    """Redirect this host's traffic. Without a running agent: for as long as this command runs."""
    from agent.host.capture import by_hand as capture_by_hand

    parsed = _load(config)
    _run(lambda: capture_by_hand.up(parsed, typer.echo))


@capture_app.command("down")
def capture_down(config: ConfigOption = DEFAULT_PATH) -> None:
    """Stop redirecting, whoever holds the rules."""
    from agent.host.capture import by_hand as capture_by_hand

    parsed = _load(config)
    typer.echo(_run(lambda: capture_by_hand.down(parsed)))


@capture_app.command("show")
def capture_show() -> None:
    """Print the rules as the kernel has them, with their counters."""
    from agent.host.capture.table import CaptureError, show

    try:
        typer.echo(show())
    except CaptureError as error:
        _fail(str(error))


@capture_app.command("check")
def capture_check(config: ConfigOption = DEFAULT_PATH, output: FormatOption = Format.table) -> None:
    """Preflight: rights, kernel, libnftables, conflicting rules, ports. Changes nothing."""
    from agent.host.capture import by_hand as capture_by_hand
    from agent.host.capture import preflight

    parsed = _load(config)
    running = _run(lambda: capture_by_hand.running(parsed.run_dir))
    findings = preflight.check(parsed, agent_running=running)
    if output is Format.table:
        table = Table("", "topic", "finding", box=None)
        marks = {"ok": "[green]✔[/]", "note": "[yellow]![/]", "problem": "[red]✘[/]"}
        for finding in findings:
            table.add_row(marks[finding.state], finding.topic, finding.detail)
        _output.print(table)
    else:
        rows = [{"topic": each.topic, "state": each.state, "detail": each.detail} for each in findings]
        _print_data(rows, output)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def _load(path: Path) -> AgentConfig:
    try:
        return load_config(path)
    except AgentConfigError as error:
        _fail(*(f"{path}: {problem}" if str(path) not in problem else problem for problem in error.problems))


def _ask(path: Path, command: str) -> Any:
    from agent.host.admin import local_socket

    return _run(lambda: local_socket.ask(path, command))


def _run(action: Callable[[], Awaitable[Any]]) -> Any:
    import trio

    from agent.host.admin.local_socket import CommandError, NotRunning
    from agent.host.capture.table import CaptureError

    result: Any = None

    async def call() -> None:
        nonlocal result
        result = await action()

    reasons: list[str] = []
    try:
        trio.run(call)
    except* (CommandError, NotRunning, CaptureError, AgentConfigError) as group:
        reasons = [str(error) for error in _leaves(group)]
    if reasons:
        _fail(*reasons)
    return result


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


def _fail(*problems: str) -> NoReturn:
    for problem in problems:
        _errors.print(problem, style="red", markup=False, soft_wrap=True)
    sys.exit(1)


def _print_data(value: Any, output: Format) -> None:
    if output is Format.json:
        typer.echo(json.dumps(value, indent=2))
    else:
        import yaml

        typer.echo(yaml.safe_dump(value, sort_keys=False), nl=False)


def _show_status(answer: dict[str, Any]) -> None:
    state = "draining" if answer["draining"] else "ready" if answer["ready"] else "not ready"
    capture = "up" if answer["capture"] else "down"
    workers = ", ".join(f"{worker['pid']}" for worker in answer["workers"])
    _output.print(
        f"[bold]{answer['host']}[/] {state}; capture {capture}; configuration {answer['generation']}; "
        f"workers {workers or 'none'}"
    )
    for work in answer["workloads"]:
        _output.print(_workload_table(work))


def _workload_table(work: dict[str, Any]) -> Table:
    istiod, identity, until = work["istiod"], work["identity"], work["identity"]["expires"]
    health = {True: "[green]healthy[/]", False: "[red]unhealthy[/]", None: "unknown"}[work["healthy"]]
    table = Table(
        box=None, show_header=False, title=work["workload"], title_justify="left", title_style="bold"
    )
    table.add_column(style="dim")
    table.add_column(overflow="fold")
    table.add_row("health", f"{health} {escape(work['healthReason'])}")
    table.add_row(
        "istiod", "connected" if istiod["connected"] else f"[red]down[/] {escape(istiod['error'] or '')}"
    )
    if istiod["rejected"]:
        table.add_row("refused", f"[red]{escape(istiod['rejected'])}[/]")
    if istiod["notRegistered"]:
        table.add_row("not registered", f"[red]{escape(istiod['notRegistered'])}[/]")
    table.add_row("identity", escape(identity["spiffe"] or "none yet"))
    if until:
        table.add_row("", f"until {datetime.fromtimestamp(until, UTC).isoformat(timespec='seconds')}")
    if identity["error"]:
        table.add_row("", f"[red]{escape(identity['error'])}[/]")
    table.add_row("resources", ", ".join(f"{count} {name}" for name, count in work["resources"].items()))
    table.add_row(
        "dns", f"{work['dns']['answered']} of {work['dns']['queries']} questions answered from the mesh"
    )
    return table
