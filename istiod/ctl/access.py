"""meshctl service grants and delete, identity revoke, workload evict: who may do what, and who may no more.

Job: the admin API's grants, revocations and evictions as commands.
Rule: what a command changed is said in one line; lists are tables as everywhere.
Not for: join tokens (`istiod.ctl.tokens`).
"""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

import typer

from istiod.ctl import output
from istiod.ctl.failure import CommandError
from istiod.ctl.session import session_of

FormOption = Annotated[output.Format, typer.Option("-o", "--output")]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why, for those who read it later.")]


def add_to(app: typer.Typer) -> None:
    """Register `meshctl identity`; the other commands belong to groups of `istiod.ctl.workloads`."""
    group = typer.Typer(help="Identities and certificates that count no more.", no_args_is_help=True)
    group.command("revoke")(revoke)
    group.command("restore")(restore)
    group.command("revocations")(revocations)
    app.add_typer(group, name="identity")


def named(text: str, what: str) -> tuple[str, str]:
    """`NS/NAME` as two parts. Raises `CommandError`."""
    namespace, slash, name = text.partition("/")
    if not slash or not namespace or not name or "/" in name:
        raise CommandError(f"{text!r} does not name a {what}", "write NAMESPACE/NAME")
    return namespace, name


def grants(
    ctx: typer.Context,
    *,
    service: Annotated[str, typer.Argument(metavar="NS/NAME")],
    add: Annotated[
        list[str] | None, typer.Option("--add", metavar="ACCOUNT", help="Let this service account serve it.")
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(
            "--address", metavar="CIDR", help="With --add: at these addresses (`own`: its connection's)."
        ),
    ] = None,
    remove: Annotated[
        list[str] | None,
        typer.Option("--remove", metavar="ACCOUNT", help="Let it serve the service no more."),
    ] = None,
    form: FormOption = output.Format.TABLE,
) -> None:
    """Show who may serve a service, after changing it with --add and --remove."""
    namespace, name = named(service, "service")
    if address and not add:
        raise typer.BadParameter("--address needs --add")
    path = f"/api/v1/services/{quote(namespace)}/{quote(name)}/grants"
    with session_of(ctx).client() as client:
        for account in add or ():
            client.call("PUT", f"{path}/{quote(account)}", body={"addresses": address or []})
            output.note(f"{namespace}/{account} may serve {service}")
        for account in remove or ():
            client.call("DELETE", f"{path}/{quote(account)}")
            output.note(f"{namespace}/{account} may not serve {service} any more")
        items = client.get(path)["items"]
    if output.printed(items, form):
        return
    rows = [
        [
            item["serviceAccount"],
            ",".join(item["addresses"]),
            item["source"] or "-",
            item["created"],
            ",".join(one.partition("/")[2] for one in item["instances"]) or "-",
        ]
        for item in items
    ]
    columns = ["SERVICE ACCOUNT", "ADDRESSES", "GRANTED BY", "SINCE", "INSTANCES"]
    output.print_table(columns, rows, f"Nobody may serve {service}.")


def delete_service(
    ctx: typer.Context, service: Annotated[list[str], typer.Argument(metavar="NS/NAME…")]
) -> None:
    """Delete services without instances, with their grants; no other name gets their addresses for a day."""
    with session_of(ctx).client() as client:
        for one in service:
            namespace, name = named(one, "service")
            client.call("DELETE", f"/api/v1/services/{quote(namespace)}/{quote(name)}")
            output.say(f"service {one} deleted")


def evict(
    ctx: typer.Context,
    *,
    workload: Annotated[list[str], typer.Argument(metavar="NS/NAME…")],
    reason: ReasonOption = "",
) -> None:
    """Take workloads out of the mesh's services until they are readmitted; they may still call others."""
    with session_of(ctx).client() as client:
        for one in workload:
            namespace, name = named(one, "workload")
            path = f"/api/v1/workloads/{quote(namespace)}/{quote(name)}/eviction"
            client.call("PUT", path, body={"reason": reason})
            output.say(f"workload {one} evicted")


def readmit(ctx: typer.Context, workload: Annotated[list[str], typer.Argument(metavar="NS/NAME…")]) -> None:
    """Undo evict."""
    with session_of(ctx).client() as client:
        for one in workload:
            namespace, name = named(one, "workload")
            client.call("DELETE", f"/api/v1/workloads/{quote(namespace)}/{quote(name)}/eviction")
            output.say(f"workload {one} readmitted")


def revoke(
    ctx: typer.Context,
    *,
    subject: Annotated[list[str], typer.Argument(metavar="SPIFFE|SERIAL…")],
    reason: ReasonOption = "",
) -> None:
    """Let identities (spiffe://…) or single certificates (serial number in hex) count no more with istiod.

    A revoked identity gets no configuration and no certificate, and callers stop accepting it as a server.
    """
    with session_of(ctx).client() as client:
        for one in subject:
            answer: dict[str, Any] = client.call(
                "POST", "/api/v1/revocations", body={"subject": one, "reason": reason}
            )
            output.say(f"{answer['subject']} revoked")


def restore(
    ctx: typer.Context, subject: Annotated[list[str], typer.Argument(metavar="SPIFFE|SERIAL…")]
) -> None:
    """Undo revoke."""
    with session_of(ctx).client() as client:
        for one in subject:
            client.call("DELETE", "/api/v1/revocations", body={"subject": one})
            output.say(f"{one} restored")


def revocations(ctx: typer.Context, *, form: FormOption = output.Format.TABLE) -> None:
    """Show what was revoked."""
    with session_of(ctx).client() as client:
        items = client.get("/api/v1/revocations")["items"]
    if output.printed(items, form):
        return
    rows = [[item["subject"], item["created"], item["reason"] or "-"] for item in items]
    output.print_table(["SUBJECT", "SINCE", "REASON"], rows, "Nothing is revoked.")
