"""meshctl apply, diff, validate: documents from the user's side to the mesh's.

Job: gather the documents, let istiod judge and write them (all or nothing), say what became of each, and on
request wait until every proxy has taken the change.
Rule: `validate` asks nobody: it uses the parser that istiod itself uses.
Not for: reading resources back (`istiod.ctl.get`) or deleting them (`istiod.ctl.delete`).
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any

import typer
import yaml
from typer.core import TyperCommand

from istiod.ctl import output
from istiod.ctl.failure import CommandError, Detail
from istiod.ctl.manifests import Source, gather
from istiod.ctl.session import session_of

FileOption = Annotated[
    list[str],
    typer.Option(
        "--filename",
        "-f",
        help="File, directory or - for standard input. May be repeated.",
        show_default=False,
    ),
]
NamespaceOption = Annotated[
    str,
    typer.Option(
        "--namespace", "-n", help="Namespace of documents that name none.", envvar="HOSTMESH_NAMESPACE"
    ),
]
WaitOption = Annotated[
    float,
    typer.Option(
        "--wait",
        metavar="[SECONDS]",
        help="Wait until all connected proxies have acknowledged the change (--wait alone: 10 seconds).",
        show_default=False,
        min=0.0,
    ),
]
DEFAULT_WAIT = 10.0


class DryRun(StrEnum):
    """`--dry-run`: kubectl's words for it."""

    NONE = "none"
    SERVER = "server"


DryRunOption = Annotated[
    DryRun,
    typer.Option(
        "--dry-run",
        metavar="[none|server]",
        help="Let istiod judge and compare, but write nothing (--dry-run alone: server).",
        show_default=False,
    ),
]
_ALONE = {"--wait": f"--wait={DEFAULT_WAIT}", "--dry-run": "--dry-run=server"}


class OptionalValues(TyperCommand):
    """A command whose `--wait` and `--dry-run` may stand alone (`--wait` = `--wait=10`)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [_ALONE.get(arg, arg) for arg in args])


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("apply", cls=OptionalValues)(apply)
    app.command("diff")(diff)
    app.command("validate")(validate)


def apply(
    ctx: typer.Context,
    *,
    filename: FileOption,
    namespace: NamespaceOption = "default",
    dry_run: DryRunOption = DryRun.NONE,
    wait: WaitOption = 0.0,
    form: Annotated[output.Format, typer.Option("-o", "--output")] = output.Format.TABLE,
) -> None:
    """Create or change resources from files. Either every document is valid, or nothing is written."""
    sources = gather(filename)
    started = time.monotonic()
    dry = dry_run is DryRun.SERVER
    with session_of(ctx).client() as client:
        answer = client.call("POST", "/api/v1/apply", body=request_body(sources, namespace, dry))
        results = answer["results"]
        waited = None
        if form is output.Format.NAME:
            for result in results:
                typer.echo(f"{str(result['kind']).lower()}/{result['name']}")
        elif not form.is_data:
            for result in results:
                _say_result(result, dry)
        if not form.is_data:
            for warning in answer.get("warnings", ()):
                output.note(f"warning: {warning}")
        if wait and not dry:
            waited = wait_until_taken(client, results, wait, started)
    if form.is_data:
        output.print_data(answer | ({"wait": waited} if waited is not None else {}), form)
    if waited is not None:
        judge_wait(waited, wait, quiet=form.is_data or form is output.Format.NAME)


def diff(ctx: typer.Context, filename: FileOption, namespace: NamespaceOption = "default") -> None:
    """Show what apply would change. Exit status 1 when there are differences, as kubectl's."""
    with session_of(ctx).client() as client:
        answer = client.call("POST", "/api/v1/apply", body=request_body(gather(filename), namespace, True))
    changed = False
    for result in answer["results"]:
        name = f"{result['kind']}/{result['namespace']}/{result['name']}"
        before, after = _comparable(result.get("before")), _comparable(result.get("after"))
        for line in difflib.unified_diff(before, after, f"live/{name}", f"new/{name}", lineterm=""):
            changed = True
            output.say(line, {"+": "green", "-": "red", "@": "cyan"}.get(line[0], ""))
    if changed:
        raise typer.Exit(1)


def validate(
    filename: FileOption,
    namespace: NamespaceOption = "default",
    form: Annotated[output.Format, typer.Option("-o", "--output")] = output.Format.TABLE,
) -> None:
    """Check documents without istiod: kinds, fields, values, and whether this version can do what they ask.

    A resource may be in several files: alternatives that lie side by side are valid, each for itself.
    """
    from istiod.api.documents import findings, parse_sources

    each = [parse_sources([(source.name, source.text)], namespace) for source in gather(filename)]
    blocking = [problem for parsed in each for problem in parsed.blocking()]
    problems = [Detail(one.where, one.field, one.reason) for one in findings(blocking)]
    remarks = [str(problem) for parsed in each for problem in parsed.warnings()]
    documents = [document for parsed in each for document in parsed.documents]
    if form.is_data:
        output.print_data(
            {
                "valid": not problems,
                "documents": [str(document.resource.key) for document in documents],
                "problems": [vars(detail) for detail in problems],
                "warnings": remarks,
            },
            form,
        )
        if problems:
            raise typer.Exit(1)
        return
    for remark in remarks:
        output.note(f"warning: {remark}")
    if problems:
        raise CommandError(
            f"{len(problems)} problem{'s' if len(problems) > 1 else ''} found", details=problems
        )
    for document in documents:
        name = f"{document.resource.kind.lower()}/{document.resource.name}"
        output.say(name if form is output.Format.NAME else f"{name} valid")


def request_body(sources: Sequence[Source], namespace: str, dry_run: bool) -> dict[str, Any]:
    return {
        "namespace": namespace,
        "dryRun": dry_run,
        "sources": [{"name": source.name, "text": source.text} for source in sources],
    }


def _say_result(result: dict[str, Any], dry_run: bool) -> None:
    action = str(result["action"])
    style = {"created": "green", "configured": "yellow"}.get(action, "")
    version = f" (version {result['version']})" if result.get("version") else ""
    suffix = " (dry run)" if dry_run else version
    output.say(f"{str(result['kind']).lower()}/{result['name']} {action}{suffix}", style)


def wait_until_taken(
    client: Any, results: Sequence[dict[str, Any]], seconds: float, started: float
) -> dict[str, Any]:
    keys = ("kind", "namespace", "name", "version")
    body = {"resources": [{key: r[key] for key in keys} for r in results], "timeoutSeconds": seconds}
    answer: dict[str, Any] = client.call("POST", "/api/v1/wait", body=body, timeout=seconds + 10.0)
    answer["milliseconds"] = round((time.monotonic() - started) * 1000)
    return answer


def judge_wait(waited: dict[str, Any], seconds: float, quiet: bool) -> None:
    refused = [
        Detail(n["proxy"], n["type"], f"refused the configuration: {n['reason']}") for n in waited["rejected"]
    ]
    if refused:
        count = len({detail.where for detail in refused})
        raise CommandError(
            f"{count} {'proxy' if count == 1 else 'proxies'} refused the change and"
            f" {'keeps its' if count == 1 else 'keep their'} former configuration",
            details=refused,
        )
    if not waited["connected"]:
        raise CommandError(
            f"after {seconds:g} s no proxy is connected: the change is stored and in effect nowhere",
            "proxies that connect will get it; look at meshctl proxy-status",
        )
    if not waited["synced"]:
        behind = ", ".join(waited["pending"][:10])
        raise CommandError(
            f"after {seconds:g} s not all proxies have acknowledged the change; waiting for: {behind}",
            "the change is stored and will reach them; look at meshctl proxy-status",
        )
    if not quiet:
        count = waited["proxies"]
        output.say(
            f"in effect on {count} {'proxy' if count == 1 else 'proxies'} after {waited['milliseconds']} ms"
        )
        for proxy in sorted({one["proxy"] for one in waited["degraded"]}):
            output.note(f"warning: {proxy} refuses a part of its configuration since before this change")


def _comparable(manifest: dict[str, Any] | None) -> list[str]:
    """A manifest as lines, without what the store adds."""
    if manifest is None:
        return []
    metadata = {
        key: value
        for key, value in manifest["metadata"].items()
        if key not in ("resourceVersion", "uid", "generation", "creationTimestamp")
    }
    return yaml.safe_dump(manifest | {"metadata": metadata}, sort_keys=True, allow_unicode=True).splitlines()
