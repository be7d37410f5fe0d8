"""What a route changes about the request on its way to the upstream.

Rule (Envoy RouteEntryImplBase::finalizeRequestHeaders): header changes first, then the host, then the path; the path
that came stays readable in x-envoy-original-path.
"""

from __future__ import annotations

from collections.abc import Callable

from agent.http.mutation import RequestChange
from agent.http.regex_substitution import compile_substitution
from agent.http.request import RequestContext
from agent.http.substitution import compile_value
from agent.routing.paths import bare_path, compile_rewrite
from agent.table.route import ClusterWeight, Forward, RouteMatch


def compile_request_rewrite(
    match: RouteMatch,
    forward: Forward,
    weight: ClusterWeight | None,
    changes: RequestChange | None,
    *,
    original: bool,
) -> RequestChange | None:
    """One function for all changes of a route and destination; None where there are none.

    `original`: what was there before stays readable in x-envoy-original-path and -host.
    """
    steps: list[RequestChange] = [] if changes is None else [changes]
    if weight is not None and weight.host_rewrite:
        steps.append(_plain_host(weight.host_rewrite.encode()))
    new_host = _host_source(forward)
    if new_host is not None:
        steps.append(_host_rewrite(new_host, append=forward.append_x_forwarded_host, original=original))
    if forward.path_rewrite:
        steps.append(_formatted_path(forward.path_rewrite, original=original))
    path = compile_rewrite(match, forward.prefix_rewrite, forward.regex_rewrite, forward.template_rewrite)
    if path is not None:
        steps.append(_path_rewrite(path, original=original))
    if not steps:
        return None
    if len(steps) == 1:
        return steps[0]

    def finish(ctx: RequestContext) -> None:
        for step in steps:
            step(ctx)

    return finish


def _host_source(forward: Forward) -> Callable[[RequestContext], bytes | None] | None:
    if forward.host_rewrite:
        fixed = forward.host_rewrite.encode()
        return lambda ctx: fixed
    if forward.host_rewrite_format:
        made = compile_value(forward.host_rewrite_format, omit_empty=True)
        return lambda ctx: made if isinstance(made, bytes) else made(ctx, None)
    if forward.host_rewrite_header:
        name = forward.host_rewrite_header.lower()
        return lambda ctx: ctx.headers.get(name)
    if forward.host_rewrite_path is not None:
        substitute = compile_substitution(forward.host_rewrite_path)
        return lambda ctx: substitute(bare_path(ctx.path))
    return None


def _plain_host(host: bytes) -> RequestChange:
    """A destination's own literal leaves no trace of the host that was."""

    def rewrite(ctx: RequestContext) -> None:
        ctx.authority = host

    return rewrite


def _host_rewrite(
    new_host: Callable[[RequestContext], bytes | None], *, append: bool, original: bool
) -> RequestChange:
    def rewrite(ctx: RequestContext) -> None:
        host = new_host(ctx)
        if host:
            rewrite_authority(ctx, host, append=append, original=original)

    return rewrite


def rewrite_authority(ctx: RequestContext, host: bytes, *, append: bool, original: bool = True) -> None:
    """Change the authority; the one that was goes to x-envoy-original-host (with `original`) and to the end of
    x-forwarded-host (with `append`) unless it stands there last already (Envoy Utility::updateAuthority)."""
    before = ctx.authority
    if before:
        if append:
            forwarded = ctx.headers.joined(b"x-forwarded-host")
            if not forwarded:
                ctx.headers.set(b"x-forwarded-host", before)
            elif forwarded.rpartition(b",")[2].strip() != before:
                ctx.headers.set(b"x-forwarded-host", forwarded + b"," + before)
        if original:
            ctx.headers.set(b"x-envoy-original-host", before)
    ctx.authority = host


def _formatted_path(text: str, *, original: bool) -> RequestChange:
    made = compile_value(text, omit_empty=True)

    def rewrite(ctx: RequestContext) -> None:
        new = made if isinstance(made, bytes) else made(ctx, None)
        if new:
            if original:
                ctx.headers.set(b"x-envoy-original-path", ctx.path)
            ctx.path = new + ctx.path[len(bare_path(ctx.path)) :]

    return rewrite


def _path_rewrite(new_path: Callable[[bytes], bytes], *, original: bool) -> RequestChange:
    def rewrite(ctx: RequestContext) -> None:
        if original:
            ctx.headers.set(b"x-envoy-original-path", ctx.path)
        ctx.path = new_path(ctx.path)

    return rewrite
