"""HTTP filters of a connection manager, and their per-route forms, by the type of their configuration.

Rule: the type decides, not the name. A type that is not in `HTTP_FILTERS` is refused with its path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from agent.table.decode.cors import cors_policy
from agent.table.decode.matchers import (
    fraction,
    header_matches,
    header_option,
    header_options,
    runtime_fraction,
    string_match,
    substitution,
)
from agent.table.decode.message import Reader, tree
from agent.table.decode.rate_limits import rate_limits
from agent.table.decode.rbac import http_rbac, rbac_per_route
from agent.table.filter_config import (
    BufferFilter,
    Cors,
    Csrf,
    Descriptor,
    Fault,
    FaultAbort,
    FaultDelay,
    HeaderMutation,
    HeaderToMetadata,
    HealthCheckFilter,
    LocalRateLimit,
    MetadataRule,
    MetadataValue,
    Mutation,
    QueryMutation,
    RouterConfig,
    SetMetadata,
    TokenBucket,
)
from agent.table.listener import FilterConfig
from agent.table.matchers import EVERYTHING, Fraction

Decode: TypeAlias = Callable[[Reader], Any]

ROUTER = "envoy.extensions.filters.http.router.v3.Router"


def http_filters(reader: Reader, name: str) -> tuple[tuple[FilterConfig, ...], RouterConfig]:
    """A connection manager's chain without its router, and the router. The router must be last, and only there."""
    found: list[FilterConfig] = []
    router: RouterConfig | None = None
    for item in reader.children(name):
        if router is not None:
            item.fail("", "the router must be the last filter")
        with item as r:
            filter_name, disabled = r.text("name"), r.boolean("disabled")
            r.without_effect("is_optional")  # unknown filters are refused either way
            inner = r.typed("typed_config")
            if inner is None:
                r.fail("typed_config", "required")
            if inner.type == ROUTER:
                if disabled:
                    r.fail("disabled", "the router cannot be disabled")
                router = _router(inner)
                continue
            if inner.type not in HTTP_FILTERS:
                inner.fail("", f"unsupported filter {inner.type}")
            kind, decode = HTTP_FILTERS[inner.type]
            found.append(FilterConfig(filter_name, kind, decode(inner), disabled))
    if router is None:
        reader.fail(name, "the last filter must be the router")
    return tuple(found), router


def _router(reader: Reader) -> RouterConfig:
    with reader as r:
        # Statistics and spans only.
        r.without_effect("dynamic_stats", "start_child_span", "suppress_grpc_request_failure_code_stats")
        r.only("respect_expected_rq_timeout", False)
        return RouterConfig(
            suppress_envoy_headers=r.boolean("suppress_envoy_headers"),
        )


def _fault(reader: Reader) -> Fault:
    with reader as r:
        delay, abort = r.child("delay"), r.child("abort")
        # Names of runtime keys that could override the values; a static layer may still set them.
        for key in r.context.runtime:
            if key.startswith("fault.http."):
                r.fail("", f"the runtime key {key} is not supported")
        r.without_effect(
            "delay_percent_runtime", "abort_percent_runtime", "delay_duration_runtime", "abort_http_status_runtime",
            "max_active_faults_runtime", "response_rate_limit_percent_runtime", "abort_grpc_status_runtime",
            "disable_downstream_cluster_stats",
        )  # fmt: skip
        return Fault(
            delay=None if delay is None else _fault_delay(delay),
            abort=None if abort is None else _fault_abort(abort),
            upstream_cluster=r.text("upstream_cluster"),
            headers=header_matches(r, "headers"),
            max_active=r.optional_integer("max_active_faults"),
            nodes=frozenset(node.encode() for node in r.texts("downstream_nodes")),
        )


def _share(reader: Reader) -> Fraction:
    share = reader.child("percentage")
    return Fraction(0) if share is None else fraction(share)


def _fault_delay(reader: Reader) -> FaultDelay:
    with reader as r:
        kind = r.which("fault_delay_secifier")
        if kind == "header_delay":
            with r.must(kind):
                return FaultDelay(None, _share(r))
        r.must("fixed_delay")
        return FaultDelay(r.seconds("fixed_delay"), _share(r))


def _fault_abort(reader: Reader) -> FaultAbort:
    with reader as r:
        kind = r.which("error_type")
        if kind == "header_abort":
            with r.must(kind):
                return FaultAbort(None, None, _share(r))
        if kind == "grpc_status":
            r.take(kind)
            return FaultAbort(None, int(getattr(r.message, kind)), _share(r))
        return FaultAbort(r.integer("http_status"), None, _share(r))


def _nothing(kind: type[Any]) -> Decode:
    def decode(reader: Reader) -> Any:
        with reader:
            return kind()

    return decode


def token_bucket(reader: Reader) -> TokenBucket:
    """TokenBucket; Envoy wants a fill interval of 50 ms or more in rate limits."""
    with reader as r:
        interval = r.seconds("fill_interval")
        if interval < 0.05:
            r.fail("fill_interval", "must be at least 50ms")
        return TokenBucket(r.integer("max_tokens"), r.integer("tokens_per_fill", 1), interval)


_VH_LIMITS = {"OVERRIDE": "override", "INCLUDE": "include", "IGNORE": "ignore"}
_LIMIT_HEADERS = {"OFF": "", "DRAFT_VERSION_03": "draft03"}


def _local_rate_limit(reader: Reader) -> LocalRateLimit:
    with reader as r:
        status = 429
        if (given := r.child("status")) is not None:
            with given as s:
                status = s.take("code") or 0
                status = 429 if status < 400 else status
        bucket = r.child("token_bucket")
        return LocalRateLimit(
            stat_prefix=r.text("stat_prefix"),
            status=status,
            bucket=None if bucket is None else token_bucket(bucket),
            enabled=runtime_fraction(r.child("filter_enabled"), Fraction(0)),
            enforced=runtime_fraction(r.child("filter_enforced"), Fraction(0)),
            request_headers=header_options(r, "request_headers_to_add_when_not_enforced"),
            response_headers=header_options(r, "response_headers_to_add"),
            descriptors=tuple(_descriptor(item) for item in r.children("descriptors")),
            stage=r.integer("stage"),
            per_connection=r.boolean("local_rate_limit_per_downstream_connection"),
            ratelimit_headers=bool(r.choice("enable_x_ratelimit_headers", _LIMIT_HEADERS)),
            vh_rate_limits=r.choice("vh_rate_limits", _VH_LIMITS),
            always_consume_default=r.boolean("always_consume_default_token_bucket", True),
            resource_exhausted=r.boolean("rate_limited_as_resource_exhausted"),
            rate_limits=rate_limits(r, "rate_limits"),
            max_dynamic_descriptors=r.integer("max_dynamic_descriptors", 20),
        )


def _descriptor(reader: Reader) -> Descriptor:
    with reader as r:
        entries: list[tuple[str, str]] = []
        for item in r.children("entries"):
            with item as entry:
                entries.append((entry.text("key"), entry.text("value")))
        return Descriptor(tuple(entries), token_bucket(r.must("token_bucket")))


def _mutation(reader: Reader) -> Mutation:
    with reader as r:
        kind = r.which("action")
        if kind == "remove":
            return Mutation("remove", r.text(kind).lower().encode())
        if kind == "append":
            return Mutation("append", header_option(r.must(kind)))
        with r.must("remove_on_match") as on_match:
            return Mutation("remove_on_match", string_match(on_match.must("key_matcher")))


def _query_mutation(reader: Reader) -> QueryMutation:
    with reader as r:
        if not r.has("append"):
            return QueryMutation(r.text("remove"), None)
        r.take("remove")
        actions = {
            "APPEND_IF_EXISTS_OR_ADD": "append",
            "ADD_IF_ABSENT": "add_if_absent",
            "OVERWRITE_IF_EXISTS_OR_ADD": "overwrite",
            "OVERWRITE_IF_EXISTS": "overwrite_if_exists",
        }
        with r.must("append") as a:
            action = a.choice("action", actions)
            if (record := a.child("record")) is not None:
                with record as pair:
                    value = pair.must("value")
                    if value.message.WhichOneof("kind") != "string_value":
                        value.fail("", "only a string value is supported")
                    return QueryMutation(pair.text("key"), value.text("string_value"), action)
            with a.must("entry") as entry:
                raw = bytes(entry.take("value") or b"")
                return QueryMutation(entry.text("key"), raw.decode("utf-8", "surrogateescape"), action)


def _mutations(reader: Reader) -> HeaderMutation:
    with reader as r:
        wins = False
        if r.type.endswith(".HeaderMutation"):
            wins = r.boolean("most_specific_header_mutations_wins")
        mutations = r.child("mutations")
        if mutations is None:
            return HeaderMutation(most_specific_wins=wins)
        with mutations as m:
            return HeaderMutation(
                tuple(_mutation(item) for item in m.children("request_mutations")),
                tuple(_mutation(item) for item in m.children("response_mutations")),
                tuple(_query_mutation(item) for item in m.children("query_parameter_mutations")),
                wins,
            )


def _csrf(reader: Reader) -> Csrf:
    with reader as r:
        r.without_effect("shadow_enabled")  # statistics only
        return Csrf(
            runtime_fraction(r.child("filter_enabled"), EVERYTHING),
            tuple(string_match(item) for item in r.children("additional_origins")),
        )


def _health_check(reader: Reader) -> HealthCheckFilter:
    with reader as r:
        passes = r.boolean("pass_through_mode")
        cache_time = r.seconds("cache_time")
        if cache_time and not passes:
            r.fail("cache_time", "only with pass_through_mode")
        return HealthCheckFilter(header_matches(r, "headers"), r.context.node_cluster, passes, cache_time)


def _header_to_metadata(reader: Reader) -> HeaderToMetadata:
    with reader as r:
        request = tuple(_metadata_rule(item) for item in r.children("request_rules"))
        return HeaderToMetadata(request, tuple(_metadata_rule(item) for item in r.children("response_rules")))


def _metadata_rule(reader: Reader) -> MetadataRule:
    with reader as r:
        header, cookie = r.text("header"), r.text("cookie")
        if bool(header) == bool(cookie):
            r.fail("header", "exactly one of header and cookie is required")
        present, missing = r.child("on_header_present"), r.child("on_header_missing")
        if present is None and missing is None:
            r.fail("", "one of on_header_present and on_header_missing is required")
        remove = r.boolean("remove")
        if remove and cookie:
            r.fail("remove", "a cookie cannot be removed")
        return MetadataRule(
            header=header.lower().encode(),
            cookie=cookie.encode(),
            present=None if present is None else _metadata_value(present),
            missing=None if missing is None else _metadata_value(missing),
            remove=remove,
        )


def _metadata_value(reader: Reader) -> MetadataValue:
    with reader as r:
        kind = r.choice("type", {"STRING": "string", "NUMBER": "number"})
        r.choice("encode", {"NONE": ""})
        return MetadataValue(
            namespace=r.text("metadata_namespace") or "envoy.filters.http.header_to_metadata",
            key=r.text("key"),
            value=r.text("value"),
            substitution=substitution(r.child("regex_value_rewrite")),
            number=kind == "number",
        )


def _buffer(reader: Reader) -> BufferFilter:
    with reader as r:
        return BufferFilter(r.integer("max_request_bytes"))


def _buffer_per_route(reader: Reader) -> BufferFilter:
    with reader as r:
        if r.which("override") == "disabled":
            return BufferFilter(None if r.boolean("disabled") else 0)
        return _buffer(r.must("buffer"))


def _set_metadata(reader: Reader) -> SetMetadata:
    with reader as r:
        entries: list[tuple[str, Mapping[str, Any], bool]] = []
        for item in r.children("metadata"):
            with item as m:
                entries.append((m.text("metadata_namespace"), m.tree("value"), m.boolean("allow_overwrite")))
        if r.has("value"):
            entries.append((r.text("metadata_namespace"), tree(r.take("value")), True))
        return SetMetadata(tuple(entries))


_HTTP = "envoy.extensions.filters.http."

HTTP_FILTERS: Mapping[str, tuple[str, Decode]] = {
    f"{_HTTP}buffer.v3.Buffer": ("buffer", _buffer),
    f"{_HTTP}rbac.v3.RBAC": ("rbac", http_rbac),
    f"{_HTTP}fault.v3.HTTPFault": ("fault", _fault),
    f"{_HTTP}cors.v3.Cors": ("cors", _nothing(Cors)),
    f"{_HTTP}local_ratelimit.v3.LocalRateLimit": ("local_rate_limit", _local_rate_limit),
    f"{_HTTP}header_mutation.v3.HeaderMutation": ("header_mutation", _mutations),
    f"{_HTTP}csrf.v3.CsrfPolicy": ("csrf", _csrf),
    f"{_HTTP}health_check.v3.HealthCheck": ("health_check", _health_check),
    f"{_HTTP}header_to_metadata.v3.Config": ("header_to_metadata", _header_to_metadata),
    f"{_HTTP}set_metadata.v3.Config": ("set_metadata", _set_metadata),
}


PER_ROUTE: Mapping[str, Decode] = {
    f"{_HTTP}buffer.v3.BufferPerRoute": _buffer_per_route,
    f"{_HTTP}rbac.v3.RBACPerRoute": rbac_per_route,
    f"{_HTTP}fault.v3.HTTPFault": _fault,
    f"{_HTTP}cors.v3.CorsPolicy": cors_policy,
    f"{_HTTP}local_ratelimit.v3.LocalRateLimit": _local_rate_limit,
    f"{_HTTP}header_mutation.v3.HeaderMutationPerRoute": _mutations,
    f"{_HTTP}csrf.v3.CsrfPolicy": _csrf,
    f"{_HTTP}header_to_metadata.v3.Config": _header_to_metadata,
}
