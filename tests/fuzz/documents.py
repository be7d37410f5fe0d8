"""Istio documents that are nearly right: valid ones of each kind, with values from the CRDs' own schemas put in.

Rule: built from `istio-crds.yaml` alone, so that a field which the project forgot is tried as well. Values are chosen
by the schema and by what a field's name says it is; each list has usual, extreme and hostile ones.
"""
# ruff: noqa: E501 - a document is easier to read on one line

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

CASES = Path(__file__).parents[3] / "shared" / "cases"
KINDS = (
    "VirtualService", "DestinationRule", "ServiceEntry", "Sidecar", "WorkloadEntry", "WorkloadGroup", "Gateway",
    "PeerAuthentication", "RequestAuthentication", "AuthorizationPolicy", "Telemetry", "ProxyConfig", "EnvoyFilter",
    "WasmPlugin",
)  # fmt: skip

_OFTEN = (
    *KINDS, *("VirtualService",) * 8, *("DestinationRule",) * 8, *("ServiceEntry",) * 5, *("AuthorizationPolicy",) * 5, *("Sidecar",) * 2,
    *("PeerAuthentication",) * 2, *("Telemetry",) * 2, *("WorkloadEntry",) * 2,
)  # fmt: skip
_ROUTE: dict[str, Any] = {"route": [{"destination": {"host": "reviews", "port": {"number": 9080}}}]}
_BASES: dict[str, list[dict[str, Any]]] = {
    "VirtualService": [
        {"hosts": ["reviews"], "http": [_ROUTE]},
        {"hosts": ["reviews"], "http": [{"match": [{"uri": {"prefix": "/"}}], **_ROUTE}, _ROUTE]},
        {"hosts": ["mysqldb"], "tcp": [{"match": [{"port": 3306}], "route": [{"destination": {"host": "mysqldb"}}]}]},
        {"hosts": ["secure"], "tls": [{"match": [{"port": 8443, "sniHosts": ["secure.default.svc.cluster.local"]}], "route": [{"destination": {"host": "secure"}}]}]},
        {"hosts": ["web"], "http": [{"redirect": {"uri": "/x"}}]},
        {"hosts": ["web"], "http": [{"directResponse": {"status": 200}}]},
    ],
    "DestinationRule": [
        {"host": "reviews", "trafficPolicy": {"loadBalancer": {"simple": "RANDOM"}}},
        {"host": "reviews", "subsets": [{"name": "v1", "labels": {"version": "v1"}}]},
        {"host": "reviews", "trafficPolicy": {"tls": {"mode": "SIMPLE"}}},
        {"host": "web"},
    ],
    "ServiceEntry": [
        {"hosts": ["out.example"], "ports": [{"number": 443, "name": "tls", "protocol": "TLS"}], "resolution": "DNS"},
        {"hosts": ["out.example"], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}], "resolution": "STATIC", "endpoints": [{"address": "192.0.2.1"}]},
        {"hosts": ["*.wild.example"], "ports": [{"number": 5432, "name": "tcp", "protocol": "TCP"}], "resolution": "NONE", "addresses": ["192.0.2.0/24"]},
    ],
    "Sidecar": [
        {"egress": [{"hosts": ["./*"]}]},
        {"workloadSelector": {"labels": {"app": "reviews"}}, "ingress": [{"port": {"number": 9080, "protocol": "HTTP", "name": "http"}, "defaultEndpoint": "127.0.0.1:8080"}]},
    ],
    "WorkloadEntry": [{"address": "192.0.2.7", "labels": {"app": "reviews"}}],
    "WorkloadGroup": [{"template": {"serviceAccount": "default"}}],
    "Gateway": [{"selector": {"app": "gw"}, "servers": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]}],
    "PeerAuthentication": [{"mtls": {"mode": "STRICT"}}, {"selector": {"matchLabels": {"app": "reviews"}}, "portLevelMtls": {"9080": {"mode": "DISABLE"}}}],
    "RequestAuthentication": [{"jwtRules": [{"issuer": "i", "jwksUri": "https://jwks.example/keys"}]}],
    "AuthorizationPolicy": [
        {"action": "DENY", "rules": [{"to": [{"operation": {"paths": ["/x"]}}]}]},
        {"rules": [{"from": [{"source": {"principals": ["*"]}}], "when": [{"key": "request.headers[x]", "values": ["a"]}]}]},
        {},
    ],
    "Telemetry": [{"accessLogging": [{"providers": [{"name": "envoy"}]}]}],
    "ProxyConfig": [{"concurrency": 1}],
    "EnvoyFilter": [{"configPatches": [{"applyTo": "CLUSTER", "patch": {"operation": "MERGE", "value": {}}}]}],
    "WasmPlugin": [{"url": "oci://x/y"}],
}  # fmt: skip

Path_ = tuple[str, ...]
"""The way to a value: names, and `0` for the first entry of a list."""


@dataclass(frozen=True)
class Leaf:
    """A field that takes a value, at its path below `spec`."""

    path: Path_
    schema: Mapping[str, Any]


@cache
def _crds() -> dict[str, dict[str, Any]]:
    found = {}
    for document in yaml.safe_load_all((CASES / "istio-crds.yaml").read_text()):
        if document:
            found[document["spec"]["names"]["kind"]] = document["spec"]
    return found


@cache
def leaves(kind: str) -> tuple[Leaf, ...]:
    """Every field of a kind that takes a value."""
    schema = _crds()[kind]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    return tuple(_leaves(schema, ()))


def _leaves(schema: Mapping[str, Any], path: Path_) -> Iterator[Leaf]:
    properties = schema.get("properties")
    if properties:
        for name, inner in properties.items():
            yield from _leaves(inner, (*path, name))
    elif schema.get("type") == "array":
        yield from _leaves(schema["items"], (*path, "0"))
    elif isinstance(schema.get("additionalProperties"), dict):
        yield from _leaves(schema["additionalProperties"], (*path, "key"))
    else:
        yield Leaf(path, schema)


_DURATIONS = ("1s", "0s", "1ms", "2.5s", "100h", "10000000h", "999999999999s", "-1s", "0.0000001s", "1h30m")
_HOSTS = ("reviews", "web", "mysqldb", "secure", "out.example", "*.wild.example", "*", "reviews.default.svc.cluster.local", "nobody.example", "Reviews", "a.b.", "10.0.0.1")  # fmt: skip
_ADDRESSES = ("192.0.2.1", "192.0.2.0/24", "2001:db8::1", "0.0.0.0/0", "::/0", "1.2.3.4/33", "host.example", "unix:///tmp/x", "127.0.0.1:80", "")  # fmt: skip
_REGEXES = ("a.*", "(a|b)+", "[", "(?=x)", "a{1000}", "^/x(.*)$", "", ".")
_TEXTS = ("a", "", "x-header", "100% off", "%REQ(x)%", "%START_TIME%", "a b", "größe", "a\nb", "\x00", "/path", "*", "a*", "*a", "http://x.example/y", "x" * 300, "spiffe://cluster.local/ns/default/sa/x", "default", "v1", "9080", "-1", "not base64!!", "Host", ":authority", "{a=b}", "/{*}", "../x", "request.headers[x]", "request.auth.claims[a][b]", "source.ip")  # fmt: skip
_NUMBERS = (0, 1, 2, 3, 5, 99, 100, 101, 200, 503, 599, 600, 1024, 3306, 8080, 9080, 65535, 65536, 65537, 2**31 - 1, 2**31, 2**32 - 1, 2**32, -1)  # fmt: skip
_FLOATS = (0.0, 0.5, 1.0, 50.0, 100.0, 100.1, 1e-9, 1e300, -1.0)


def _values(leaf: Leaf) -> st.SearchStrategy[Any]:
    """Values for a field: of its own type nearly always."""
    schema, name = (
        leaf.schema,
        next((part for part in reversed(leaf.path) if part not in ("0", "key")), "").lower(),
    )
    if "enum" in schema:
        return st.sampled_from([*schema["enum"]])
    kind = schema.get("type")
    if schema.get("x-kubernetes-int-or-string"):
        return st.sampled_from((*_NUMBERS, "9080", "10%"))
    if kind == "boolean":
        return st.booleans()
    if kind == "integer":
        return st.sampled_from(_NUMBERS)
    if kind == "number":
        return st.sampled_from(_FLOATS)
    if kind == "object":
        return st.sampled_from(({}, {"a": 1}, {"a": {"b": [True, None]}}))
    durations = any(
        "duration(" in str(rule.get("rule")) for rule in schema.get("x-kubernetes-validations", ())
    )
    if durations or name.endswith(
        ("timeout", "interval", "ttl", "delay", "time", "duration", "maxage", "backoff")
    ):
        return st.sampled_from(_DURATIONS)
    if "host" in name or name in ("sni", "authority"):
        return st.sampled_from(_HOSTS + _TEXTS)
    if any(word in name for word in ("address", "subnet", "cidr", "ipblocks", "bind", "endpoint", "ip")):
        return st.sampled_from(_ADDRESSES + _TEXTS[:6])
    if "regex" in name or name == "match":
        return st.sampled_from(_REGEXES)
    return st.sampled_from(_TEXTS)


def _put(spec: Any, path: Path_, value: Any) -> Any:
    """The spec with the value at the path; what is missing on the way is made."""
    if not path:
        return value
    part, rest = path[0], path[1:]
    if part == "0":
        entries = list(spec) if isinstance(spec, list) else []
        return [_put(entries[0] if entries else None, rest, value), *entries[1:]]
    fields = dict(spec) if isinstance(spec, dict) else {}
    return {**fields, part: _put(fields.get(part), rest, value)}


@st.composite
def documents(draw: st.DrawFn) -> dict[str, Any]:
    """A document of any kind: a valid one, changed in up to three places."""
    kind = draw(st.sampled_from(_OFTEN))
    spec = copy.deepcopy(draw(st.sampled_from(_BASES[kind])))
    for _ in range(draw(st.sampled_from((1, 1, 1, 2, 3)))):
        leaf = draw(st.sampled_from(leaves(kind)))
        spec = _put(spec, leaf.path, draw(_values(leaf)))
    crd = _crds()[kind]
    return {
        "apiVersion": f"{crd['group']}/{crd['versions'][0]['name']}",
        "kind": kind,
        "metadata": {"name": "tried", "namespace": "default"},
        "spec": spec,
    }
