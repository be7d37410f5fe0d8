"""Answers that the proxy makes itself, in Envoy's exact form (Http::Utility::sendLocalReply).

Rule: a gRPC client gets a gRPC answer; anybody else status, text and nothing more. `local_reply_config` may rewrite
both.
Not for: deciding that there is an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias

from agent.http.grpc import percent_encoded
from agent.http.headers import Headers
from agent.http.mutation import compile_response_changes
from agent.http.request import LocalReply, RequestContext, ResponseHead
from agent.table.filter_config import BodyFormat, LocalReplyConfig
from agent.table.route import HeaderChanges
from agent.telemetry.format import compile_format, compile_json
from agent.telemetry.log_filter import compile_filter
from agent.telemetry.outcome import Outcome

Rewrite: TypeAlias = Callable[[RequestContext, ResponseHead, bytes, Outcome], bytes]
"""Changes a local answer's head in place and returns its body."""

NO_ROUTE: Final = LocalReply(404, flags=("NR",), details="route_not_found")
MISSING_HOST: Final = LocalReply(400, details="missing_host_header")
QUERY_WITHOUT_TYPE: Final = LocalReply(400, details="query_missing_content_type")
UPGRADE_FAILED: Final = LocalReply(403, details="upgrade_failed")
ABSOLUTE_PATH: Final = LocalReply(404, details="absolute_path_rejected")
NO_UPSTREAM: Final = LocalReply(503, b"no healthy upstream", flags=("UH",), details="no_healthy_upstream")
RESPONSE_TIMEOUT: Final = LocalReply(
    504, b"upstream request timeout", flags=("UT",), details="response_timeout"
)
PER_TRY_TIMEOUT: Final = LocalReply(
    504, b"upstream request timeout", flags=("UT",), details="upstream_per_try_timeout"
)
PER_TRY_IDLE: Final = LocalReply(
    504, b"upstream request timeout", flags=("UT",), details="upstream_per_try_idle_timeout"
)
TOO_LARGE: Final = LocalReply(413, b"Payload Too Large", details="request_payload_too_large")
REQUEST_IDLE: Final = LocalReply(408, b"stream timeout", flags=("SI",), details="stream_idle_timeout")
RESPONSE_IDLE: Final = LocalReply(504, b"stream timeout", flags=("SI",), details="stream_idle_timeout")
REQUEST_TIMEOUT: Final = LocalReply(408, b"request timeout", details="request_overall_timeout")
HEADERS_TIMEOUT: Final = LocalReply(408, b"request header timeout", details="request_header_timeout")
MAX_DURATION: Final = LocalReply(504, b"downstream duration timeout", details="max_duration_timeout")
REQUEST_MAX_DURATION: Final = LocalReply(408, b"downstream duration timeout", details="max_duration_timeout")
UPSTREAM_MAX_DURATION: Final = LocalReply(
    504,
    b"upstream max stream duration reached",
    flags=("UMSDR",),
    details="upstream_max_stream_duration_reached",
)

_PROTOCOL_BODIES: Final = {
    400: b"Bad Request", 426: b"Upgrade Required", 431: b"Request Header Fields Too Large", 501: b"Not Implemented",
}  # fmt: skip
_DEADLINE_EXCEEDED: Final = b"4"
_GRPC_OF_STATUS: Final = {400: 13, 401: 16, 403: 7, 404: 12, 429: 14, 502: 14, 503: 14, 504: 14}


def protocol_error(status: int, details: str) -> LocalReply:
    """The answer to a request that the codec refused."""
    return LocalReply(status, _PROTOCOL_BODIES.get(status, b""), flags=("DPE",), details=details)


def reset_reply(reason: str, failure: str, flag: str, status: int, *, retried: bool) -> LocalReply:
    """The answer when the upstream stream ended before its response began."""
    words = "retried and the latest reset reason" if retried else "reset reason"
    body = f"upstream connect error or disconnect/reset before headers. {words}: {reason}"
    told = reason if not failure else f"{reason}|{failure}"
    headers = ((b"x-envoy-overloaded", b"true"),) if flag == "UO" else ()
    details = f"upstream_reset_before_response_started{{{told.replace(' ', '_')}}}"
    return LocalReply(status, body.encode(), headers, (flag,), details)


def build(
    ctx: RequestContext, reply: LocalReply, outcome: Outcome, rewrite: Rewrite | None
) -> tuple[ResponseHead, bytes]:
    """Head and body of a local answer."""
    headers = Headers()
    body = reply.body
    head = ResponseHead(reply.status, headers, True, outcome)
    if _is_grpc(ctx):
        status = next((value for name, value in reply.headers if name == b"grpc-status"), None)
        if rewrite is not None:
            outcome.response_code = reply.status
            body = rewrite(ctx, head, body, outcome)
        headers[b"content-type"] = b"application/grpc"
        if status is None and reply.details == "max_duration_timeout":
            status = _DEADLINE_EXCEEDED
        headers[b"grpc-status"] = status or b"%d" % _GRPC_OF_STATUS.get(head.status, 2)
        if body:
            headers[b"grpc-message"] = percent_encoded(body.removesuffix(b"\n"))
        for name, value in reply.headers:
            headers.set(name, value)
        head.status = 200
        return head, b""
    if rewrite is not None:
        outcome.response_code = reply.status
        content_type = reply.content_type
        if body:
            headers[b"content-type"] = content_type
        body = rewrite(ctx, head, body, outcome)
        content_type = headers.pop(b"content-type") or content_type
    else:
        content_type = reply.content_type
    if body:
        given = Headers(headers.fields())
        headers.clear()
        headers[b"content-length"] = b"%d" % len(body)
        headers[b"content-type"] = content_type
        for name, value in given.fields():
            headers.add(name, value)
    for name, value in reply.headers:
        headers.add(name, value)
    return head, body


def compile_rewrite(config: LocalReplyConfig | None) -> Rewrite | None:
    """The function that applies a `local_reply_config`, None where there is none."""
    if config is None or (not config.mappers and config.format is None):
        return None
    general = _compile_body(config.format)
    mappers = [
        (
            compile_filter(mapper.filter),
            mapper.status,
            mapper.body,
            _compile_body(mapper.format),
            compile_response_changes([HeaderChanges(add=mapper.headers)]),
        )
        for mapper in config.mappers
    ]

    def rewrite(ctx: RequestContext, head: ResponseHead, body: bytes, outcome: Outcome) -> bytes:
        render = general
        typed = False
        for test, status, text, own, change in mappers:
            if not test(outcome):
                continue
            if text is not None:
                body = text
            if status is not None:
                head.status = outcome.response_code = status
            if change is not None:
                before = head.headers.get(b"content-type")
                change(ctx, head)
                typed = head.headers.get(b"content-type") != before
            render = own or general
            break
        if render is None:
            return body
        make, content_type = render
        if not typed:
            head.headers[b"content-type"] = content_type
        outcome.local_body = body
        made = make(outcome).encode("utf-8", "surrogateescape")
        outcome.local_body = b""
        return made

    return rewrite


def _compile_body(form: BodyFormat | None) -> tuple[Callable[[Outcome], str], bytes] | None:
    if form is None:
        return None
    if form.json is not None:
        render = compile_json(form.json, omit_empty=form.omit_empty)
        return render, (form.content_type or "application/json").encode()
    return compile_format(form.text, omit_empty=form.omit_empty), (form.content_type or "text/plain").encode()


def _is_grpc(ctx: RequestContext) -> bool:
    kind = ctx.headers.get(b"content-type")
    return kind is not None and (kind == b"application/grpc" or kind.startswith(b"application/grpc+"))
