"""meshctl proxy-config: what one proxy really runs.

Job: fetch the proxy's own dump through istiod (over the agent's Debug stream) and show it as istioctl does.
Rule: what is shown is the proxy's word; when its agent is not attached (a real Envoy), istiod's record of
what the proxy acknowledged is shown instead, and said so.
Not for: reading the dump (`istiod.ctl.config_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from istiod.ctl import config_rows, output
from istiod.ctl.client import AdminClient
from istiod.ctl.config_rows import Json, Row
from istiod.ctl.failure import CommandError
from istiod.ctl.proxies import split_name
from istiod.ctl.session import session_of

ProxyArgument = Annotated[str, typer.Argument(metavar="NS/NAME", help="The proxy, as proxy-status lists it.")]
FormOption = Annotated[output.Format, typer.Option("-o", "--output")]
PortOption = Annotated[int | None, typer.Option("--port", help="Only this port.")]


def add_to(app: typer.Typer) -> None:
    """Register the command group, and istioctl's short forms hidden."""
    group = typer.Typer(
        help="What one proxy runs: listeners, routes, clusters, endpoints, secrets.", no_args_is_help=True
    )
    for names, command in (
        (("listeners", "listener", "l"), listeners),
        (("routes", "route", "r"), routes),
        (("clusters", "cluster", "c"), clusters),
        (("endpoints", "endpoint", "ep"), endpoints),
        (("secret", "secrets", "s"), secret),
        (("all", "a"), everything),
    ):
        for position, name in enumerate(names):
            group.command(name, hidden=position > 0)(command)
    app.add_typer(group, name="proxy-config")
    app.add_typer(group, name="pc", hidden=True)


def listeners(
    ctx: typer.Context,
    *,
    proxy: ProxyArgument,
    port: PortOption = None,
    address: Annotated[str | None, typer.Option("--address", help="Only this address.")] = None,
    form: FormOption = output.Format.TABLE,
) -> None:
    """Show listeners."""

    def keep(listener: Json) -> bool:
        host, number = config_rows.address_of(listener.get("address", {}))
        return port in (None, number) and address in (None, host)

    found = [one for one in config_rows.listeners(_dump(ctx, proxy)) if keep(one)]
    _show(found, form, config_rows.LISTENER_COLUMNS, config_rows.listener_rows, "No listeners.")


def routes(
    ctx: typer.Context,
    *,
    proxy: ProxyArgument,
    name: Annotated[str | None, typer.Option("--name", help="Only this route configuration.")] = None,
    form: FormOption = output.Format.TABLE,
) -> None:
    """Show routes."""
    found = [one for one in config_rows.routes(_dump(ctx, proxy)) if name in (None, one.get("name"))]
    _show(found, form, config_rows.ROUTE_COLUMNS, config_rows.route_rows, "No routes.")


def clusters(
    ctx: typer.Context,
    *,
    proxy: ProxyArgument,
    fqdn: Annotated[str | None, typer.Option("--fqdn", help="Only this service.")] = None,
    port: PortOption = None,
    subset: Annotated[str | None, typer.Option("--subset", help="Only this subset.")] = None,
    direction: Annotated[str | None, typer.Option("--direction", help="inbound or outbound.")] = None,
    form: FormOption = output.Format.TABLE,
) -> None:
    """Show clusters."""

    def keep(cluster: Json) -> bool:
        way, number, part, host = config_rows.split_cluster(str(cluster.get("name", "")))
        return (
            (fqdn is None or host == fqdn or host.startswith(f"{fqdn}."))
            and (port is None or number == str(port))
            and subset in (None, part)
            and direction in (None, way)
        )

    found = [one for one in config_rows.clusters(_dump(ctx, proxy)) if keep(one)]
    _show(found, form, config_rows.CLUSTER_COLUMNS, config_rows.cluster_rows, "No clusters.")


def endpoints(
    ctx: typer.Context,
    *,
    proxy: ProxyArgument,
    cluster: Annotated[str | None, typer.Option("--cluster", help="Only this cluster.")] = None,
    port: PortOption = None,
    status: Annotated[str | None, typer.Option("--status", help="healthy or unhealthy.")] = None,
    form: FormOption = output.Format.TABLE,
) -> None:
    """Show endpoints with their health."""
    namespace, name = split_name(proxy)
    with session_of(ctx).client() as client:
        live = _ask(client, namespace, name, "clusters?format=json")
        data = live if live is not None else _recorded(client, namespace, name)
    rows = (
        config_rows.endpoint_rows_from_clusters(data)
        if live is not None
        else config_rows.endpoint_rows(config_rows.assignments(data))
    )
    kept = [
        row
        for row in rows
        if cluster in (None, row[3])
        and (port is None or row[0].endswith(f":{port}"))
        and (status is None or row[1] == status.upper())
    ]
    keys = ("endpoint", "status", "outlierCheck", "cluster")
    if not output.printed([dict(zip(keys, row, strict=True)) for row in kept], form):
        output.print_table(config_rows.ENDPOINT_COLUMNS, kept, "No endpoints.")


def secret(ctx: typer.Context, proxy: ProxyArgument, form: FormOption = output.Format.TABLE) -> None:
    """Show certificates (never keys)."""
    namespace, name = split_name(proxy)
    with session_of(ctx).client() as client:
        data = _ask(client, namespace, name, "certs")
    if data is None:
        raise CommandError(
            "certificates are known to the proxy alone, and its agent is not attached to istiod"
        )
    _show(
        data,
        form,
        config_rows.SECRET_COLUMNS,
        lambda page: config_rows.secret_rows(page, datetime.now(UTC)),
        "No certificates.",
    )


def everything(ctx: typer.Context, proxy: ProxyArgument, form: FormOption = output.Format.TABLE) -> None:
    """Show clusters, listeners, routes and endpoints; with -o, the whole dump."""
    dump = _dump(ctx, proxy)
    if output.printed(dump, form):
        return
    parts: list[tuple[Sequence[str], list[Row]]] = [
        (config_rows.CLUSTER_COLUMNS, config_rows.cluster_rows(config_rows.clusters(dump))),
        (config_rows.LISTENER_COLUMNS, config_rows.listener_rows(config_rows.listeners(dump))),
        (config_rows.ROUTE_COLUMNS, config_rows.route_rows(config_rows.routes(dump))),
        (config_rows.ENDPOINT_COLUMNS, config_rows.endpoint_rows(config_rows.assignments(dump))),
    ]
    for position, (columns, rows) in enumerate(parts):
        if position:
            typer.echo()
        output.print_table(columns, rows, "-")


def _dump(ctx: typer.Context, proxy: str) -> Json:
    namespace, name = split_name(proxy)
    with session_of(ctx).client() as client:
        dump = _ask(client, namespace, name, "config_dump?include_eds")
        return dump if dump is not None else _recorded(client, namespace, name)


def _ask(client: AdminClient, namespace: str, name: str, page: str) -> Json | None:
    """A JSON page of the proxy's admin, or None when its agent is not attached."""
    try:
        data = client.get(f"/debug/proxy/{namespace}/{name}/{page}")
    except CommandError as failure:
        if failure.reason == "NotAttached":
            return None
        raise
    if not isinstance(data, dict):
        raise CommandError(f"{namespace}/{name} did not answer /{page} with a JSON object")
    return data


def _recorded(client: AdminClient, namespace: str, name: str) -> Json:
    output.note(f"{namespace}/{name} is not attached to istiod: this is what istiod sent it")
    data: Json = client.get(f"/api/v1/proxies/{namespace}/{name}/config_dump")
    return data


def _show(
    found: Any,
    form: output.Format,
    columns: Sequence[str],
    rows: Callable[[Any], list[Row]],
    empty: str,
) -> None:
    if not output.printed(found, form):
        output.print_table(columns, rows(found), empty)
