"""HTTP protocol options shared by connection managers and clusters (envoy.config.core.v3)."""

from __future__ import annotations

from typing import Any

from agent.table.decode.message import Reader


def http1_options(reader: Reader | None) -> dict[str, Any]:
    """Http1ProtocolOptions of a connection manager."""
    if reader is None:
        return {}
    with reader as r:
        r.without_effect("use_balsa_parser")  # which parser Envoy uses inside
        r.without_effect("send_fully_qualified_url")  # only for requests to an upstream
        proper, preserve = _key_format(r)
        override = r.optional_boolean("override_stream_error_on_invalid_http_message")
        return {
            **({} if override is None else {"keep_after_bad_request": override}),
            "allow_absolute_url": r.boolean("allow_absolute_url", True),
            "accept_http_10": r.boolean("accept_http_10"),
            "default_host_for_http_10": r.text("default_host_for_http_10").encode(),
            "enable_trailers": r.boolean("enable_trailers"),
            "allow_chunked_length": r.boolean("allow_chunked_length"),
            "proper_case_headers": proper,
            "preserve_case": preserve,
            "allow_custom_methods": r.boolean("allow_custom_methods"),
        }


def upstream_http1_options(reader: Reader | None) -> dict[str, Any]:
    """Http1ProtocolOptions of a cluster."""
    if reader is None:
        return {}
    with reader as r:
        # Only for requests from downstream, and which parser Envoy uses inside.
        r.without_effect(
            "allow_absolute_url", "accept_http_10", "default_host_for_http_10", "use_balsa_parser"
        )
        r.without_effect("allow_custom_methods", "override_stream_error_on_invalid_http_message")
        r.only("allow_chunked_length", False)
        proper, preserve = _key_format(r)
        return {
            "send_full_url": r.boolean("send_fully_qualified_url"),
            "enable_trailers": r.boolean("enable_trailers"),
            "proper_case_headers": proper,
            "preserve_case": preserve,
        }


_PRESERVE = "envoy.extensions.http.header_formatters.preserve_case.v3.PreserveCaseFormatterConfig"


def _key_format(r: Reader) -> tuple[bool, str]:
    """Whether all names are written properly, and how those are that a peer sent."""
    key_format = r.child("header_key_format")
    if key_format is None:
        return False, ""
    with key_format as k:
        kind = k.which("header_format")
        if kind == "proper_case_words":
            with k.must(kind):
                return True, ""
        with k.must(kind) as extension:
            extension.without_effect("name")  # the type decides
            typed: Any = extension.typed("typed_config") or extension.fail("typed_config", "required")
            if typed.type != _PRESERVE:
                typed.fail("", f"unsupported type {typed.type}")
            with typed as t:
                t.only("forward_reason_phrase", False)
                return False, t.choice(
                    "formatter_type_on_envoy_headers", {"DEFAULT": "keep", "PROPER_CASE": "proper"}
                )


def http2_options(reader: Reader) -> dict[str, int | float | bool]:
    """Http2ProtocolOptions, carried as values for the HTTP/2 codec."""
    with reader as r:
        keepalive: dict[str, int | float | bool] = {}
        if (settings := r.child("connection_keepalive")) is not None:
            with settings as s:
                s.without_effect("interval_jitter")  # spreads pings in time only
                keepalive = {
                    "keepalive_interval": s.seconds("interval"),
                    "keepalive_timeout": s.seconds("timeout"),
                    "keepalive_idle": s.seconds("connection_idle_interval"),
                }
        r.only("allow_metadata", False)
        r.without_effect("use_oghttp2_codec")  # which codec Envoy uses inside
        return {
            "header_table_size": r.integer("hpack_table_size", 4096),
            "max_concurrent_streams": r.integer("max_concurrent_streams", 1024),
            "initial_stream_window": r.integer("initial_stream_window_size", 16 << 20),
            "initial_connection_window": r.integer("initial_connection_window_size", 24 << 20),
            "allow_connect": r.boolean("allow_connect"),
            "max_outbound_frames": r.integer("max_outbound_frames", 10000),
            "max_outbound_control_frames": r.integer("max_outbound_control_frames", 1000),
            "max_empty_frames": r.integer("max_consecutive_inbound_frames_with_empty_payload", 1),
            "max_priority_frames": r.integer("max_inbound_priority_frames_per_stream", 100),
            "max_window_updates": r.integer("max_inbound_window_update_frames_per_data_frame_sent", 10),
            "stream_error": r.boolean("override_stream_error_on_invalid_http_message")
            or r.boolean("stream_error_on_invalid_http_messaging"),
            **keepalive,
        }
