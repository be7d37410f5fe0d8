"""meshctl delete: resources by name, by file, by label, or all of a kind.

Job: find out which, delete them one by one, and on request wait until every proxy has taken the change.
Rule: what is deleted is said by name; a name that is missing is an error after the others are deleted.
Not for: services and instances of the catalog (`istiod.ctl.access`).
"""

from __future__ import annotations

import time
from typing import Annotated

import typer

from istiod.ctl import kinds, output, selector
from istiod.ctl.apply import (
    DryRun,
    DryRunOption,
    NamespaceOption,
    OptionalValues,
    WaitOption,
    judge_wait,
    request_body,
    wait_until_taken,
)
from istiod.ctl.failure import CommandError, Detail
from istiod.ctl.get import SelectorOption
from istiod.ctl.manifests import gather
from istiod.ctl.session import session_of


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("delete", cls=OptionalValues)(delete)


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
            answer = client.call(
                "POST", "/api/v1/parse", body=request_body(gather(filename), namespace, True)
            )
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
            judge_wait(wait_until_taken(client, gone, wait, started), wait, quiet=False)
    if missing:
        raise CommandError(
            missing[0] if len(missing) == 1 else f"{len(missing)} resources not found",
            details=tuple(Detail("", "", text) for text in (missing if len(missing) > 1 else ())),
        )
