"""meshctl get: resources as they are stored.

Job: one or several kinds, one namespace or all, as kubectl's table, or as manifests to apply again.
Rule: `-o yaml` of one resource is a document for `apply -f`.
Not for: what proxies made of them (`proxy-config`).
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from istiod.ctl import kinds, output
from istiod.ctl.failure import CommandError
from istiod.ctl.session import session_of
from istiod.resources.kinds import KINDS


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("get")(get)


def get(
    ctx: typer.Context,
    *,
    kind: Annotated[
        str,
        typer.Argument(
            help="Kind(s): virtualservice, vs, vs,dr, all, or KIND/NAME.", autocompletion=kinds.complete
        ),
    ],
    name: Annotated[str | None, typer.Argument(help="One resource's name.")] = None,
    namespace: Annotated[str, typer.Option("--namespace", "-n", envvar="HOSTMESH_NAMESPACE")] = "default",
    all_namespaces: Annotated[bool, typer.Option("--all-namespaces", "-A")] = False,
    form: Annotated[output.Format, typer.Option("-o", "--output")] = output.Format.TABLE,
) -> None:
    """Show resources."""
    if "/" in kind and name is None:
        kind, name = kind.split("/", 1)
    wanted = kinds.resolve_many(kind)
    if name is not None and (all_namespaces or len(wanted) != 1):
        raise CommandError("a resource cannot be retrieved by name across all namespaces or kinds")
    with session_of(ctx).client() as client:
        if name is not None:
            items = [client.get(f"/api/v1/resources/{wanted[0].name}/{namespace}/{name}")]
        else:
            params = {} if all_namespaces else {"namespace": namespace}
            if len(wanted) < len(KINDS):
                params["kind"] = ",".join(one.name for one in wanted)
            items = client.get("/api/v1/resources", params)["items"]
    if form in (output.Format.JSON, output.Format.YAML):
        output.print_data(
            items[0] if name is not None else {"apiVersion": "v1", "kind": "List", "items": items}, form
        )
        return
    if form is output.Format.NAME:
        for item in items:
            typer.echo(f"{item['kind'].lower()}/{item['metadata']['name']}")
        return
    where = "in any namespace" if all_namespaces else f"in namespace {namespace}"
    shown = [one for one in wanted if any(item["kind"] == one.name for item in items)]
    if not shown:
        output.note(f"No resources found {where}.")
        return
    for position, one in enumerate(shown):
        if position:
            typer.echo()
        _print_kind(
            one.name,
            [item for item in items if item["kind"] == one.name],
            all_namespaces,
            form is output.Format.WIDE,
            prefix=len(wanted) > 1,
        )


def _print_kind(
    kind: str, items: Sequence[Mapping[str, Any]], namespaces: bool, wide: bool, prefix: bool
) -> None:
    columns = ["NAMESPACE"] * namespaces + ["NAME"] + [column for column, _ in kinds.COLUMNS.get(kind, ())]
    columns += ["AGE"] + ["VERSION", "GENERATION", "API VERSION"] * wide
    now = datetime.datetime.now(datetime.UTC)
    rows = []
    for item in items:
        metadata = item["metadata"]
        row = [metadata["namespace"]] * namespaces
        row.append(f"{kind.lower()}/{metadata['name']}" if prefix else metadata["name"])
        row += [_cell(_field(item, path)) for _, path in kinds.COLUMNS.get(kind, ())]
        created = datetime.datetime.fromisoformat(metadata["creationTimestamp"])
        row.append(output.age((now - created).total_seconds()))
        if wide:
            row += [metadata["resourceVersion"], str(metadata["generation"]), item["apiVersion"]]
        rows.append(row)
    output.print_table(columns, rows, "No resources found.")


def _field(item: Mapping[str, Any], path: str) -> Any:
    value: Any = item
    for step in path.split("."):
        if not isinstance(value, Mapping) or step not in value:
            return ""
        value = value[step]
    return value


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ",".join(f'"{entry}"' for entry in value) + "]"
    return str(value)
