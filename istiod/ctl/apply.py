"""meshctl apply, diff, validate, delete: documents from the user's side to the mesh's.

Job: gather the documents, let istiod judge and write them (all or nothing), say what became of each, and on
request wait until every proxy has taken the change.
Rule: `validate` asks nobody: it uses the parser that istiod itself uses.
Not for: reading resources back (`istiod.ctl.get`).
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

from istiod.ctl import kinds, output, selector
from istiod.ctl.failure import CommandError, Detail
from istiod.ctl.get import SelectorOption
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


class _OptionalValues(TyperCommand):
    """A command whose `--wait` and `--dry-run` may stand alone (`--wait` = `--wait=10`)."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [_ALONE.get(arg, arg) for arg in args])


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    app.command("apply", cls=_OptionalValues)(apply)
    app.command("delete", cls=_OptionalValues)(delete)
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
        answer = client.call("POST", "/api/v1/apply", body=_body(sources, namespace, dry))
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
            waited = _wait(client, results, wait, started)
    if form.is_data:
        output.print_data(answer | ({"wait": waited} if waited is not None else {}), form)
    if waited is not None:
        _judge_wait(waited, wait, quiet=form.is_data or form is output.Format.NAME)


def delete(
    ctx: typer.Context,
    *,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KIND NAME… | KIND/NAME… | KINDS --all]", autocompletion=kinds.complete_resources
        ),
    ] = None,
    filename: Annotated[
        list[str] | None, typer.Option("--filename", "-f", help="Delete what these files name.")
    ] = None,
    namespace: NamespaceOption = "default",
    everything: Annotated[
        bool, typer.Option("--all", help="All resources of the kinds, in the namespace.")
    ] = False,
    all_namespaces: Annotated[
        bool, typer.Option("--all-namespaces", "-A", help="With --all or -l: in every namespace.")
    ] = False,
    labels: SelectorOption = None,
    ignore_not_found: Annotated[
        bool, typer.Option("--ignore-not-found", help="A missing one is no error.")
    ] = False,
    wait: WaitOption = 0.0,
    dry_run: DryRunOption = DryRun.NONE,
) -> None:
    """Delete resources by name, by file, by label, or all of a kind."""
    if bool(what) == bool(filename):
        raise typer.BadParameter("give either KIND NAME or -f FILE")
    wanted, names = kinds.targets(what) if what else ([], [])
    many = everything or labels is not None
    if what and bool(names) == many:
        raise typer.BadParameter(
            "give names, or --all, or -l with labels" if not many else "give names or --all"
        )
    if all_namespaces and not many:
        raise typer.BadParameter("-A goes with --all or -l")
    started = time.monotonic()
    dry = dry_run is DryRun.SERVER
    with session_of(ctx).client() as client:
        if filename:
            answer = client.call("POST", "/api/v1/parse", body=_body(gather(filename), namespace, True))
            targets = [(d["kind"], d["namespace"], d["name"]) for d in answer["documents"]]
        elif many:
            params = {"kind": ",".join(kind.name for kind in wanted)}
            params |= {} if all_namespaces else {"namespace": namespace}
            items = selector.chosen(client.get("/api/v1/resources", params)["items"], labels)
            targets = [(i["kind"], i["metadata"]["namespace"], i["metadata"]["name"]) for i in items]
            if not targets:
                output.note("No resources found.")
        else:
            targets = [(kind, namespace, name) for kind, name in names]
        gone = []
        missing = []
        for kind, space, name in targets:
            try:
                client.call(
                    "DELETE",
                    f"/api/v1/resources/{kind}/{space}/{name}",
                    params={"dryRun": "true"} if dry else None,
                )
            except CommandError as failure:
                if failure.reason != "NotFound":
                    raise
                if not ignore_not_found:
                    missing.append(failure.message)
                continue
            output.say(f"{kind.lower()}/{name} deleted{' (dry run)' if dry else ''}")
            gone.append({"kind": kind, "namespace": space, "name": name, "version": ""})
        if wait and gone and not dry:
            _judge_wait(_wait(client, gone, wait, started), wait, quiet=False)
    if missing:
        raise CommandError(
            missing[0] if len(missing) == 1 else f"{len(missing)} resources not found",
            details=tuple(Detail("", "", text) for text in (missing if len(missing) > 1 else ())),
        )


def diff(ctx: typer.Context, filename: FileOption, namespace: NamespaceOption = "default") -> None:
    """Show what apply would change. Exit status 1 when there are differences, as kubectl's."""
    with session_of(ctx).client() as client:
        answer = client.call("POST", "/api/v1/apply", body=_body(gather(filename), namespace, True))
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


def _body(sources: Sequence[Source], namespace: str, dry_run: bool) -> dict[str, Any]:
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


def _wait(client: Any, results: Sequence[dict[str, Any]], seconds: float, started: float) -> dict[str, Any]:
    keys = ("kind", "namespace", "name", "version")
    body = {"resources": [{key: r[key] for key in keys} for r in results], "timeoutSeconds": seconds}
    answer: dict[str, Any] = client.call("POST", "/api/v1/wait", body=body, timeout=seconds + 10.0)
    answer["milliseconds"] = round((time.monotonic() - started) * 1000)
    return answer


def _judge_wait(waited: dict[str, Any], seconds: float, quiet: bool) -> None:
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
