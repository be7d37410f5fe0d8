"""Route actions: forward, redirect, direct response, with their mirrors and hashes."""

from __future__ import annotations

from typing import Any

from agent.table.decode.cors import cors_policy
from agent.table.decode.formats import body_format
from agent.table.decode.matchers import (
    data,
    header_changes,
    metadata,
    runtime_fraction,
    substitution,
)
from agent.table.decode.message import Reader
from agent.table.decode.overrides import overrides
from agent.table.decode.rate_limits import rate_limits
from agent.table.decode.retries import retry_policy
from agent.table.matchers import EVERYTHING
from agent.table.route import (
    ClusterWeight,
    Direct,
    Forward,
    GrpcTimeouts,
    HashPolicy,
    InternalRedirect,
    MirrorPolicy,
    Redirect,
)

_NOT_FOUND = {"SERVICE_UNAVAILABLE": "503", "NOT_FOUND": "404", "INTERNAL_SERVER_ERROR": "500"}
_PRIORITY = {"DEFAULT": "default", "HIGH": "high"}


def forward(reader: Reader) -> Forward:
    """RouteAction."""
    with reader as r:
        where = r.which("cluster_specifier")
        if where not in {"cluster", "cluster_header", "weighted_clusters"}:
            r.fail(where, "unsupported field" if where else "a route must name its cluster")
        weighted: tuple[ClusterWeight, ...] = ()
        weight_header, by_hash = b"", False
        if where == "weighted_clusters":
            with r.must(where) as split:
                weighted, weight_header, by_hash = _weighted(split)
        match_metadata = metadata(r.child("metadata_match")).get("envoy.lb", {})
        cors = r.child("cors")
        template = ""
        if (policy := r.child("path_rewrite_policy")) is not None:
            template = _template(policy)
        _one_rewrite(r)
        upgrades, ends_here = _upgrades(r)
        stream, grpc = _durations(r)
        return Forward(
            cluster=r.text("cluster"),
            cluster_header=r.text("cluster_header").lower().encode(),
            weighted=weighted,
            weight_header=weight_header,
            weight_by_hash=by_hash,
            cluster_not_found_status=int(r.choice("cluster_not_found_response_code", _NOT_FOUND)),
            metadata_match=match_metadata,
            prefix_rewrite=r.text("prefix_rewrite"),
            regex_rewrite=substitution(r.child("regex_rewrite")),
            template_rewrite=template,
            path_rewrite=r.text("path_rewrite"),
            host_rewrite=r.text("host_rewrite_literal"),
            host_rewrite_format=r.text("host_rewrite"),
            host_rewrite_header=r.text("host_rewrite_header").lower().encode(),
            host_rewrite_path=substitution(r.child("host_rewrite_path_regex")),
            auto_host_rewrite=r.boolean("auto_host_rewrite"),
            append_x_forwarded_host=r.boolean("append_x_forwarded_host"),
            timeout=r.seconds("timeout", 15.0),
            idle_timeout=r.optional_seconds("idle_timeout"),
            max_stream_duration=stream,
            grpc_timeouts=grpc,
            retry=retry_policy(r.child("retry_policy")),
            internal_redirect=_internal_redirect(r),
            mirrors=mirrors(r),
            priority=r.choice("priority", _PRIORITY),
            rate_limits=rate_limits(r, "rate_limits"),
            include_vhost_rate_limits=r.boolean("include_vh_rate_limits"),
            hash_policies=tuple(hash_policy(item) for item in r.children("hash_policy")),
            cors=None if cors is None else cors_policy(cors),
            upgrades=upgrades,
            connect_ends_here=ends_here,
        )


def _one_rewrite(r: Reader) -> None:
    given = [
        name
        for name in ("prefix_rewrite", "regex_rewrite", "path_rewrite_policy", "path_rewrite")
        if r.has(name)
    ]
    if len(given) > 1:
        r.fail(given[1], f"{given[0]} and {given[1]} exclude each other")


def _template(reader: Reader) -> str:
    with reader as policy:
        policy.without_effect("name")  # the type decides
        typed: Any = policy.typed("typed_config") or policy.fail("typed_config", "required")
        with typed as template:
            if template.type != "envoy.extensions.path.rewrite.uri_template.v3.UriTemplateRewriteConfig":
                template.fail("", f"unsupported type {template.type}")
            return str(template.text("path_template_rewrite"))


def _durations(r: Reader) -> tuple[float | None, GrpcTimeouts | None]:
    """max_stream_duration, and what gRPC requests may ask for by themselves."""
    most, offset = r.optional_seconds("max_grpc_timeout"), r.seconds("grpc_timeout_offset")
    stream = stream_most = None
    stream_offset = 0.0
    if (durations := r.child("max_stream_duration")) is not None:
        with durations as d:
            stream = d.optional_seconds("max_stream_duration")
            stream_most = d.optional_seconds("grpc_timeout_header_max")
            stream_offset = d.seconds("grpc_timeout_header_offset")
        # Envoy's new timeouts: with this message the others do not count.
        most = None
        stream = 0.0 if stream is None else stream
    if most is None and stream_most is None:
        return stream, None
    return stream, GrpcTimeouts(most, offset, stream_most, stream_offset)


def _weighted(split: Reader) -> tuple[tuple[ClusterWeight, ...], bytes, bool]:
    weights = tuple(_weight(item) for item in split.children("clusters"))
    total = sum(weight.weight for weight in weights)
    given = split.optional_integer("total_weight")
    if given is not None and given != total:
        split.fail("total_weight", f"the weights add up to {total}")
    if not weights:
        split.fail("clusters", "at least one destination is required")
    if total == 0:
        split.fail("clusters", "the sum of the weights has to be greater than 0")
    if total > 0xFFFFFFFF:
        split.fail("clusters", "the sum of the weights exceeds 4294967295")
    split.without_effect("runtime_key_prefix")  # there is no runtime that could change weights
    return weights, split.text("header_name").lower().encode(), split.boolean("use_hash_policy")


def _weight(reader: Reader) -> ClusterWeight:
    with reader as r:
        name, header = r.text("name"), r.text("cluster_header")
        if bool(name) == bool(header):
            r.fail("name", "exactly one of name and cluster_header is required")
        return ClusterWeight(
            cluster=name,
            weight=r.integer("weight"),
            cluster_header=header.lower().encode(),
            metadata_match=metadata(r.child("metadata_match")).get("envoy.lb", {}),
            request_headers=header_changes(r, "request"),
            response_headers=header_changes(r, "response"),
            overrides=overrides(r),
            host_rewrite=r.text("host_rewrite_literal"),
        )


_REDIRECTED = "envoy.extensions.internal_redirect."


def _internal_redirect(r: Reader) -> InternalRedirect | None:
    """internal_redirect_policy, and the two deprecated fields before it."""
    action = r.enum_name("internal_redirect_action", r.take("internal_redirect_action") or 0)
    most = r.optional_integer("max_internal_redirects")
    policy = r.child("internal_redirect_policy")
    if policy is None:
        handled = action == "HANDLE_INTERNAL_REDIRECT"
        return InternalRedirect(most=1 if most is None else most) if handled else None
    with policy as p:
        previous = safe = False
        allowed: frozenset[str] | None = None
        for item in p.children("predicates"):
            with item as predicate:
                predicate.without_effect("name")  # the type decides
                typed: Any = predicate.typed("typed_config") or predicate.fail("typed_config", "required")
                with typed as t:
                    kind = t.type.removeprefix(_REDIRECTED).partition(".")[0]
                    if kind == "previous_routes":
                        previous = True
                    elif kind == "safe_cross_scheme":
                        safe = True
                    elif kind == "allow_listed_routes":
                        names = frozenset(t.texts("allowed_route_names"))
                        allowed = names if allowed is None else allowed & names
                    else:
                        t.fail("", f"unsupported type {t.type}")
        statuses = frozenset(p.take("redirect_response_codes") or (302,)) & {301, 302, 303, 307, 308}
        return InternalRedirect(
            statuses=statuses,
            most=p.integer("max_internal_redirects", 1),
            cross_scheme=p.boolean("allow_cross_scheme_redirect"),
            headers_to_copy=tuple(name.lower().encode() for name in p.texts("response_headers_to_copy")),
            previous_routes=previous,
            allowed_routes=allowed,
            safe_cross_scheme=safe,
        )


def mirrors(reader: Reader) -> tuple[MirrorPolicy, ...]:
    """request_mirror_policies."""
    found: list[MirrorPolicy] = []
    for item in reader.children("request_mirror_policies"):
        with item as r:
            r.without_effect("trace_sampled")  # there are no spans
            if r.has("cluster") == r.has("cluster_header"):
                r.fail("cluster", "exactly one of cluster and cluster_header is required")
            found.append(
                MirrorPolicy(
                    cluster=r.text("cluster"),
                    fraction=runtime_fraction(r.child("runtime_fraction"), EVERYTHING),
                    shadow_suffix=not r.boolean("disable_shadow_host_suffix_append"),
                    cluster_header=r.text("cluster_header").lower().encode(),
                )
            )
    return tuple(found)


def _upgrades(reader: Reader) -> tuple[dict[str, bool], bool]:
    """Upgrades by type, and whether CONNECT ends here, in a TCP connection."""
    found: dict[str, bool] = {}
    ends_here = False
    for item in reader.children("upgrade_configs"):
        with item as r:
            kind = r.text("upgrade_type").lower()
            if kind in found:
                r.fail("upgrade_type", f"duplicate upgrade {kind}")
            if (connect := r.child("connect_config")) is not None:
                with connect as c:
                    c.only("allow_post", False)
                if kind != "connect":
                    r.fail("connect_config", "only for the upgrade type CONNECT")
                ends_here = True
            found[kind] = r.boolean("enabled", True)
    return found, ends_here


def hash_policy(reader: Reader) -> HashPolicy:
    """HashPolicy."""
    with reader as r:
        kind, terminal = r.which("policy_specifier"), r.boolean("terminal")
        if kind == "header":
            with r.must(kind) as header:
                return HashPolicy(
                    "header",
                    header.text("header_name"),
                    terminal,
                    substitution=substitution(header.child("regex_rewrite")),
                )
        if kind == "cookie":
            with r.must(kind) as cookie:
                return HashPolicy("cookie", cookie.text("name"), terminal, cookie=_made_cookie(cookie))
        if kind == "connection_properties":
            with r.must(kind) as connection:
                if not connection.boolean("source_ip"):
                    connection.fail("source_ip", "the only property is the source address")
                return HashPolicy("source_ip", "", terminal)
        if kind == "query_parameter":
            with r.must(kind) as query:
                return HashPolicy("query", query.text("name"), terminal)
        return r.fail(kind, "unsupported field")


def _made_cookie(cookie: Reader) -> str | None:
    """None without a ttl: the cookie is only read (Envoy Utility::makeSetCookieValue)."""
    ttl, path = cookie.optional_seconds("ttl"), cookie.text("path")
    text = f"; Max-Age={int(ttl)}" if ttl else ""
    text += f"; Path={path}" if path else ""
    for item in cookie.children("attributes"):
        with item as attribute:
            name, value = attribute.text("name"), attribute.text("value")
            text += f"; {name}={value}" if value else f"; {name}"
    return None if ttl is None else f"{text}; HttpOnly"


_STATUS = {
    "MOVED_PERMANENTLY": "301",
    "FOUND": "302",
    "SEE_OTHER": "303",
    "TEMPORARY_REDIRECT": "307",
    "PERMANENT_REDIRECT": "308",
}


def redirect(reader: Reader) -> Redirect:
    """RedirectAction."""
    with reader as r:
        https = r.boolean("https_redirect")
        return Redirect(
            scheme="https" if https else r.text("scheme_redirect"),
            host=r.text("host_redirect"),
            port=r.integer("port_redirect"),
            path=r.text("path_redirect"),
            prefix_rewrite=r.text("prefix_rewrite"),
            regex_rewrite=substitution(r.child("regex_rewrite")),
            status=int(r.choice("response_code", _STATUS)),
            strip_query=r.boolean("strip_query"),
        )


def direct(reader: Reader) -> Direct:
    """DirectResponseAction."""
    with reader as r:
        body = r.child("body")
        body_formats = r.child("body_format")
        return Direct(
            status=r.integer("status"),
            body=b"" if body is None else data(body),
            body_format=None if body_formats is None else body_format(body_formats),
        )
