"""RBAC rules (envoy.config.rbac.v3), for the HTTP and the network filter."""

from __future__ import annotations

from agent.table.decode.matchers import (
    header_match,
    int_range,
    metadata_match,
    network,
    path_match,
    string_match,
)
from agent.table.decode.message import Reader
from agent.table.filter_config import Rbac, RbacPolicy, RbacRules, Rule

_ACTIONS = {"ALLOW": "allow", "DENY": "deny", "LOG": "log"}


def http_rbac(reader: Reader) -> Rbac:
    """envoy.extensions.filters.http.rbac.v3.RBAC."""
    with reader as r:
        rules, shadow = r.child("rules"), r.child("shadow_rules")
        r.without_effect("track_per_rule_stats")  # statistics only
        return Rbac(
            rules=None if rules is None else _rules(rules),
            shadow=None if shadow is None else _rules(shadow),
            rules_stat_prefix=r.text("rules_stat_prefix"),
            shadow_stat_prefix=r.text("shadow_rules_stat_prefix"),
        )


def rbac_per_route(reader: Reader) -> Rbac:
    """RBACPerRoute; without rules the filter is off on this route."""
    with reader as r:
        rbac = r.child("rbac")
        return Rbac() if rbac is None else http_rbac(rbac)


def network_rbac(reader: Reader) -> Rbac:
    """envoy.extensions.filters.network.rbac.v3.RBAC."""
    with reader as r:
        r.without_effect("enforcement_type")  # what the rules read does not change during a connection
        rules, shadow = r.child("rules"), r.child("shadow_rules")
        return Rbac(
            rules=None if rules is None else _rules(rules, of_connection=True),
            shadow=None if shadow is None else _rules(shadow, of_connection=True),
            stat_prefix=r.text("stat_prefix"),
            shadow_stat_prefix=r.text("shadow_rules_stat_prefix"),
        )


def _rules(reader: Reader, *, of_connection: bool = False) -> RbacRules:
    with reader as r:
        action = r.choice("action", _ACTIONS)
        policies: list[RbacPolicy] = []
        for name, item in r.entries("policies"):
            with item as policy:
                permissions = tuple(_rule(child, of_connection) for child in policy.children("permissions"))
                principals = tuple(_rule(child, of_connection) for child in policy.children("principals"))
                if not permissions or not principals:
                    policy.fail(
                        "permissions" if not permissions else "principals", "at least one is required"
                    )
                policies.append(RbacPolicy(name, permissions, principals))
        return RbacRules(action, tuple(policies))


_OF_REQUEST = frozenset({"header", "url_path"})


def _rule(reader: Reader, of_connection: bool) -> Rule:
    """Permission or Principal: both are trees of the same kinds."""
    with reader as r:
        kind = r.which("rule") if r.type.endswith(".Permission") else r.which("identifier")
        if of_connection and kind in _OF_REQUEST:
            r.fail(kind, "a network filter sees no request")
        if kind in {"and_rules", "or_rules", "and_ids", "or_ids"}:
            field = "rules" if kind.endswith("rules") else "ids"
            with r.must(kind) as group:
                children = tuple(_rule(child, of_connection) for child in group.children(field))
                return Rule(kind.partition("_")[0], children)
        if kind in {"not_rule", "not_id"}:
            return Rule("not", _rule(r.must(kind), of_connection))
        if kind == "any":
            if not r.boolean(kind):
                r.fail(kind, "must be true")
            return Rule("any")
        if kind == "header":
            return Rule(kind, header_match(r.must(kind)))
        if kind == "url_path":
            return Rule(kind, path_match(r.must(kind)))
        if kind in {"destination_ip", "source_ip", "direct_remote_ip", "remote_ip"}:
            return Rule(kind, network(r.must(kind)))
        if kind == "destination_port":
            port = r.integer(kind)
            return Rule(kind, (port, port + 1))
        if kind == "destination_port_range":
            return Rule("destination_port", int_range(r.must(kind)))
        if kind == "metadata":
            return Rule(kind, metadata_match(r.must(kind)))
        if kind == "sourced_metadata":
            with r.must(kind) as sourced:
                sourced.only("metadata_source", "DYNAMIC")
                return Rule("metadata", metadata_match(sourced.must("metadata_matcher")))
        if kind == "requested_server_name":
            return Rule(kind, string_match(r.must(kind)))
        if kind == "authenticated":
            with r.must(kind) as authenticated:
                name = authenticated.child("principal_name")
                return Rule(kind, None if name is None else string_match(name))
        return r.fail(kind, "unsupported field" if kind else "a rule must say what it matches")
