"""Values with %OPERATORS% in configured headers and bodies, made per request (Envoy's substitution formatter).

Rule: text without an operator is bytes at once; everything else is telemetry's formatter over what is known by now.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeAlias

from agent.http.request import RequestContext, ResponseHead
from agent.table.cluster import Cluster
from agent.telemetry.format import compile_format, compile_json
from agent.telemetry.outcome import Outcome

ValueMaker: TypeAlias = Callable[[RequestContext, ResponseHead | None], bytes]


def compile_value(text: str, *, omit_empty: bool = False, body: bytes = b"") -> bytes | ValueMaker:
    """Bytes where the text is constant, else a function of request and response. Raises ValueError.

    `body` is what %LOCAL_REPLY_BODY% stands for.
    """
    if "%" not in text:
        return text.encode()
    if "%" not in text.replace("%%", ""):
        return text.replace("%%", "%").encode()
    render = compile_format(text, omit_empty=omit_empty)

    def make(ctx: RequestContext, head: ResponseHead | None) -> bytes:
        return render(known_so_far(ctx, head, body)).encode("utf-8", "surrogateescape")

    return make


def compile_json_value(tree: Mapping[str, Any], *, omit_empty: bool = False, body: bytes = b"") -> ValueMaker:
    """As compile_value for a JSON body: one object and a line feed."""
    render = compile_json(tree, omit_empty=omit_empty)

    def make(ctx: RequestContext, head: ResponseHead | None) -> bytes:
        return render(known_so_far(ctx, head, body)).encode("utf-8", "surrogateescape")

    return make


def known_so_far(ctx: RequestContext, head: ResponseHead | None, body: bytes = b"") -> Outcome:
    """The outcome as far as it is known: the exchange's own, if it left one in the head."""
    if head is not None:
        begun = head.outcome
        if isinstance(begun, Outcome):
            begun.response_code = head.status
            begun.response_headers = head.headers
            return begun
    outcome = Outcome()
    outcome.local_body = body
    outcome.request = ctx
    outcome.connection = ctx.connection
    outcome.protocol = "HTTP/" + ctx.http_version.decode("ascii", "replace")
    outcome.received_at = ctx.received_at
    outcome.started_at = ctx.started_at
    outcome.flags = ctx.flags
    outcome.details = ctx.details
    plan = ctx.route
    if plan is not None:
        outcome.route_name = plan.name
        outcome.virtual_host = plan.virtual_host
        outcome.route_metadata = plan.metadata
        outcome.virtual_host_metadata = plan.virtual_host_metadata
        if plan.cluster:
            outcome.cluster = _named(plan.cluster)
    if head is not None:
        outcome.response_code = head.status
        outcome.response_headers = head.headers
    return outcome


@lru_cache(maxsize=1024)
def _named(cluster: str) -> Cluster:
    """Enough of a cluster to print its name before it is looked up."""
    return Cluster(cluster, "static")
