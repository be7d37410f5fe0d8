"""meshctl envoy-bootstrap: a real Envoy in a workload's place.

Job: print the bootstrap with which Envoy 1.40 connects to istiod as that workload, identity by the files that
the workload's agent keeps.
Rule: istiod makes the document (it knows the workload and its own address); this prints it.
Not for: static bootstraps of `hostmesh-agent proxy`.
"""

from __future__ import annotations

from typing import Annotated

import typer

from istiod.ctl import output
from istiod.ctl.proxies import split_name
from istiod.ctl.session import session_of


def add_to(app: typer.Typer) -> None:
    """Register the command."""
    app.command("envoy-bootstrap")(envoy_bootstrap)


def envoy_bootstrap(
    ctx: typer.Context,
    *,
    workload: Annotated[
        str, typer.Option("--workload", metavar="NS/NAME", help="The workload to stand in for.")
    ],
    identity: Annotated[
        str, typer.Option("--identity", help="Directory with cert-chain.pem, key.pem and root-cert.pem.")
    ] = "/var/lib/hostmesh/identity",
    istiod: Annotated[
        str | None, typer.Option("--istiod", help="HOST:PORT of istiod's xDS listener.")
    ] = None,
    sds: Annotated[
        str, typer.Option("--sds", help="Unix socket of the SDS server.")
    ] = "/run/hostmesh/sds.sock",
    form: Annotated[output.Format, typer.Option("-o", "--output")] = output.Format.YAML,
) -> None:
    """Print an Envoy bootstrap for a registered workload."""
    namespace, name = split_name(workload)
    params = {"identity": identity, "sds": sds} | ({"istiod": istiod} if istiod else {})
    with session_of(ctx).client() as client:
        data = client.get(f"/api/v1/workloads/{namespace}/{name}/envoy-bootstrap", params)
    output.print_data(data, output.Format.JSON if form is output.Format.JSON else output.Format.YAML)
