"""meshctl token: the join tokens that hosts enrol with.

Job: create (the token alone on standard output, so that it can be piped into a file), list, revoke.
Rule: a token's secret is shown once, at its creation; istiod keeps only its hash.
Not for: what a token allows (`istiod.enrolment`).
"""

from __future__ import annotations

import datetime
import re
from typing import Annotated

import typer

from istiod.ctl import output
from istiod.ctl.failure import CommandError
from istiod.ctl.session import session_of

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_to(app: typer.Typer) -> None:
    """Register the command group."""
    group = typer.Typer(help="Join tokens for hosts.", no_args_is_help=True)
    group.command("create")(create)
    group.command("list")(list_tokens)
    group.command("revoke")(revoke)
    app.add_typer(group, name="token")


def seconds_of(text: str) -> int:
    """`90s`, `30m`, `24h`, `7d` or `1h30m` as seconds. Raises `typer.BadParameter`."""
    parts = re.findall(r"(\d+)([smhd])", text)
    total = sum(int(number) * _UNITS[unit] for number, unit in parts)
    if not total or "".join(number + unit for number, unit in parts) != text:
        raise typer.BadParameter(f"{text!r} is not a duration such as 90s, 30m, 1h or 7d")
    return total


def create(
    ctx: typer.Context,
    *,
    service_account: Annotated[
        list[str], typer.Option("--service-account", "-s", help="Identity the token allows. May be repeated.")
    ],
    service: Annotated[
        list[str] | None,
        typer.Option(
            "--service",
            help="Service that its bearer may serve (ACCOUNT/NAME if there are several accounts). May be repeated. "
            "Without it, the bearer is a client only.",
        ),
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(
            "--address",
            metavar="CIDR",
            help="Where its instances may be (default: own, the address that the host connects from). May be repeated.",
        ),
    ] = None,
    uses: Annotated[int, typer.Option("--uses", help="How many hosts may join with it.")] = 1,
    namespace: Annotated[str, typer.Option("--namespace", "-n", envvar="HOSTMESH_NAMESPACE")] = "default",
    ttl: Annotated[str, typer.Option("--ttl", help="How long it may be used: 30m, 1h, 7d.")] = "1h",
    form: Annotated[output.Format, typer.Option("-o", "--output")] = output.Format.TABLE,
) -> None:
    """Make a join token, and grant its bearer to serve the services; each account may be enrolled once with it."""
    body = {
        "namespace": namespace,
        "serviceAccounts": service_account,
        "services": service or [],
        "addresses": address or [],
        "uses": uses,
        "ttlSeconds": seconds_of(ttl),
    }
    with session_of(ctx).client() as client:
        answer = client.call("POST", "/api/v1/tokens", body=body)
    if output.printed(answer, form):
        return
    typer.echo(answer["token"])
    if not service:
        output.note("without --service the bearer may call services, and serve none")


def list_tokens(
    ctx: typer.Context,
    *,
    form: Annotated[output.Format, typer.Option("-o", "--output")] = output.Format.TABLE,
) -> None:
    """Show tokens, never their secrets."""
    with session_of(ctx).client() as client:
        tokens = client.get("/api/v1/tokens")["items"]
    if output.printed(tokens, form):
        return
    now = datetime.datetime.now(datetime.UTC)
    rows = []
    for token in tokens:
        left = (datetime.datetime.fromisoformat(token["expires"]) - now).total_seconds()
        rows.append(
            [
                token["id"],
                token["namespace"],
                ",".join(token["serviceAccounts"]),
                ",".join(pair.rpartition("/")[2] for pair in token["services"]) or "-",
                ",".join(token["used"]) or "-",
                output.age(left) if left > 0 else "-",
                token["status"],
            ]
        )
    output.print_table(
        ["ID", "NAMESPACE", "SERVICE ACCOUNTS", "SERVICES", "USED", "EXPIRES IN", "STATUS"],
        rows,
        "No tokens.",
    )


def revoke(ctx: typer.Context, identifier: Annotated[list[str], typer.Argument(metavar="ID…")]) -> None:
    """Make tokens unusable. Certificates that were issued with them stay valid."""
    with session_of(ctx).client() as client:
        for one in identifier:
            # Whoever pastes the whole token means its id; the secret must not travel or be logged.
            public = one.split(".")[1] if one.startswith("hm1.") and one.count(".") >= 2 else one
            if not public:
                raise CommandError(f"{one!r} is not a token id")
            client.call("DELETE", f"/api/v1/tokens/{public}")
            output.say(f"token {public} revoked")
