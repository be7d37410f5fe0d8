"""meshctl proxy-status: does every proxy run what istiod wants it to run?

Job: istioctl's table of connected proxies by xDS type, and one proxy in detail.
Rule: SYNCED (acknowledged), STALE (sent, not acknowledged yet), ERROR (refused, with the reason), NOT SENT
(the proxy has not asked).
Not for: the configuration itself (`proxy-config`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from istiod.ctl import output
from istiod.ctl.failure import CommandError
from istiod.ctl.session import session_of

SHORT = ("CDS", "LDS", "EDS", "RDS", "NDS")


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("proxy-status")(proxy_status)
    app.command("ps", hidden=True)(proxy_status)


def split_name(text: str) -> tuple[str, str]:
    """`NS/NAME`, or istioctl's `NAME.NS`, as (namespace, name). Raises `CommandError`."""
    if "/" in text:
        namespace, _, name = text.partition("/")
    else:
        name, _, namespace = text.rpartition(".")
    if not namespace or not name or "/" in name:
        raise CommandError(
            f"{text!r} does not name a proxy", "write NAMESPACE/NAME as meshctl proxy-status lists them"
        )
    return namespace, name


def proxy_status(
    ctx: typer.Context,
    *,
    proxy: Annotated[str | None, typer.Argument(metavar="[NS/NAME]", help="One proxy in detail.")] = None,
    namespace: Annotated[
        str | None, typer.Option("--namespace", "-n", help="Only this namespace (default: all).")
    ] = None,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="All namespaces (the default here).")
    ] = False,
    form: Annotated[output.Format, typer.Option("-o", "--output")] = output.Format.TABLE,
) -> None:
    """Show whether the connected proxies have the current configuration."""
    with session_of(ctx).client() as client:
        if proxy is not None:
            space, name = split_name(proxy)
            problems: list[str] = []
            data = client.get(f"/api/v1/proxies/{space}/{name}")
        else:
            answer = client.get(
                "/api/v1/proxies", {"namespace": namespace} if namespace and not all_namespaces else None
            )
            data, problems = answer["items"], answer["problems"]
    if output.printed(data, form):
        return
    if proxy is None:
        _table(data, wide=form is output.Format.WIDE)
        for problem in problems:
            output.note(f"of what the registry holds: {problem}")
    else:
        _detail(data)


def _table(items: list[dict[str, Any]], *, wide: bool) -> None:
    rows = []
    for item in items:
        types = {entry["short"]: entry for entry in item["types"]}
        row = [f"{item['namespace']}/{item['name']}", item["cluster"]]
        row += [_status(types.get(short)) for short in SHORT]
        row += [item["health"], item["istiod"], item["version"]]
        if wide:
            row += [item["address"], item["identity"] or "-", output.age(item["connectedSeconds"])]
        rows.append(row)
    columns = ["NAME", "CLUSTER", *SHORT, "HEALTH", "ISTIOD", "VERSION"]
    columns += ["ADDRESS", "IDENTITY", "CONNECTED"] * wide
    output.print_table(columns, rows, "No proxies are connected.")
    for item in items:
        if item.get("notRegistered"):
            output.note(f"{item['namespace']}/{item['name']} is not registered: {item['notRegistered']}")
        if item.get("healthReason"):
            output.note(f"{item['namespace']}/{item['name']} is unhealthy: {item['healthReason']}")
        for entry in item["types"]:
            if entry["status"] == "ERROR":
                output.note(f"{item['namespace']}/{item['name']} refused {entry['short']}: {entry['reason']}")
        _note_not_compiled(item)


def _note_not_compiled(item: Mapping[str, Any]) -> None:
    for one in item["notCompiled"]:
        where = f"{item['namespace']}/{item['name']}"
        output.note(f"{where} keeps its former {one['part']} or goes without: not compiled: {one['reason']}")


def _detail(item: Mapping[str, Any]) -> None:
    output.say(f"{item['namespace']}/{item['name']}  ({item['id']})")
    output.say(f"identity   {item['identity'] or 'not authenticated (plaintext port)'}")
    since = output.age(item["connectedSeconds"])
    output.say(f"address    {item['address']}, {item['protocol']}, connected for {since}")
    output.say(f"health     {item['health']}    attached {'yes' if item['attached'] else 'no'}")
    if item.get("notRegistered"):
        output.say(f"registered no: {item['notRegistered']}")
    typer.echo()
    rows = [
        [
            entry["short"],
            _status(entry),
            str(entry["resources"]),
            entry["version"] or "-",
            _ago(entry["lastPushSeconds"]),
            _milliseconds(entry["ackMilliseconds"]),
            entry["reason"] or "",
        ]
        for entry in item["types"]
    ]
    output.print_table(
        ["TYPE", "STATUS", "RESOURCES", "VERSION", "LAST PUSH", "ACK AFTER", "REASON"],
        rows,
        "Nothing subscribed.",
    )
    _note_not_compiled(item)


def _status(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "NOT SENT"
    if entry["status"] == "SYNCED" and entry["lastPushSeconds"] is not None:
        return f"SYNCED ({_ago(entry['lastPushSeconds']).removesuffix(' ago')})"
    return str(entry["status"])


def _ago(seconds: float | None) -> str:
    return "-" if seconds is None else f"{output.age(seconds)} ago"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"
