"""The two halves of an authorization rule as Envoy RBAC values: who calls (Principal), what is called (Permission).

Rule: each condition becomes one value or None where it cannot be judged on plain TCP; how a None counts is
the caller's decision (authorization.py). Matching is Istio's: exact, `prefix*`, `*suffix`, `*` for "any, but
there must be one".
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from envoy.config.core.v3 import address_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.config.route.v3 import route_components_pb2
from envoy.type.matcher.v3 import metadata_pb2, path_pb2, regex_pb2, string_pb2, value_pb2

from istiod.resources.authorization import network_of
from istiod.resources.mesh_config import MeshConfig

Text: TypeAlias = string_pb2.StringMatcher
JWT = "envoy.filters.http.jwt_authn"
_SEGMENT = r"[a-zA-Z0-9-._~%!$&'()*+,;:@=]+"
"""What one `{*}` of a path template may hold (Envoy's uri_template)."""


def quote(text: str) -> str:
    """Escape what RE2 would interpret."""
    return re.sub(r"([\\.+*?()|\[\]{}^$])", r"\\\1", text)


def regex(pattern: str) -> Text:
    """A full match of a pattern."""
    return Text(safe_regex=regex_pb2.RegexMatcher(regex=pattern))


def text_matcher(value: str, prefix: str = "") -> Text:
    """Istio's value syntax as a StringMatcher; `prefix` stands before every value but a bare `*`."""
    if value == "*":
        return regex(".+")
    if value.startswith("*"):
        return regex(f"{prefix}.*{quote(value[1:])}") if prefix else Text(suffix=value[1:])
    if value.endswith("*"):
        return Text(prefix=prefix + value[:-1])
    return Text(exact=prefix + value)


def any_of_ids(ids: Iterable[rbac_pb2.Principal]) -> rbac_pb2.Principal:
    """Any of them."""
    return rbac_pb2.Principal(or_ids=rbac_pb2.Principal.Set(ids=ids))


def all_ids(ids: Iterable[rbac_pb2.Principal]) -> rbac_pb2.Principal:
    """All of them; of nothing: anybody."""
    found = list(ids) or [rbac_pb2.Principal(any=True)]
    return rbac_pb2.Principal(and_ids=rbac_pb2.Principal.Set(ids=found))


def not_id(one: rbac_pb2.Principal) -> rbac_pb2.Principal:
    """Anybody else."""
    return rbac_pb2.Principal(not_id=one)


def any_rule(rules: Iterable[rbac_pb2.Permission]) -> rbac_pb2.Permission:
    """Any of them."""
    return rbac_pb2.Permission(or_rules=rbac_pb2.Permission.Set(rules=rules))


def all_rules(rules: Iterable[rbac_pb2.Permission]) -> rbac_pb2.Permission:
    """All of them; of nothing: anything."""
    found = list(rules) or [rbac_pb2.Permission(any=True)]
    return rbac_pb2.Permission(and_rules=rbac_pb2.Permission.Set(rules=found))


def not_rule(one: rbac_pb2.Permission) -> rbac_pb2.Permission:
    """Anything else."""
    return rbac_pb2.Permission(not_rule=one)


def any_of_values(matchers: Iterable[value_pb2.ValueMatcher]) -> value_pb2.ValueMatcher:
    """Any of one or more. Envoy refuses an `or_match` of fewer than two, and with it the whole listener."""
    found = list(matchers)
    if len(found) == 1:
        return found[0]
    result = value_pb2.ValueMatcher()
    result.or_match.value_matchers.extend(found)
    return result


def authenticated(matcher: Text) -> rbac_pb2.Principal:
    """The peer's verified SPIFFE id."""
    return rbac_pb2.Principal(authenticated=rbac_pb2.Principal.Authenticated(principal_name=matcher))


def principals(values: Iterable[str], mesh: MeshConfig) -> list[rbac_pb2.Principal]:
    """`trust-domain/ns/NS/sa/SA`, with the mesh's trust domain standing for its aliases too."""
    return [
        authenticated(text_matcher(value, "spiffe://"))
        for given in values
        for value in _with_aliases(given, (mesh.trust_domain, *mesh.trust_domain_aliases))
    ]


def namespaces(values: Iterable[str]) -> list[rbac_pb2.Principal]:
    """The namespace within the peer's SPIFFE id."""
    return [authenticated(regex(f".*/ns/{quote(value).replace(chr(92) + '*', '.*')}/.*")) for value in values]


def service_accounts(values: Iterable[str], home: str) -> list[rbac_pb2.Principal]:
    """`NAMESPACE/SA` or `SA` of the policy's own namespace."""
    found = []
    for value in values:
        namespace, _, account = value.rpartition("/")
        pattern = f"spiffe://.+/ns/{quote(namespace or home)}/(.+/|)sa/{quote(account)}(/.+)?"
        found.append(authenticated(regex(pattern)))
    return found


def trust_domains(values: Iterable[str]) -> list[rbac_pb2.Principal]:
    """The trust domain of the peer's SPIFFE id."""
    found = []
    for value in values:
        if "*" in value:
            pattern = quote(value).replace("\\*", "[^/]*")
            found.append(authenticated(regex(f"spiffe://{pattern}/.*")))
        else:
            found.append(authenticated(Text(prefix=f"spiffe://{value}/")))
    return found


def direct_addresses(blocks: Iterable[str]) -> list[rbac_pb2.Principal]:
    """The connection's peer address."""
    return [rbac_pb2.Principal(direct_remote_ip=cidr(block)) for block in blocks]


def remote_addresses(blocks: Iterable[str]) -> list[rbac_pb2.Principal]:
    """The client's address after x-forwarded-for and PROXY protocol."""
    return [rbac_pb2.Principal(remote_ip=cidr(block)) for block in blocks]


def request_principals(values: Iterable[str]) -> list[rbac_pb2.Principal]:
    """`ISSUER/SUBJECT` of a verified token."""
    found = []
    for value in values:
        issuer, slash, subject = value.rpartition("/")
        if not slash:
            issuer, subject = value, ""
            if value.startswith("*"):
                issuer, subject = "*", value
            elif value.endswith("*"):
                subject = "*"
        parts = (("iss", issuer), ("sub", subject))
        found.append(
            all_ids(
                rbac_pb2.Principal(
                    metadata=_metadata(
                        JWT, ("payload", claim), value_pb2.ValueMatcher(string_match=text_matcher(part))
                    )
                )
                for claim, part in parts
            )
        )
    return found


def claim(path: tuple[str, ...], values: Iterable[str]) -> rbac_pb2.Principal:
    """A claim of a verified token: a text, or a list that has one of the values."""
    wanted = any_of_values(value_pb2.ValueMatcher(string_match=text_matcher(value)) for value in values)
    either = any_of_values((_in_a_list(wanted), wanted))
    return rbac_pb2.Principal(metadata=_metadata(JWT, ("payload", *path), either))


def header_ids(name: str, values: Iterable[str]) -> list[rbac_pb2.Principal]:
    """A request header, as a property of the caller."""
    return [rbac_pb2.Principal(header=header(name, value)) for value in values]


def header(name: str, value: str, *, ignore_case: bool = False) -> route_components_pb2.HeaderMatcher:
    """Istio's value syntax on a header; `*` means that it is there."""
    if value == "*":
        return route_components_pb2.HeaderMatcher(name=name, present_match=True)
    matcher = text_matcher(value)
    matcher.ignore_case = ignore_case
    return route_components_pb2.HeaderMatcher(name=name, string_match=matcher)


def headers(name: str, values: Iterable[str], *, ignore_case: bool = False) -> list[rbac_pb2.Permission]:
    """A request header, as a property of what is called."""
    return [rbac_pb2.Permission(header=header(name, value, ignore_case=ignore_case)) for value in values]


def paths(values: Iterable[str]) -> list[rbac_pb2.Permission]:
    """The path without query; also path templates with {*} and {**}."""
    found = []
    for value in values:
        matcher = text_matcher(value)
        if "{" in value:
            segments = [_template_segment(segment) for segment in value[1:].split("/")]
            matcher = regex("/" + "/".join(segments))
        found.append(rbac_pb2.Permission(url_path=path_pb2.PathMatcher(path=matcher)))
    return found


def ports(values: Iterable[str]) -> list[rbac_pb2.Permission]:
    """The port that was called."""
    return [rbac_pb2.Permission(destination_port=int(value)) for value in values]


def destination_addresses(blocks: Iterable[str]) -> list[rbac_pb2.Permission]:
    """The address that was called."""
    return [rbac_pb2.Permission(destination_ip=cidr(block)) for block in blocks]


def server_names(values: Iterable[str]) -> list[rbac_pb2.Permission]:
    """The SNI of the connection."""
    return [rbac_pb2.Permission(requested_server_name=text_matcher(value)) for value in values]


def filter_metadata(key: str, values: Iterable[str]) -> rbac_pb2.Permission:
    """`experimental.envoy.filters.NAME[KEY]`: dynamic metadata of another filter; `[VALUE]` is one of a list (Istio)."""
    name, _, inner = key.removeprefix("experimental.").partition("[")
    matcher = any_of_values(
        _in_a_list(value_pb2.ValueMatcher(string_match=text_matcher(value[1:-1])))
        if len(value) > 2 and value.startswith("[") and value.endswith("]")
        else value_pb2.ValueMatcher(string_match=text_matcher(value))
        for value in values
    )
    return rbac_pb2.Permission(metadata=_metadata(name, (inner.removesuffix("]"),), matcher))


def cidr(block: str) -> address_pb2.CidrRange:
    """An address or block as Envoy's CidrRange."""
    network = network_of(block)
    result = address_pb2.CidrRange(address_prefix=str(network.network_address))
    result.prefix_len.value = network.prefixlen
    return result


def _in_a_list(one: value_pb2.ValueMatcher) -> value_pb2.ValueMatcher:
    result = value_pb2.ValueMatcher()
    result.list_match.one_of.CopyFrom(one)
    return result


def _metadata(
    name: str, path: tuple[str, ...], value: value_pb2.ValueMatcher
) -> metadata_pb2.MetadataMatcher:
    segments = [metadata_pb2.MetadataMatcher.PathSegment(key=key) for key in path]
    return metadata_pb2.MetadataMatcher(filter=name, path=segments, value=value)


def _template_segment(segment: str) -> str:
    if segment == "{*}":
        return _SEGMENT
    if segment == "{**}":
        return f"({_SEGMENT}(/{_SEGMENT})*/?)?"
    return quote(segment)


def _with_aliases(principal: str, domains: tuple[str, ...]) -> list[str]:
    """Istio's trust domain migration: a principal of one of the mesh's domains counts for all of them."""
    parts = principal.split("/")
    if len(parts) != 5 or parts[0] == "*":
        return [principal]
    domain, rest = parts[0], "/".join(parts[1:])
    if not any(_covers(domain, known) for known in domains) and domain != "cluster.local":
        return [principal]
    found = []
    for known in domains:
        # A pattern that covers the domain already says as much; naming the domain would narrow it.
        keep = "*" in domain and _covers(domain, known)
        found.append(principal if keep else f"{known}/{rest}")
    return list(dict.fromkeys(found))


def _covers(pattern: str, domain: str) -> bool:
    if pattern.startswith("*"):
        return domain.endswith(pattern[1:])
    if pattern.endswith("*"):
        return domain.startswith(pattern[:-1])
    return pattern == domain
