"""RBAC rules compiled to predicates, shared by the HTTP and the network filter.

Rule: policies are judged in the order of their names; the first whose permissions and principals both match is the
effective one (Envoy RoleBasedAccessControlEngineImpl).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeAlias

from agent.http.matching import compile_request_header
from agent.http.request import ConnectionInfo, RequestContext
from agent.table.filter_config import RbacRules, Rule
from agent.table.matchers import compile_metadata, compile_networks, compile_string

Test: TypeAlias = Callable[[RequestContext], bool]
Verdict: TypeAlias = Callable[[RequestContext], tuple[bool, str]]


def compile_rules(rules: RbacRules) -> Verdict:
    """A function to (allowed, name of the effective policy or empty)."""
    policies = [
        (
            policy.name,
            _any_of([compile_rule(rule) for rule in policy.permissions]),
            _any_of([compile_rule(rule) for rule in policy.principals]),
        )
        for policy in rules.policies
    ]
    action = rules.action

    def verdict(ctx: RequestContext) -> tuple[bool, str]:
        for name, permitted, principal in policies:
            if permitted(ctx) and principal(ctx):
                return action != "deny", name
        return action != "allow", ""

    return verdict


def compile_rule(rule: Rule) -> Test:
    """One permission or principal."""
    kind, value = rule.kind, rule.value
    if kind == "any":
        return lambda ctx: True
    if kind == "and":
        return _all_of([compile_rule(child) for child in value])
    if kind == "or":
        return _any_of([compile_rule(child) for child in value])
    if kind == "not":
        inner = compile_rule(value)
        return lambda ctx: not inner(ctx)
    if kind == "header":
        return compile_request_header(value)
    if kind == "url_path":
        test = compile_string(value)
        return lambda ctx: test(bare(ctx.path))
    if kind in _ADDRESSES:
        contains, address = compile_networks((value,)), _ADDRESSES[kind]
        return lambda ctx: contains(address(ctx))
    if kind == "destination_port":
        start, end = value
        return lambda ctx: start <= ctx.connection.local[1] < end
    if kind == "metadata":
        metadata = compile_metadata(value)
        return lambda ctx: metadata(ctx.dynamic_metadata or {})
    if kind == "requested_server_name":
        server_name = compile_string(value)
        return lambda ctx: server_name(ctx.connection.sni.encode())
    if kind == "authenticated":
        return authenticated(value)
    raise ValueError(f"unknown RBAC rule {kind}")


def bare(path: bytes) -> bytes:
    """The path without query and fragment."""
    return path.partition(b"?")[0].partition(b"#")[0]


_ADDRESSES: Final[dict[str, Callable[[RequestContext], str]]] = {
    "destination_ip": lambda ctx: ctx.connection.local[0],
    "source_ip": lambda ctx: ctx.connection.remote[0],
    "direct_remote_ip": lambda ctx: ctx.connection.peer_address[0],
    "remote_ip": lambda ctx: ctx.client[0],
}


def authenticated(match: Any) -> Test:
    """Is the peer's certificate for this principal? URI names, then DNS names, then the subject (AuthenticatedMatcher).

    Without a name every TLS connection passes, with or without a certificate, as in Envoy.
    """
    if match is None:
        return lambda ctx: ctx.connection.tls
    test = compile_string(match)

    def is_principal(ctx: RequestContext) -> bool:
        connection: ConnectionInfo = ctx.connection
        if not connection.tls:
            return False
        peer = connection.peer
        if peer is None:
            return test(b"")
        names = (*peer.uri_sans, *peer.dns_sans, peer.subject)
        return any(test(name.encode()) for name in names)

    return is_principal


def _any_of(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda ctx: any(test(ctx) for test in tests)


def _all_of(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda ctx: all(test(ctx) for test in tests)
