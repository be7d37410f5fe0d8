"""What a route changes about the request on its way to the upstream.

Rule (Envoy RouteEntryImplBase::finalizeRequestHeaders): header changes first, then the host, then the path; the path
that came stays readable in x-envoy-original-path.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.http.mutation import RequestChange
from agent.http.request import RequestContext
from agent.routing.paths import bare_path, compile_rewrite
from agent.routing.substitution import compile_substitution
from agent.table.route import ClusterWeight, Forward, RouteMatch


def compile_request_rewrite(
    match: RouteMatch,
    forward: Forward,
    weight: ClusterWeight | None,
    changes: RequestChange | None,
    *,
    original_path: bool,
) -> RequestChange | None:
    """One function for all changes of a route and destination; None where there are none."""
    steps: list[RequestChange] = [] if changes is None else [changes]
    new_host = _host_source(forward, weight)
    if new_host is not None:
        steps.append(_host_rewrite(new_host, append=forward.append_x_forwarded_host))
    path = compile_rewrite(match, forward.prefix_rewrite, forward.regex_rewrite, forward.template_rewrite)
    if path is not None:
        steps.append(_path_rewrite(path, original_path=original_path))
    if not steps:
        return None
    if len(steps) == 1:
        return steps[0]

    def finish(ctx: RequestContext) -> None:
        for step in steps:
            step(ctx)

    return finish


def _host_source(
    forward: Forward, weight: ClusterWeight | None
) -> Callable[[RequestContext], bytes | None] | None:
    literal = (weight.host_rewrite if weight is not None else "") or forward.host_rewrite
    if literal:
        fixed = literal.encode()
        return lambda ctx: fixed
    if forward.host_rewrite_header:
        name = forward.host_rewrite_header.lower()
        return lambda ctx: ctx.headers.get(name)
    if forward.host_rewrite_path is not None:
        substitute = compile_substitution(forward.host_rewrite_path)
        return lambda ctx: substitute(bare_path(ctx.path))
    return None


def _host_rewrite(new_host: Callable[[RequestContext], bytes | None], *, append: bool) -> RequestChange:
    def rewrite(ctx: RequestContext) -> None:
        host = new_host(ctx)
        if host:
            if append:
                append_forwarded_host(ctx)
            ctx.authority = host

    return rewrite


def append_forwarded_host(ctx: RequestContext) -> None:
    """Remember the authority in x-forwarded-host, unless it stands there last already."""
    if not ctx.authority:
        return
    before = ctx.headers.joined(b"x-forwarded-host")
    if not before:
        ctx.headers.set(b"x-forwarded-host", ctx.authority)
    elif before.rpartition(b",")[2].strip() != ctx.authority:
        ctx.headers.set(b"x-forwarded-host", before + b"," + ctx.authority)


def _path_rewrite(new_path: Callable[[bytes], bytes], *, original_path: bool) -> RequestChange:
    def rewrite(ctx: RequestContext) -> None:
        if original_path:
            ctx.headers.set(b"x-envoy-original-path", ctx.path)
        ctx.path = new_path(ctx.path)

    return rewrite
