"""The HTTP connection manager (envoy.extensions.filters.network.http_connection_manager.v3)."""

from __future__ import annotations

from typing import Any

from agent.table.decode.access_logs import access_log_filter, access_logs
from agent.table.decode.formats import body_format
from agent.table.decode.http_filters import http_filters
from agent.table.decode.matchers import data, header_options, networks
from agent.table.decode.message import Reader
from agent.table.decode.protocols import http1_options, http2_options
from agent.table.decode.routes import route_configuration
from agent.table.decode.tls import config_source
from agent.table.filter_config import LocalReplyConfig, ReplyMapper
from agent.table.listener import HeaderDetection, HttpManager, Upgrade, XffDetection
from agent.table.route import RouteConfiguration

_CODECS = {"AUTO": "auto", "HTTP1": "http1"}
_SERVER = {"OVERWRITE": "overwrite", "APPEND_IF_ABSENT": "append_if_absent", "PASS_THROUGH": "pass_through"}
_XFCC = {
    "SANITIZE": "sanitize",
    "FORWARD_ONLY": "forward_only",
    "APPEND_FORWARD": "append_forward",
    "SANITIZE_SET": "sanitize_set",
    "ALWAYS_FORWARD_ONLY": "always_forward_only",
}
_SLASHES = {
    "IMPLEMENTATION_SPECIFIC_DEFAULT": "keep",
    "KEEP_UNCHANGED": "keep",
    "REJECT_REQUEST": "reject",
    "UNESCAPE_AND_REDIRECT": "unescape_redirect",
    "UNESCAPE_AND_FORWARD": "unescape_forward",
}
_UNDERSCORES = {"ALLOW": "allow", "REJECT_REQUEST": "reject_request", "DROP_HEADER": "drop_header"}


def http_manager(reader: Reader) -> HttpManager:
    """HttpConnectionManager."""
    with reader as r:
        filters, router = http_filters(r, "http_filters")
        values: dict[str, Any] = {"filters": filters, "router": router, "route": _route(r)}
        values.update(_common(r))
        values["keep_after_bad_request"] = bool(r.optional_boolean("stream_error_on_invalid_http_message"))
        http1 = r.child("http_protocol_options")
        values.update(http1_options(http1))
        if (http2 := r.child("http2_protocol_options")) is not None:
            values["http2"] = http2_options(http2)
        values.update(_scheme(r))
        values.update(_log_options(r))
        if (tracing := r.child("tracing")) is not None:
            _tracing(tracing)
        _request_id(r)
        r.only("http1_safe_max_connection_duration", False)
        r.without_effect("append_local_overload")  # there is no overload manager
        r.only("represent_ipv4_remote_address_as_ipv4_mapped_ipv6", False)
        r.without_effect(
            "add_proxy_protocol_connection_state"
        )  # for PROXY headers to upstreams, which are refused
        return HttpManager(
            stat_prefix=r.text("stat_prefix"),
            codec=r.choice("codec_type", _CODECS),
            access_logs=access_logs(r, "access_log"),
            server_name=(r.text("server_name") or "envoy").encode(),
            server_header=r.choice("server_header_transformation", _SERVER),
            use_remote_address=r.boolean("use_remote_address"),
            xff_trusted_hops=r.integer("xff_num_trusted_hops"),
            skip_xff_append=r.boolean("skip_xff_append"),
            internal_networks=_internal(r),
            via=r.text("via").encode(),
            generate_request_id=r.boolean("generate_request_id", True),
            preserve_external_request_id=r.boolean("preserve_external_request_id"),
            always_set_request_id_in_response=r.boolean("always_set_request_id_in_response"),
            forward_client_cert=r.choice("forward_client_cert_details", _XFCC),
            client_cert_details=_cert_details(r),
            normalize_path=r.boolean("normalize_path"),
            merge_slashes=r.boolean("merge_slashes"),
            escaped_slashes=r.choice("path_with_escaped_slashes_action", _SLASHES),
            strip_matching_host_port=r.boolean("strip_matching_host_port"),
            strip_any_host_port=r.boolean("strip_any_host_port"),
            strip_trailing_host_dot=r.boolean("strip_trailing_host_dot"),
            upgrades=_upgrades(r),
            stream_idle_timeout=r.seconds("stream_idle_timeout", 300.0),
            request_timeout=r.seconds("request_timeout"),
            request_headers_timeout=r.seconds("request_headers_timeout"),
            drain_timeout=r.seconds("drain_timeout", 5.0),
            delayed_close_timeout=r.seconds("delayed_close_timeout", 1.0),
            max_request_headers_kb=r.integer("max_request_headers_kb", 60),
            proxy_100_continue=r.boolean("proxy_100_continue"),
            local_reply=_local_reply(r),
            user_agent=r.context.node_cluster.encode() if r.boolean("add_user_agent") else None,
            user_node=r.context.node_id.encode(),
            ip_detection=_ip_detection(r),
            append_x_forwarded_port=r.boolean("append_x_forwarded_port"),
            **values,
        )


def _route(r: Reader) -> RouteConfiguration | str:
    kind = r.which("route_specifier")
    if kind == "route_config":
        return route_configuration(r.must(kind))
    if kind == "rds":
        with r.must(kind) as rds:
            config_source(rds.must("config_source"))
            return rds.text("route_config_name")
    return r.fail(kind, "unsupported field" if kind else "route_config or rds is required")


def _common(r: Reader) -> dict[str, Any]:
    common = r.child("common_http_protocol_options")
    if common is None:
        return {}
    with common as c:
        if c.has("max_response_headers_kb"):
            c.fail("max_response_headers_kb", "only for clusters")
        return {
            "idle_timeout": c.seconds("idle_timeout", 3600.0),
            "max_connection_duration": c.seconds("max_connection_duration"),
            "max_headers_count": c.integer("max_headers_count", 100),
            "max_stream_duration": c.seconds("max_stream_duration"),
            "max_requests_per_connection": c.integer("max_requests_per_connection"),
            "underscores": c.choice("headers_with_underscores_action", _UNDERSCORES),
        }


def _scheme(r: Reader) -> dict[str, Any]:
    scheme = r.child("scheme_header_transformation")
    if scheme is None:
        return {}
    with scheme as s:
        s.without_effect("match_upstream")  # changes :scheme, which HTTP/1.1 does not carry upstream
        return {"scheme_overwrite": s.text("scheme_to_overwrite").encode()}


def _log_options(r: Reader) -> dict[str, Any]:
    r.only("flush_access_log_on_new_request", False)
    if r.has("access_log_flush_interval"):
        r.fail("access_log_flush_interval", "unsupported field")
    if (options := r.child("access_log_options")) is not None:
        with options as o:
            o.only("flush_access_log_on_new_request", False)
            o.only("flush_log_on_tunnel_successfully_established", False)
    return {}


def _tracing(reader: Reader) -> None:
    """Accepted only where it traces nothing: no provider."""
    with reader as t:
        if t.has("provider"):
            t.fail("provider", "unsupported field")
        t.without_effect(  # how much is traced, and what is told of it: spans are not exported
            "client_sampling", "random_sampling", "overall_sampling", "verbose", "max_path_tag_length", "custom_tags",
            "spawn_upstream_span",
        )  # fmt: skip


_DETECTION = "envoy.extensions.http.original_ip_detection."


def _ip_detection(r: Reader) -> tuple[XffDetection | HeaderDetection, ...]:
    found: list[XffDetection | HeaderDetection] = []
    for item in r.children("original_ip_detection_extensions"):
        with item as extension:
            extension.without_effect("name")  # the type decides
            typed: Any = extension.typed("typed_config") or extension.fail("typed_config", "required")
            with typed as t:
                if t.type == f"{_DETECTION}xff.v3.XffConfig":
                    found.append(_xff_detection(t))
                elif t.type == f"{_DETECTION}custom_header.v3.CustomHeaderConfig":
                    found.append(_header_detection(t))
                else:
                    t.fail("", f"unsupported type {t.type}")
    if found and (r.boolean("use_remote_address") or r.integer("xff_num_trusted_hops")):
        name = "use_remote_address" if r.boolean("use_remote_address") else "xff_num_trusted_hops"
        r.fail(name, "excludes original_ip_detection_extensions")
    return tuple(found)


def _xff_detection(t: Reader) -> XffDetection:
    trusted = t.child("xff_trusted_cidrs")
    if trusted is not None and t.integer("xff_num_trusted_hops"):
        t.fail("xff_num_trusted_hops", "excludes xff_trusted_cidrs")
    ranges: Any = ()
    if trusted is not None:
        with trusted as c:
            ranges = networks(c, "cidrs")
    skip = t.optional_boolean("skip_xff_append")
    return XffDetection(t.integer("xff_num_trusted_hops"), ranges or (), True if skip is None else skip)


def _header_detection(t: Reader) -> HeaderDetection:
    status = 0
    if (rejected := t.child("reject_with_status")) is not None:
        with rejected as s:
            code = int(s.take("code") or 0)
            status = code if code >= 400 else 403
    trusted = t.boolean("allow_extension_to_set_address_as_trusted")
    return HeaderDetection(t.text("header_name").lower().encode(), trusted, status)


def _internal(r: Reader) -> Any:
    config = r.child("internal_address_config")
    if config is None:
        return ()
    with config as c:
        c.only("unix_sockets", False)
        return networks(c, "cidr_ranges")


def _request_id(r: Reader) -> None:
    extension = r.child("request_id_extension")
    if extension is None:
        return
    with extension as e:
        typed: Any = e.typed("typed_config") or e.fail("typed_config", "required")
        with typed as uuid:
            if uuid.type != "envoy.extensions.request_id.uuid.v3.UuidRequestIdConfig":
                uuid.fail("", f"unsupported type {uuid.type}")
            # Both are about the trace decision in the identifier: there are no spans.
            uuid.without_effect("use_request_id_for_trace_sampling", "pack_trace_reason")


def _cert_details(r: Reader) -> frozenset[str]:
    details = r.child("set_current_client_cert_details")
    if details is None:
        return frozenset()
    with details as d:
        return frozenset(name for name in ("subject", "cert", "chain", "dns", "uri") if d.boolean(name))


def _upgrades(r: Reader) -> tuple[Upgrade, ...]:
    found: list[Upgrade] = []
    for item in r.children("upgrade_configs"):
        with item as upgrade:
            kind = upgrade.text("upgrade_type").lower()
            if any(other.type == kind for other in found):
                upgrade.fail("upgrade_type", f"duplicate upgrade {kind}")
            found.append(Upgrade(kind, upgrade.boolean("enabled", True)))
    return tuple(found)


def _local_reply(r: Reader) -> LocalReplyConfig | None:
    config = r.child("local_reply_config")
    if config is None:
        return None
    with config as c:
        mappers: list[ReplyMapper] = []
        for item in c.children("mappers"):
            with item as m:
                body, body_formats = m.child("body"), m.child("body_format_override")
                mappers.append(
                    ReplyMapper(
                        filter=access_log_filter(m.must("filter")),
                        status=m.optional_integer("status_code"),
                        body=None if body is None else data(body),
                        format=None if body_formats is None else body_format(body_formats),
                        headers=header_options(m, "headers_to_add"),
                    )
                )
        default = c.child("body_format")
        return LocalReplyConfig(tuple(mappers), None if default is None else body_format(default))
