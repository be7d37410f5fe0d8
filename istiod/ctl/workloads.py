"""meshctl workload and meshctl service: what is registered, and what may be.

Job: the catalog as tables; the commands that change what may be in it are in `istiod.ctl.access`.
Rule: workloads come and go with their agents.
Not for: WorkloadEntry resources (`meshctl get workloadentries`).
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from istiod.ctl import access, output, selector
from istiod.ctl.get import SelectorOption
from istiod.ctl.session import session_of

NamespaceOption = Annotated[
    str | None, typer.Option("--namespace", "-n", help="Only this namespace (default: all).")
]
AllOption = Annotated[bool, typer.Option("--all-namespaces", "-A", help="All namespaces (the default here).")]


def add_to(app: typer.Typer) -> None:
    """Register the command groups."""
    workload = typer.Typer(help="Registered workloads.", no_args_is_help=True)
    workload.command("list")(list_workloads)
    workload.command("evict")(access.evict)
    workload.command("readmit")(access.readmit)
    app.add_typer(workload, name="workload")
    service = typer.Typer(help="Services of the mesh.", no_args_is_help=True)
    service.command("list")(list_services)
    service.command("grants")(access.grants)
    service.command("delete")(access.delete_service)
    app.add_typer(service, name="service")


def list_workloads(
    ctx: typer.Context,
    *,
    namespace: NamespaceOption = None,
    all_namespaces: AllOption = False,
    labels: SelectorOption = None,
    form: Annotated[output.Format, typer.Option("-o", "--output")] = output.Format.TABLE,
) -> None:
    """Show the workloads that hosts have registered."""
    items = _items(ctx, "/api/v1/workloads", None if all_namespaces else namespace)
    if labels:
        wanted = selector.parse(labels)
        items = [item for item in items if wanted(item["labels"])]
    if output.printed(items, form):
        return
    wide = form is output.Format.WIDE
    columns = ["NAMESPACE", "NAME", "SERVICE", "ADDRESS", "PORTS", "SERVICE ACCOUNT", "HEALTH", "CONNECTED"]
    columns += ["LOCALITY", "LABELS", "HOST", "ISTIOD"] * wide
    rows = []
    for item in items:
        row = [
            item["namespace"],
            item["name"],
            item["service"],
            item["addresses"][0] if item["addresses"] else "-",
            ",".join(f"{port['name']}:{port['port']}" for port in item["ports"]),
            item["serviceAccount"],
            item["health"].upper(),
            "yes" if item["connected"] else "no",
        ]
        if wide:
            labels = ",".join(f"{key}={value}" for key, value in sorted(item["labels"].items()))
            row += [item["locality"] or "-", labels or "-", item["node"] or "-", item["owner"] or "-"]
        rows.append(row)
    output.print_table(columns, rows, "No workloads are registered.")


def list_services(
    ctx: typer.Context,
    *,
    namespace: NamespaceOption = None,
    all_namespaces: AllOption = False,
    form: Annotated[output.Format, typer.Option("-o", "--output")] = output.Format.TABLE,
) -> None:
    """Show the services and their virtual addresses."""
    items = _items(ctx, "/api/v1/services", None if all_namespaces else namespace)
    if output.printed(items, form):
        return
    rows = [
        [
            item["namespace"],
            item["name"],
            item["hostname"],
            ",".join(item["addresses"]),
            ",".join(f"{port['name']}:{port['port']}" for port in item["ports"]),
            f"{item['healthy']}/{item['instances']}",
        ]
        for item in items
    ]
    columns = ["NAMESPACE", "NAME", "HOST", "ADDRESSES", "PORTS", "HEALTHY"]
    output.print_table(columns, rows, "No services are registered.")


def _items(ctx: typer.Context, path: str, namespace: str | None) -> list[dict[str, Any]]:
    with session_of(ctx).client() as client:
        items: list[dict[str, Any]] = client.get(path, {"namespace": namespace} if namespace else None)[
            "items"
        ]
    return items
