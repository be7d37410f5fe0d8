"""Istio's own pairs of AuthorizationPolicy and Envoy RBAC filter: ours must give the same verdict on every request.

Both filters are read by agent/table and judged by agent/filters. Each condition is compared by what it says about a
grid of requests made from every text that the policy mentions, so that a policy which can never be true is still
compared condition by condition; then the whole verdict on requests put together at random.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
import yaml
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.router.v3 import router_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from google.protobuf import any_pb2, json_format

from agent.filters.rbac_rules import compile_rule, compile_rules
from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, PeerIdentity, RequestContext
from agent.routing.paths import template_pattern
from agent.table.build import LISTENER, build
from agent.table.filter_config import Rbac, RbacRules, Rule
from agent.table.listener import HttpManager
from istiod.compile.authorization import http_filters
from istiod.resources.document import parse
from istiod.resources.mesh_config import mesh_config
from tests.mesh.simulation import CASES

AUTHZ = CASES / "authz"
NAMES = sorted(path.name.removesuffix("-in.yaml") for path in AUTHZ.glob("*-in.yaml"))
MESHES = {
    # The trust domain and alias that Istio's own test of this pair sets.
    "simple-policy-principal-with-wildcard": {"trustDomain": "td1", "trustDomainAliases": ["foobar"]},
}
EXTRA_TEXTS = (
    "",
    "/",
    "/path/template/one",
    "/path/template/one/two",
    "/a/b/path/template",
    "/not-path/template/x",
    "spiffe://",
)


def rules_of(typed: any_pb2.Any) -> RbacRules:
    """What the data plane makes of a filter."""
    manager = hcm_pb2.HttpConnectionManager(stat_prefix="x")
    manager.route_config.virtual_hosts.add(name="x", domains=["*"])
    manager.http_filters.add(name="rbac", typed_config=typed)
    router = any_pb2.Any()
    router.Pack(router_pb2.Router())
    manager.http_filters.add(name="router", typed_config=router)
    packed = any_pb2.Any()
    packed.Pack(manager)
    listener = listener_pb2.Listener(name="x")
    listener.address.socket_address.address = "127.0.0.1"
    listener.address.socket_address.port_value = 1
    listener.filter_chains.add().filters.add(name="x", typed_config=packed)
    body = any_pb2.Any()
    body.Pack(listener)
    terminal = build({LISTENER: {"x": body.SerializeToString()}}).listeners["x"].chains[0].terminal
    assert isinstance(terminal, HttpManager)
    value = terminal.filters[0].value
    assert isinstance(value, Rbac)
    assert value.rules is not None
    return value.rules


def expected(name: str) -> RbacRules:
    """Istio's filter. URI templates become the pattern that the data plane's routes make of them."""
    document = yaml.safe_load((AUTHZ / f"{name}-out.yaml").read_text())["typedConfig"]
    document.pop("@type")
    message = json_format.ParseDict(_without_templates(document), rbac_pb2.RBAC())
    typed = any_pb2.Any()
    typed.Pack(message)
    return rules_of(typed)


def _without_templates(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_templates(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "uriTemplate" in value:
        pattern = template_pattern(value["uriTemplate"]["typedConfig"]["pathTemplate"])
        return {"urlPath": {"path": {"safeRegex": {"regex": pattern}}}}
    return {key: _without_templates(inner) for key, inner in value.items()}


def ours(name: str) -> RbacRules:
    """Our filter of the same policy."""
    parsed = parse((AUTHZ / f"{name}-in.yaml").read_text(), name)
    assert not parsed.errors(), [str(problem) for problem in parsed.errors()]
    (http_filter,) = http_filters(parsed.documents, mesh_config(MESHES.get(name, {})))
    return rules_of(http_filter.typed_config)


def texts(name: str) -> list[str]:
    """Every text of a policy, with its wildcards filled and with near misses."""
    found: set[str] = set(EXTRA_TEXTS)
    for value in re.findall(r'"([^"]*)"', (AUTHZ / f"{name}-in.yaml").read_text()):
        filled = value.replace("*", "foo")
        found |= {value, filled, filled + "x", "x" + filled}
    return sorted(found)


def context(**values: Any) -> RequestContext:
    """A request; what is not given is what nobody asks for."""
    principal = values.get("principal")
    connection = ConnectionInfo(
        1,
        (values.get("source", "203.0.113.1"), 1),
        (values.get("local", "203.0.113.2"), int(values.get("port", 1))),
        tls=principal is not None,
        peer=PeerIdentity(uri_sans=(principal,)) if principal is not None else None,
        sni=values.get("sni", ""),
    )
    header = values.get("header")
    ctx = RequestContext(
        values.get("method", "GET").encode(),
        values.get("path", "/").encode(),
        values.get("host", "h").encode(),
        Headers([(b"x-header", header.encode())] if header is not None else []),
        connection,
    )
    ctx.client = (values.get("remote", "203.0.113.3"), 0)
    payload = {key.removeprefix("jwt_"): value for key, value in values.items() if key.startswith("jwt_")}
    if "nested1" in payload:
        payload["nested1"] = {"nested2": payload["nested1"]}
    ctx.dynamic_metadata = {"envoy.filters.http.jwt_authn": {"payload": payload}, "envoy.filters.a.b": {}}
    if "filter" in values:
        ctx.dynamic_metadata["a.b"] = ctx.dynamic_metadata["envoy.filters.a.b"] = {"c": values["filter"]}
    return ctx


TEXTUAL = (
    "method", "path", "host", "header", "sni", "filter", "jwt_iss", "jwt_sub", "jwt_aud", "jwt_azp", "jwt_nested1",
)  # fmt: skip


def grid(name: str) -> Iterator[RequestContext]:
    """One request for each text at each place where a policy may look."""
    yield context()
    for text in texts(name):
        for place in TEXTUAL:
            yield context(**{place: text})
        yield context(jwt_aud=["other", text])
        yield context(jwt_iss=text, jwt_sub=text)
        for principal in (
            text,
            f"spiffe://{text}",
            f"spiffe://td1/{text}",
            f"spiffe://cluster.local/ns/{text}/sa/{text}",
        ):
            yield context(principal=principal)
        if re.fullmatch(r"[0-9]{1,5}", text):
            yield context(port=text)
        address = re.fullmatch(r"([0-9]+(?:\.[0-9]+){3})(/[0-9]+)?", text)
        if address is not None and all(int(part) < 256 for part in address[1].split(".")):
            for place in ("source", "remote", "local"):
                yield context(**{place: address[1]})
                yield context(**{place: address[1].rpartition(".")[0] + ".77"})


def meaning(rule: Rule, requests: list[RequestContext]) -> object:
    """A rule's structure without the order of its parts; a leaf is what it says about every request."""
    if rule.kind in ("and", "or"):
        parts = [meaning(child, requests) for child in rule.value]
        return parts[0] if len(parts) == 1 else (rule.kind, frozenset(parts))
    if rule.kind == "not":
        return ("not", meaning(rule.value, requests))
    test = compile_rule(rule)
    return "".join("1" if test(ctx) else "0" for ctx in requests)


@pytest.mark.parametrize("name", NAMES)
def test_every_condition_of_a_policy_says_the_same_as_istios(name: str) -> None:
    theirs, mine = expected(name), ours(name)
    requests = list(grid(name))
    requests = Random(name).sample(requests, min(len(requests), 2500))
    assert mine.action == theirs.action
    assert [policy.name for policy in mine.policies] == [policy.name for policy in theirs.policies]
    for left, right in zip(mine.policies, theirs.policies, strict=True):
        for part in ("permissions", "principals"):
            said = {meaning(rule, requests) for rule in getattr(left, part)}
            assert said == {meaning(rule, requests) for rule in getattr(right, part)}, f"{left.name} {part}"


@pytest.mark.parametrize("name", NAMES)
def test_the_verdict_on_requests_put_together_at_random_is_istios(name: str) -> None:
    theirs, mine = compile_rules(expected(name)), compile_rules(ours(name))
    chance = Random(name)
    words = texts(name)
    numbers = [word for word in words if re.fullmatch(r"[0-9]{1,5}", word)] or ["80"]
    addresses = [word for word in words if re.fullmatch(r"([0-9]{1,3}\.){3}[0-9]{1,3}", word)] or ["10.0.0.1"]
    seen = set()
    for _ in range(2000):
        values: dict[str, Any] = {place: chance.choice(words) for place in TEXTUAL}
        values |= {"port": chance.choice(numbers), "principal": _principal(chance, words)}
        values |= {place: chance.choice(addresses) for place in ("source", "remote", "local")}
        verdict = mine(context(**values))
        assert verdict == theirs(context(**values)), values
        seen.add(verdict[0])
    if name in ("trust-domains", "simple-policy-principal-with-wildcard"):
        assert seen == {True, False}


def _principal(chance: Random, words: list[str]) -> str | None:
    word = chance.choice(words)
    if chance.random() < 0.2:
        return None
    return chance.choice(
        (f"spiffe://{word}", f"spiffe://{word}/ns/foo/sa/bar", f"spiffe://cluster.local/ns/{word}/sa/x")
    )
