"""meshctl version: of this command, of istiod, of the proxies.

Job: say which versions are at work.
Rule: without istiod within reach, the client's version is still printed.
Not for: upgrades.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from istiod.admin_context import ContextError
from istiod.ctl import output
from istiod.ctl.failure import CommandError
from istiod.ctl.session import session_of


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("version")(version)


def version(
    ctx: typer.Context,
    *,
    client_only: Annotated[bool, typer.Option("--client", help="Do not ask istiod.")] = False,
    form: Annotated[output.Format, typer.Option("-o", "--output")] = output.Format.TABLE,
) -> None:
    """Show the versions of meshctl, istiod and the connected proxies."""
    from importlib.metadata import version as distribution_version

    data: dict[str, object] = {"client": distribution_version("hostmesh")}
    trouble = ""
    if not client_only:
        try:
            with session_of(ctx).client() as client:
                data["istiod"] = client.get("/api/v1/version")["version"]
                proxies = client.get("/api/v1/proxies")["items"]
                data["proxies"] = dict(Counter(str(proxy["version"]) for proxy in proxies))
        except (CommandError, ContextError) as error:
            trouble = str(error)
    if not output.printed(data, form):
        output.say(f"client version: {data['client']}")
        if "istiod" in data:
            output.say(f"control plane version: {data['istiod']}")
            counts = data["proxies"]
            assert isinstance(counts, dict)
            spoken = ", ".join(f"{name} ({count} proxies)" for name, count in sorted(counts.items()))
            output.say(f"data plane version: {spoken or 'none'}")
    if trouble:
        raise CommandError(trouble)
