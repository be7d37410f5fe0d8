"""AuthorizationPolicies of a workload as RBAC filters, for HTTP and for opaque TCP.

Order (Istio): AUDIT, then DENY, then ALLOW; a workload with any ALLOW policy refuses what none of them allows.
On TCP an HTTP condition cannot be judged: it voids the rule of an ALLOW policy, and widens the rule of a
DENY or AUDIT policy, so that both err on the safe side; so does a stored rule with a value that would be refused
today (an address that is none). Dry-run policies (`istio.io/dry-run`) are shadows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import TypeVar

from envoy.config.listener.v3 import listener_components_pb2
from envoy.config.rbac.v3 import rbac_pb2
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2 as http_rbac_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2 as hcm_pb2
from envoy.extensions.filters.network.rbac.v3 import rbac_pb2 as network_rbac_pb2

from istiod.compile import principal as who
from istiod.compile.envoy import any_of
from istiod.resources.authorization import (
    DRY_RUN,
    DRY_RUN_ON,
    AuthorizationPolicy,
    Condition,
    Operation,
    Rule,
    Source,
)
from istiod.resources.document import Document
from istiod.resources.mesh_config import MeshConfig
from istiod.snapshot import Snapshot

HTTP_RBAC = "envoy.filters.http.rbac"
NETWORK_RBAC = "envoy.filters.network.rbac"
_ACTIONS = (("AUDIT", rbac_pb2.RBAC.LOG), ("DENY", rbac_pb2.RBAC.DENY), ("ALLOW", rbac_pb2.RBAC.ALLOW))

T = TypeVar("T")


class _HttpOnlyError(Exception):
    """A condition that only a request can answer, on a TCP chain of an ALLOW policy."""


def policies_of(
    snapshot: Snapshot, namespace: str, labels: Mapping[str, str]
) -> tuple[Document[AuthorizationPolicy], ...]:
    """The policies in force for a workload: the mesh's, then its namespace's."""
    found = snapshot.selected("AuthorizationPolicy", snapshot.mesh.root_namespace, labels)
    if namespace != snapshot.mesh.root_namespace:
        found += snapshot.selected("AuthorizationPolicy", namespace, labels)
    return tuple(
        document for document in found if document.spec.target_ref is None and not document.spec.target_refs
    )


def http_filters(
    policies: Iterable[Document[AuthorizationPolicy]], mesh: MeshConfig
) -> list[hcm_pb2.HttpFilter]:
    """RBAC filters for HTTP chains, in order."""
    found = []
    for rules, shadow, prefix in _all_rules(tuple(policies), mesh, tcp=False):
        config = http_rbac_pb2.RBAC(rules=rules, shadow_rules=shadow)
        if shadow is not None:
            config.shadow_rules_stat_prefix = prefix
        found.append(hcm_pb2.HttpFilter(name=HTTP_RBAC, typed_config=any_of(config)))
    return found


def tcp_filters(
    policies: Iterable[Document[AuthorizationPolicy]], mesh: MeshConfig
) -> list[listener_components_pb2.Filter]:
    """RBAC filters for opaque chains, in order."""
    found = []
    for rules, shadow, prefix in _all_rules(tuple(policies), mesh, tcp=True):
        config = network_rbac_pb2.RBAC(rules=rules, shadow_rules=shadow, stat_prefix="tcp.")
        if shadow is not None:
            config.shadow_rules_stat_prefix = prefix
        found.append(listener_components_pb2.Filter(name=NETWORK_RBAC, typed_config=any_of(config)))
    return found


def _all_rules(
    policies: tuple[Document[AuthorizationPolicy], ...], mesh: MeshConfig, *, tcp: bool
) -> Iterable[tuple[rbac_pb2.RBAC | None, rbac_pb2.RBAC | None, str]]:
    for name, action in _ACTIONS:
        chosen = [one for one in policies if one.spec.action == name]
        live = [one for one in chosen if not _dry_run(one)]
        dry = [one for one in chosen if _dry_run(one)]
        rules = _rules(live, action, mesh, tcp=tcp) if live else None
        shadow = _rules(dry, action, mesh, tcp=tcp) if dry else None
        if rules is not None or shadow is not None:
            yield rules, shadow, f"istio_dry_run_{name.lower()}_"


def _dry_run(policy: Document[AuthorizationPolicy]) -> bool:
    return policy.resource.annotations.get(DRY_RUN) in DRY_RUN_ON


def _rules(
    policies: list[Document[AuthorizationPolicy]],
    action: rbac_pb2.RBAC.Action,
    mesh: MeshConfig,
    *,
    tcp: bool,
) -> rbac_pb2.RBAC:
    rbac = rbac_pb2.RBAC(action=action)
    for policy in policies:
        resource = policy.resource
        for index, rule in enumerate(policy.spec.rules_):
            strict = action == rbac_pb2.RBAC.ALLOW
            try:
                made = _policy(rule, resource.namespace, mesh, tcp=tcp, strict=strict)
            except _HttpOnlyError:
                continue
            except (
                ValueError
            ):  # named in the snapshot's problems: only a rule that would be refused today has that
                if strict:
                    continue
                made = _policy(Rule(), resource.namespace, mesh, tcp=tcp, strict=strict)
            rbac.policies[f"ns[{resource.namespace}]-policy[{resource.name}]-rule[{index}]"].CopyFrom(made)
    return rbac


def _policy(rule: Rule, home: str, mesh: MeshConfig, *, tcp: bool, strict: bool) -> rbac_pb2.Policy:
    for one in rule.when:
        if not one.known or not (one.values or one.not_values):
            raise ValueError(f"condition {one.key!r} cannot be judged")
    build = _Builder(home, mesh, tcp=tcp, strict=strict)
    sources: list[Source | None] = [one.source for one in rule.from_ or ()]
    operations: list[Operation | None] = [one.operation for one in rule.to or ()]
    callers = [
        who.all_ids([*build.source(source), *build.caller_conditions(rule.when)])
        for source in sources or [None]
    ]
    calls = [
        who.all_rules([*build.operation(operation), *build.call_conditions(rule.when)])
        for operation in operations or [None]
    ]
    return rbac_pb2.Policy(principals=callers, permissions=calls)


class _Builder:
    """Turns the parts of one rule into RBAC values; knows how HTTP conditions count on TCP."""

    def __init__(self, home: str, mesh: MeshConfig, *, tcp: bool, strict: bool) -> None:
        self._home = home
        self._mesh = mesh
        self._tcp = tcp
        self._strict = strict

    def source(self, source: Source | None) -> list[rbac_pb2.Principal]:
        """The conditions of one `from`."""
        if source is None:
            return []
        mesh, home = self._mesh, self._home
        both = self._ids
        return [
            *both(source.principals, source.not_principals, lambda v: who.principals(v, mesh)),
            *both(
                source.request_principals, source.not_request_principals, who.request_principals, http=True
            ),
            *both(source.namespaces, source.not_namespaces, who.namespaces),
            *both(
                source.service_accounts, source.not_service_accounts, lambda v: who.service_accounts(v, home)
            ),
            *both(source.remote_ip_blocks, source.not_remote_ip_blocks, who.remote_addresses),
            *both(source.ip_blocks, source.not_ip_blocks, who.direct_addresses),
            *both(source.trust_domains, source.not_trust_domains, who.trust_domains),
        ]

    def operation(self, operation: Operation | None) -> list[rbac_pb2.Permission]:
        """The conditions of one `to`."""
        if operation is None:
            return []
        both = self._permissions
        return [
            *both(
                operation.hosts,
                operation.not_hosts,
                lambda v: who.headers(":authority", v, ignore_case=True),
                http=True,
            ),
            *both(operation.methods, operation.not_methods, lambda v: who.headers(":method", v), http=True),
            *both(operation.paths, operation.not_paths, who.paths, http=True),
            *both(operation.ports, operation.not_ports, who.ports),
        ]

    def caller_conditions(self, conditions: Iterable[Condition]) -> list[rbac_pb2.Principal]:
        """Those of `when` that are about the caller."""
        found: list[rbac_pb2.Principal] = []
        mesh, home = self._mesh, self._home
        plain: dict[str, Callable[[Iterable[str]], list[rbac_pb2.Principal]]] = {
            "source.ip": who.direct_addresses,
            "remote.ip": who.remote_addresses,
            "source.namespace": who.namespaces,
            "source.principal": lambda v: who.principals(v, mesh),
            "source.serviceAccount": lambda v: who.service_accounts(v, home),
            "source.trustDomain": who.trust_domains,
        }
        for condition in conditions:
            key, values, others = condition.key, condition.values, condition.not_values
            if key in plain:
                found += self._ids(values, others, plain[key])
            elif key == "request.auth.principal":
                found += self._ids(values, others, who.request_principals, http=True)
            elif key.startswith("request.headers["):
                name = key.removeprefix("request.headers[").removesuffix("]")
                found += self._ids(values, others, partial(who.header_ids, name), http=True)
            elif (path := _claim_path(key)) and self._judges(http=True):
                found += [who.claim(path, values)] if values else []
                found += [who.not_id(who.claim(path, others))] if others else []
        return found

    def call_conditions(self, conditions: Iterable[Condition]) -> list[rbac_pb2.Permission]:
        """Those of `when` that are about what is called."""
        found: list[rbac_pb2.Permission] = []
        plain: dict[str, Callable[[Iterable[str]], list[rbac_pb2.Permission]]] = {
            "destination.ip": who.destination_addresses,
            "destination.port": who.ports,
            "connection.sni": who.server_names,
        }
        for condition in conditions:
            key, values, others = condition.key, condition.values, condition.not_values
            if key in plain:
                found += self._permissions(values, others, plain[key])
            elif key.startswith("experimental."):
                found += [who.filter_metadata(key, values)] if values else []
                found += [who.not_rule(who.filter_metadata(key, others))] if others else []
        return found

    def _judges(self, *, http: bool) -> bool:
        """Whether a condition can be judged here; on TCP an HTTP condition voids or widens its rule."""
        if not http or not self._tcp:
            return True
        if self._strict:
            raise _HttpOnlyError
        return False

    def _ids(
        self,
        values: tuple[str, ...],
        others: tuple[str, ...],
        make: Callable[[Iterable[str]], list[rbac_pb2.Principal]],
        *,
        http: bool = False,
    ) -> list[rbac_pb2.Principal]:
        if not (values or others) or not self._judges(http=http):
            return []
        found = [who.any_of_ids(make(values))] if values else []
        return [*found, who.not_id(who.any_of_ids(make(others)))] if others else found

    def _permissions(
        self,
        values: tuple[str, ...],
        others: tuple[str, ...],
        make: Callable[[Iterable[str]], list[rbac_pb2.Permission]],
        *,
        http: bool = False,
    ) -> list[rbac_pb2.Permission]:
        if not (values or others) or not self._judges(http=http):
            return []
        found = [who.any_rule(make(values))] if values else []
        return [*found, who.not_rule(who.any_rule(make(others)))] if others else found


def _claim_path(key: str) -> tuple[str, ...]:
    """The path into the token's payload that a condition is about; empty for others."""
    if key == "request.auth.audiences":
        return ("aud",)
    if key == "request.auth.presenter":
        return ("azp",)
    if key.startswith("request.auth.claims["):
        return tuple(key.removeprefix("request.auth.claims[").removesuffix("]").split("]["))
    return ()
