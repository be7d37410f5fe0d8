"""security.istio.io AuthorizationPolicy: who may call what.

Not for: RBAC filters (istiod/compile/authorization.py).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from istiod.resources.names import address_problem, port_problem
from istiod.resources.schema import NonEmpty, Spec, Str, camel_case, unsupported
from istiod.resources.selector import TargetReference, WorkloadSelector, one_target

DRY_RUN = "istio.io/dry-run"
"""The annotation of a policy that is tried out: its verdicts are counted and logged, not enforced."""
DRY_RUN_ON = ("1", "t", "T", "true", "TRUE", "True")
_DRY_RUN_OFF = ("0", "f", "F", "false", "FALSE", "False")

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

    @property
    def known(self) -> bool:
        """The attribute is one that Istio has."""
        return self.key in _PLAIN_KEYS or _KEYED.fullmatch(self.key) is not None

    def rules(self) -> Iterator[tuple[str, str]]:
        if not self.values and not self.not_values:
            yield "values", "at least one of values, notValues must be set"
        if not self.known:
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

    def not_for_custom(self) -> Iterator[str]:
        """Conditions that Istio does not take in a CUSTOM policy, as paths."""
        for index, one in enumerate(self.from_ or ()):
            for name in ("namespaces", "principals", "request_principals"):
                for field in (name, f"not_{name}"):
                    if getattr(one.source, field):
                        yield f"from[{index}].source.{camel_case(field)}"
        for index, condition in enumerate(self.when):
            if condition.key in ("source.namespace", "source.principal") or condition.key.startswith(
                "request.auth."
            ):
                yield f"when[{index}].key"

    def unverified(self, *, positive: bool) -> Iterator[str]:
        """Positive or negative conditions on tokens or on other filters' metadata, as paths.

        Nothing verifies tokens yet, so that a positive one never holds: an ALLOW rule fails closed by it, a DENY
        rule open. A negative one always holds.
        """
        for index, one in enumerate(self.from_ or ()):
            name = "request_principals" if positive else "not_request_principals"
            if getattr(one.source, name):
                yield f"from[{index}].source.{camel_case(name)}"
        for index, condition in enumerate(self.when):
            name = "values" if positive else "not_values"
            if condition.key.startswith(("request.auth.", "experimental.")) and getattr(condition, name):
                yield f"when[{index}].{camel_case(name)}"


_UNVERIFIED = "nothing verifies tokens or sets this metadata in this version"


class Provider(Spec):
    """The name of an extension provider."""

    name: Str = ""


_NO_TARGETS = "targets are gateways and waypoints, which this mesh does not have; use selector"


class AuthorizationPolicy(Spec):
    """Who may call what."""

    selector: WorkloadSelector | None = None
    target_ref: TargetReference | None = unsupported(reason=_NO_TARGETS)
    target_refs: Annotated[tuple[TargetReference, ...], Field(max_length=16)] = unsupported(
        (), reason=_NO_TARGETS
    )
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
        if self.action == "CUSTOM":
            for index, rule in enumerate(self.rules_):
                for path in rule.not_for_custom():
                    yield f"rules[{index}].{path}", "cannot be used with CUSTOM"

    def document_rules(self, namespace: str, annotations: Mapping[str, str]) -> Iterator[tuple[str, str]]:
        dry_run = annotations.get(DRY_RUN)
        if dry_run is None:
            return
        path = f"metadata.annotations[{DRY_RUN}]"
        if dry_run not in (*DRY_RUN_ON, *_DRY_RUN_OFF):
            yield path, f"{dry_run!r} is neither true nor false"
        if self.action not in ("ALLOW", "DENY"):
            yield path, f"a policy with action {self.action} cannot be tried out: only ALLOW and DENY can"

    def refusals(self) -> Iterator[tuple[str, str]]:
        if self.action == "CUSTOM":
            yield "action", "CUSTOM (external authorization) is not supported by this version"
            return
        if self.action == "AUDIT":
            return
        holds = "never" if self.action == "DENY" else "always"
        for path in self._unverified(positive=self.action == "DENY"):
            yield path, f"{_UNVERIFIED}: the condition would {holds} hold, and the policy would let calls in"

    def gaps(self) -> Iterator[tuple[str, str]]:
        if self.action == "AUDIT":
            yield (
                "action",
                "AUDIT marks requests for logs that choose by the mark; no log of this version does",
            )
        if self.action == "ALLOW":
            for path in self._unverified(positive=True):
                yield path, f"{_UNVERIFIED}: the condition never holds, and the rule allows nothing"

    def _unverified(self, *, positive: bool) -> Iterator[str]:
        for index, rule in enumerate(self.rules_):
            for path in rule.unverified(positive=positive):
                yield f"rules[{index}].{path}"


def network_of(block: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """The network of a checked ipBlocks value (a single address is a network of one)."""
    return ipaddress.ip_network(block, strict=False)
