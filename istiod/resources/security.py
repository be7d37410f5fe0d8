"""security.istio.io: PeerAuthentication, AuthorizationPolicy and RequestAuthentication.

Not for: filter chains (istiod/compile/inbound.py) or RBAC filters (istiod/compile/authorization.py).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from istiod.resources.schema import (
    Bool,
    NonEmpty,
    PositiveDuration,
    Spec,
    Str,
    address_problem,
    later,
)
from istiod.resources.selector import TargetReference, WorkloadSelector, one_target

MtlsMode = Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]


class Mtls(Spec):
    """One mode; UNSET inherits from the next wider policy."""

    mode: MtlsMode = "UNSET"


class PeerAuthentication(Spec):
    """Whether callers must, may or cannot use mutual TLS."""

    selector: WorkloadSelector | None = None
    mtls: Mtls | None = None
    port_level_mtls: dict[Annotated[str, StringConstraints(pattern=r"^\d+$")], Mtls] | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        ports = self.port_level_mtls
        if ports is None:
            return
        if not ports:
            yield "portLevelMtls", "should have at least 1 properties"
        if self.selector is None or not self.selector.match_labels:
            yield "portLevelMtls", "portLevelMtls requires selector"
        for port in ports:
            if not 1 <= int(port) <= 65535:
                yield f"portLevelMtls[{port}]", f"port must be between 1-65535, not {port}"


IpBlocks = tuple[NonEmpty, ...]
Values = tuple[NonEmpty, ...]
ServiceAccounts = Annotated[
    tuple[Annotated[NonEmpty, StringConstraints(max_length=320)], ...], Field(max_length=16)
]


def _ip_rules(path: str, blocks: IpBlocks) -> Iterator[tuple[str, str]]:
    for index, block in enumerate(blocks):
        if problem := address_problem(block):
            yield f"{path}[{index}]", problem


class Source(Spec):
    """Who calls; all conditions must hold, any value of a condition is enough."""

    principals: Values = ()
    not_principals: Values = ()
    request_principals: Values = ()
    not_request_principals: Values = ()
    namespaces: Values = ()
    not_namespaces: Values = ()
    service_accounts: ServiceAccounts = ()
    not_service_accounts: ServiceAccounts = ()
    ip_blocks: IpBlocks = ()
    not_ip_blocks: IpBlocks = ()
    remote_ip_blocks: IpBlocks = ()
    not_remote_ip_blocks: IpBlocks = ()
    trust_domains: Values = ()
    not_trust_domains: Values = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        if not any(getattr(self, name) for name in type(self).model_fields):
            yield "", "must not be empty"
        accounts = self.service_accounts or self.not_service_accounts
        others = self.principals or self.not_principals or self.namespaces or self.not_namespaces
        if accounts and others:
            yield "", "Cannot set serviceAccounts with namespaces or principals"
        for name, values in (
            ("serviceAccounts", self.service_accounts),
            ("notServiceAccounts", self.not_service_accounts),
        ):
            for index, value in enumerate(values):
                if value.count("/") > 1 or "*" in value:
                    yield (
                        f"{name}[{index}]",
                        "must be SERVICE_ACCOUNT or NAMESPACE/SERVICE_ACCOUNT, without wildcard",
                    )
        yield from _ip_rules("ipBlocks", self.ip_blocks)
        yield from _ip_rules("notIpBlocks", self.not_ip_blocks)
        yield from _ip_rules("remoteIpBlocks", self.remote_ip_blocks)
        yield from _ip_rules("notRemoteIpBlocks", self.not_remote_ip_blocks)


class Operation(Spec):
    """What is called; all conditions must hold, any value of a condition is enough."""

    hosts: Values = ()
    not_hosts: Values = ()
    ports: Values = ()
    not_ports: Values = ()
    methods: Values = ()
    not_methods: Values = ()
    paths: Values = ()
    not_paths: Values = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        if not any(getattr(self, name) for name in type(self).model_fields):
            yield "", "must not be empty"
        for name, ports in (("ports", self.ports), ("notPorts", self.not_ports)):
            for index, port in enumerate(ports):
                if problem := port_problem(port):
                    yield f"{name}[{index}]", problem
        for name, paths in (("paths", self.paths), ("notPaths", self.not_paths)):
            for index, path in enumerate(paths):
                if ("{" in path or "}" in path) and (problem := template_problem(path)):
                    yield f"{name}[{index}]", problem


def port_problem(text: str) -> str | None:
    """Why `text` is not the decimal number of a port, or None."""
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        return f"{text!r} is not a port between 1-65535"
    return None


def template_problem(path: str) -> str | None:
    """Why `path` is not a path template ({*} one segment, {**} any number)."""
    if not path.startswith("/"):
        return "a path template must start with /"
    segments = path[1:].split("/")
    wild = False
    for segment in segments:
        if segment not in ("{*}", "{**}") and re.search(r"[{}*]", segment):
            return f"invalid path template segment {segment!r}: only {{*}} and {{**}} alone"
        if segment == "{*}" and wild:
            return "{*} may not follow {**}"
        if segment == "{**}":
            if wild:
                return "{**} may occur only once"
            wild = True
    return None


class From(Spec):
    """One alternative source."""

    source: Source


class To(Spec):
    """One alternative operation."""

    operation: Operation


_PLAIN_KEYS = frozenset(
    (
        "source.ip",
        "remote.ip",
        "source.namespace",
        "source.principal",
        "source.serviceAccount",
        "source.trustDomain",
        "request.auth.principal",
        "request.auth.audiences",
        "request.auth.presenter",
        "destination.ip",
        "destination.port",
        "connection.sni",
    )
)
_KEYED = re.compile(
    r"(request\.headers\[[^\[\]]+\]|request\.auth\.claims(\[[^\[\]]+\])+|experimental\.envoy\.filters\.[^\[\]]+\[[^\[\]]+\])"
)


class Condition(Spec):
    """One condition on an attribute of the call."""

    key: NonEmpty
    values: Values = ()
    not_values: Values = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.values and not self.not_values:
            yield "values", "at least one of values, notValues must be set"
        if self.key not in _PLAIN_KEYS and not _KEYED.fullmatch(self.key):
            yield "key", f"unknown condition attribute {self.key!r}"
        for name, values in (("values", self.values), ("notValues", self.not_values)):
            for index, value in enumerate(values):
                if self.key in ("source.ip", "remote.ip", "destination.ip") and (
                    problem := address_problem(value)
                ):
                    yield f"{name}[{index}]", problem
                if self.key == "destination.port" and (problem := port_problem(value)):
                    yield f"{name}[{index}]", problem


class Rule(Spec):
    """One rule: from AND to AND when; an absent part is always true."""

    from_: Annotated[tuple[From, ...], Field(max_length=512)] | None = None
    to: tuple[To, ...] | None = None
    when: tuple[Condition, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.from_ is not None and not self.from_:
            yield "from", "must not be empty"
        if self.to is not None and not self.to:
            yield "to", "must not be empty"


class Provider(Spec):
    """The name of an extension provider."""

    name: Str = ""


class AuthorizationPolicy(Spec):
    """Who may call what."""

    selector: WorkloadSelector | None = None
    target_ref: TargetReference | None = later()
    target_refs: Annotated[tuple[TargetReference, ...], Field(max_length=16)] = later(())
    rules_: Annotated[tuple[Rule, ...], Field(max_length=512, alias="rules")] = ()
    action: Literal["ALLOW", "DENY", "AUDIT", "CUSTOM"] = "ALLOW"
    provider: Provider | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        yield from one_target(self.target_ref, self.target_refs, self.selector)
        if self.action == "CUSTOM":
            if self.provider is None or not self.provider.name:
                yield "provider", "must be set for CUSTOM"
        elif self.provider is not None:
            yield "provider", "may only be set for CUSTOM"
        if self.action == "DENY" and not self.rules_:
            yield "rules", "a DENY policy without rules would never match anything"

    def refusals(self) -> Iterator[tuple[str, str]]:
        if self.action == "CUSTOM":
            yield "action", "CUSTOM (external authorization) is not supported by this version"


class JwtHeader(Spec):
    """Where a token is looked for."""

    name: NonEmpty
    prefix: Str = ""


class ClaimToHeader(Spec):
    """A claim that is copied into a request header."""

    header: Annotated[NonEmpty, StringConstraints(pattern=r"^[-_A-Za-z0-9]+$")]
    claim: NonEmpty


class JwtRule(Spec):
    """One issuer whose tokens are accepted."""

    issuer: NonEmpty = ""
    audiences: tuple[NonEmpty, ...] = ()
    jwks_uri: Annotated[NonEmpty, StringConstraints(max_length=2048)] | None = None
    jwks: Str | None = None
    from_headers: tuple[JwtHeader, ...] = ()
    from_params: tuple[NonEmpty, ...] = ()
    from_cookies: tuple[NonEmpty, ...] = ()
    output_payload_to_header: Str = ""
    forward_original_token: Bool = False
    output_claim_to_headers: tuple[ClaimToHeader, ...] = ()
    timeout: PositiveDuration | None = None
    space_delimited_claims: Annotated[tuple[NonEmpty, ...], Field(max_length=64)] = ()
    presence: Literal["UNSPECIFIED", "OPTIONAL", "REQUIRED"] | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.jwks is not None and self.jwks_uri is not None:
            yield "jwksUri", "only one of jwks or jwksUri can be set"
        if self.jwks_uri is not None and not re.match(r"https?://", self.jwks_uri):
            yield "jwksUri", "url must have scheme http:// or https://"


class RequestAuthentication(Spec):
    """Which tokens a workload accepts."""

    selector: WorkloadSelector | None = None
    target_ref: TargetReference | None = None
    target_refs: Annotated[tuple[TargetReference, ...], Field(max_length=16)] = ()
    jwt_rules: Annotated[tuple[JwtRule, ...], Field(max_length=4096)] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        yield from one_target(self.target_ref, self.target_refs, self.selector)


def network_of(block: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """The network of a checked ipBlocks value (a single address is a network of one)."""
    return ipaddress.ip_network(block, strict=False)
