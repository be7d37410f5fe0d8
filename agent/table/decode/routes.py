"""Route configurations (envoy.config.route.v3)."""

from __future__ import annotations

from typing import Any

from agent.table.decode.actions import direct, forward, mirrors, redirect
from agent.table.decode.cors import cors_policy
from agent.table.decode.matchers import (
    filter_state_match,
    header_changes,
    header_matches,
    metadata,
    metadata_match,
    query_match,
    regex,
    runtime_fraction,
)
from agent.table.decode.message import Reader
from agent.table.decode.overrides import overrides
from agent.table.decode.rate_limits import rate_limits
from agent.table.decode.retries import retry_policy
from agent.table.matchers import Fraction
from agent.table.route import (
    Direct,
    Forward,
    NonForwarding,
    Redirect,
    Route,
    RouteConfiguration,
    RouteMatch,
    VirtualCluster,
    VirtualHost,
)

_TLS = {"NONE": "none", "EXTERNAL_ONLY": "external_only", "ALL": "all"}


def route_configuration(reader: Reader) -> RouteConfiguration:
    """RouteConfiguration."""
    with reader as r:
        found = RouteConfiguration(
            name=r.text("name"),
            virtual_hosts=tuple(virtual_host(item) for item in r.children("virtual_hosts")),
            request_headers=header_changes(r, "request"),
            response_headers=header_changes(r, "response"),
            most_specific_wins=r.boolean("most_specific_header_mutations_wins"),
            validate_clusters=r.optional_boolean("validate_clusters"),
            max_direct_response_body=r.integer("max_direct_response_body_size_bytes", 4096),
            ignore_port=r.boolean("ignore_port_in_host_matching"),
            ignore_path_parameters=r.boolean("ignore_path_parameters_in_path_matching"),
            vhost_header=r.text("vhost_header").lower().encode(),
            internal_only_headers=tuple(name.lower().encode() for name in r.texts("internal_only_headers")),
            mirrors=mirrors(r),
            overrides=overrides(r),
            metadata=metadata(r.child("metadata")),
        )
        _check_bodies(r, found)
        _check_domains(r, found)
        return found


def _check_bodies(reader: Reader, config: RouteConfiguration) -> None:
    for number, host in enumerate(config.virtual_hosts):
        for position, route in enumerate(host.routes):
            if isinstance(route.action, Direct) and len(route.action.body) > config.max_direct_response_body:
                reader.fail(
                    f"virtual_hosts[{number}].routes[{position}].direct_response.body",
                    f"{len(route.action.body)} bytes, at most {config.max_direct_response_body} are allowed",
                )


def _check_domains(reader: Reader, config: RouteConfiguration) -> None:
    seen: set[str] = set()
    for number, host in enumerate(config.virtual_hosts):
        for position, domain in enumerate(host.domains):
            if domain.lower() in seen:
                reader.fail(
                    f"virtual_hosts[{number}].domains[{position}]",
                    "only a single wildcard domain is permitted"
                    if domain == "*"
                    else f"duplicate entry of domain {domain}",
                )
            seen.add(domain.lower())


def virtual_host(reader: Reader) -> VirtualHost:
    """VirtualHost."""
    with reader as r:
        cors = r.child("cors")
        return VirtualHost(
            name=r.text("name"),
            domains=r.texts("domains"),
            routes=tuple(route(item) for item in r.children("routes")),
            require_tls=r.choice("require_tls", _TLS),
            request_headers=header_changes(r, "request"),
            response_headers=header_changes(r, "response"),
            overrides=overrides(r),
            cors=None if cors is None else cors_policy(cors),
            attempt_count_in_request=r.boolean("include_request_attempt_count"),
            attempt_count_in_response=r.boolean("include_attempt_count_in_response"),
            tell_timeout_retry=r.boolean("include_is_timeout_retry_header"),
            buffer_limit=r.optional_integer("per_request_buffer_limit_bytes"),
            retry=retry_policy(r.child("retry_policy")),
            rate_limits=rate_limits(r, "rate_limits"),
            mirrors=mirrors(r),
            metadata=metadata(r.child("metadata")),
            virtual_clusters=tuple(_virtual_cluster(item) for item in r.children("virtual_clusters")),
        )


def _virtual_cluster(reader: Reader) -> VirtualCluster:
    with reader as r:
        return VirtualCluster(r.text("name"), header_matches(r, "headers"))


def route(reader: Reader) -> Route:
    """Route."""
    with reader as r:
        decorator = ""
        if (decorated := r.child("decorator")) is not None:
            with decorated as d:
                decorator = d.text("operation")
                d.without_effect("propagate")  # reaches only the upstream's tracing, which is off
        return Route(
            match=route_match(r.must("match")),
            action=_action(r),
            name=r.text("name"),
            metadata=metadata(r.child("metadata")),
            decorator=decorator,
            overrides=overrides(r),
            request_headers=header_changes(r, "request"),
            response_headers=header_changes(r, "response"),
            stat_prefix=r.text("stat_prefix"),
            buffer_limit=r.optional_integer("per_request_buffer_limit_bytes"),
        )


def _action(reader: Reader) -> Forward | Redirect | Direct | NonForwarding:
    kind = reader.which("action")
    if kind == "route":
        return forward(reader.must(kind))
    if kind == "redirect":
        return redirect(reader.must(kind))
    if kind == "direct_response":
        return direct(reader.must(kind))
    if kind == "non_forwarding_action":
        with reader.must(kind):
            return NonForwarding()
    return reader.fail(
        kind, "unsupported field" if kind else "one of route, redirect, direct_response is required"
    )


def route_match(reader: Reader) -> RouteMatch:
    """RouteMatch."""
    with reader as r:
        kind, value = _path_specifier(r)
        fractions = r.child("runtime_fraction")
        presented: bool | None = None
        validated: bool | None = None
        if (tls := r.child("tls_context")) is not None:
            with tls as t:
                presented, validated = t.optional_boolean("presented"), t.optional_boolean("validated")
        grpc = r.child("grpc")
        if grpc is not None:
            with grpc:
                pass
        return RouteMatch(
            kind=kind,
            value=value,
            case_sensitive=r.boolean("case_sensitive", True),
            fraction=None if fractions is None else runtime_fraction(fractions, Fraction(0)),
            headers=header_matches(r, "headers"),
            query=tuple(query_match(item) for item in r.children("query_parameters")),
            grpc=grpc is not None,
            tls_presented=presented,
            tls_validated=validated,
            metadata=tuple(metadata_match(item) for item in r.children("dynamic_metadata")),
            filter_state=tuple(filter_state_match(item) for item in r.children("filter_state")),
        )


def _path_specifier(r: Reader) -> tuple[str, str]:
    kind = r.which("path_specifier")
    if kind in {"prefix", "path"}:
        return kind, r.text(kind)
    if kind == "safe_regex":
        return "regex", regex(r.must(kind))
    if kind == "path_separated_prefix":
        return "separated_prefix", r.text(kind)
    if kind == "connect_matcher":
        with r.must(kind):
            return "connect", ""
    if kind == "path_match_policy":
        with r.must(kind) as policy:
            policy.without_effect("name")  # the type decides
            typed: Any = policy.typed("typed_config") or policy.fail("typed_config", "required")
            with typed as template:
                if template.type != "envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig":
                    template.fail("", f"unsupported type {template.type}")
                return "template", template.text("path_template")
    return r.fail(kind, "unsupported field" if kind else "a path specifier is required")
