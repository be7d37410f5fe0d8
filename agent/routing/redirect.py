"""Answers that a route gives itself: redirects and direct responses.

Rule: the Location is built from the request as it came, after the path rewrite of the redirect
(Envoy Utility::newUri).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from agent.http.request import LocalReply, RequestContext
from agent.http.substitution import ValueMaker, compile_json_value, compile_value
from agent.routing.paths import compile_rewrite
from agent.table.route import Direct, Redirect, RouteMatch

DETAILS: Final = "direct_response"


def compile_redirect(match: RouteMatch, redirect: Redirect) -> Callable[[RequestContext], LocalReply]:
    """The redirect's answer for a request."""
    rewrite = compile_rewrite(match, redirect.prefix_rewrite, redirect.regex_rewrite)
    host = redirect.host.encode()
    new_port = f":{redirect.port}".encode() if redirect.port else b""
    new_scheme = redirect.scheme.encode()
    locate = _path_maker(redirect)

    def respond(ctx: RequestContext) -> LocalReply:
        scheme = new_scheme or ctx.scheme
        authority = host or _kept_host(ctx, scheme, new_port)
        path = ctx.path
        if rewrite is not None:
            path = ctx.path = rewrite(path)  # the log shows the path as rewritten, as Envoy's does
        location = b"%s://%s%s%s" % (scheme, authority, new_port, locate(path))
        return LocalReply(redirect.status, headers=((b"location", location),), details=DETAILS)

    return respond


def _path_maker(redirect: Redirect) -> Callable[[bytes], bytes]:
    fixed = redirect.path.encode()
    strip = redirect.strip_query and b"?" not in fixed

    def path_of(path: bytes) -> bytes:
        if fixed:
            if b"?" in fixed:
                return fixed
            path = fixed + path[path.index(b"?") :] if b"?" in path else fixed
        return path.partition(b"?")[0] if strip else path

    return path_of


def _kept_host(ctx: RequestContext, new_scheme: bytes, new_port: bytes) -> bytes:
    """The request's host, without its port where the redirect names one or where the default port goes away."""
    host = ctx.authority
    if host.startswith(b"["):
        end = host.rfind(b"]:")
        end = end + 1 if end >= 0 else -1
    else:
        end = host.rfind(b":")
    if end < 0:
        return host
    port = host[end:]
    seen = ctx.headers.get(b"x-forwarded-proto", ctx.scheme)
    drop = bool(new_port)
    if new_scheme != seen:
        drop = drop or (seen == b"https" and port == b":443") or (seen == b"http" and port == b":80")
    return host[:end] if drop else host


def to_https(ctx: RequestContext) -> LocalReply:
    """The answer of require_tls to a plain request."""
    location = b"https://" + ctx.authority + ctx.path
    return LocalReply(301, headers=((b"location", location),), details=DETAILS)


def compile_direct(direct: Direct) -> Callable[[RequestContext], LocalReply]:
    """The direct response; one shared value unless its body or its Location is made per request."""
    makes_body = _body_maker(direct)
    located = direct.status == 201 or 300 <= direct.status < 400
    content_type = _content_type(direct)
    if not located and isinstance(makes_body, bytes):
        reply = LocalReply(direct.status, makes_body, details=DETAILS, content_type=content_type)
        return lambda ctx: reply

    def respond(ctx: RequestContext) -> LocalReply:
        return LocalReply(
            direct.status,
            makes_body if isinstance(makes_body, bytes) else makes_body(ctx, None),
            headers=((b"location", b"%s://%s%s" % (ctx.scheme, ctx.authority, ctx.path)),) if located else (),
            details=DETAILS,
            content_type=content_type,
        )

    return respond


def _content_type(direct: Direct) -> bytes:
    body_format = direct.body_format
    if body_format is not None and body_format.content_type:
        return str(body_format.content_type).encode()
    return b"text/plain" if body_format is None or body_format.json is None else b"application/json"


def _body_maker(direct: Direct) -> bytes | ValueMaker:
    body_format = direct.body_format
    if body_format is None:
        return direct.body
    if body_format.json is not None:
        return compile_json_value(body_format.json, omit_empty=body_format.omit_empty, body=direct.body)
    return compile_value(body_format.text, omit_empty=body_format.omit_empty, body=direct.body)
