"""Access logs (envoy.config.accesslog.v3) to files and to the standard streams."""

from __future__ import annotations

from typing import Any

from agent.table.access_log import AccessLog
from agent.table.access_log_filter import (
    AccessLogFilter,
    AnyOf,
    Comparison,
    DynamicMetadata,
    Every,
    Flags,
    GrpcStatus,
    NotHealthCheck,
    RequestHeader,
    Sampled,
)
from agent.table.decode.formats import body_format
from agent.table.decode.matchers import fraction, header_match, metadata_match, runtime_value
from agent.table.decode.message import Reader
from agent.table.matchers import Fraction

_LOGGERS = "envoy.extensions.access_loggers."
_SINKS = {
    f"{_LOGGERS}file.v3.FileAccessLog": "file",
    f"{_LOGGERS}stream.v3.StdoutAccessLog": "stdout",
    f"{_LOGGERS}stream.v3.StderrAccessLog": "stderr",
}


def access_logs(reader: Reader, name: str) -> tuple[AccessLog, ...]:
    """A repeated AccessLog."""
    return tuple(_access_log(item) for item in reader.children(name))


def _access_log(reader: Reader) -> AccessLog:
    with reader as r:
        r.without_effect("name")  # the type decides
        log_filter = r.child("filter")
        compiled = None if log_filter is None else access_log_filter(log_filter)
        typed: Any = r.typed("typed_config") or r.fail("typed_config", "required")
        if typed.type not in _SINKS:
            typed.fail("", f"unsupported type {typed.type}")
        sink = _SINKS[typed.type]
        with typed as t:
            path = t.text("path") if sink == "file" else ""
            kind = t.which("access_log_format")
            text, json, omit = "", None, False
            if kind == "log_format":
                body = body_format(t.must(kind))
                text, json, omit = body.text, body.json, body.omit_empty
            elif kind == "format":
                text = t.text(kind)
            elif kind in {"json_format", "typed_json_format"}:
                json = t.tree(kind)
        if sink == "file" and path in {"/dev/stdout", "/dev/stderr"}:
            sink, path = path.removeprefix("/dev/"), ""
        return AccessLog(sink, path, text, json, omit, compiled)


_OPS = {"EQ": "eq", "GE": "ge", "LE": "le", "NE": "ne"}


def access_log_filter(reader: Reader) -> AccessLogFilter:
    """AccessLogFilter."""
    with reader as r:
        kind = r.which("filter_specifier")
        if kind in {"status_code_filter", "duration_filter"}:
            with r.must(kind) as holder, holder.must("comparison") as comparison:
                op = comparison.choice("op", _OPS)
                with comparison.must("value") as value:
                    value.without_effect("runtime_key")  # numbers have no runtime here: layers are checked
                    return Comparison(kind.removesuffix("_filter"), op, value.integer("default_value"))
        if kind == "not_health_check_filter":
            with r.must(kind):
                return NotHealthCheck()
        if kind == "runtime_filter":
            with r.must(kind) as runtime:
                runtime.without_effect("use_independent_randomness")  # every draw is independent
                share = runtime.child("percent_sampled")
                default = Fraction(0) if share is None else fraction(share)
                return Sampled(runtime_value(runtime, runtime.text("runtime_key"), default))
        if kind in {"and_filter", "or_filter"}:
            with r.must(kind) as group:
                filters = tuple(access_log_filter(item) for item in group.children("filters"))
                return Every(filters) if kind == "and_filter" else AnyOf(filters)
        if kind == "header_filter":
            with r.must(kind) as header:
                return RequestHeader(header_match(header.must("header")))
        if kind == "response_flag_filter":
            with r.must(kind) as flags:
                return Flags(frozenset(flags.texts("flags")))
        if kind == "grpc_status_filter":
            with r.must(kind) as grpc:
                numbers = grpc.take("statuses") or ()
                return GrpcStatus(
                    frozenset(grpc.enum_name("statuses", number) for number in numbers),
                    grpc.boolean("exclude"),
                )
        if kind == "metadata_filter":
            with r.must(kind) as holder:
                return DynamicMetadata(
                    metadata_match(holder.must("matcher")), holder.boolean("match_if_key_not_found", True)
                )
        return r.fail(kind, "unsupported field" if kind else "a filter must say what it filters")
