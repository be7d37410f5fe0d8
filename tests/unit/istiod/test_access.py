"""Who may serve what: grants, WorkloadGroups, revocations and evictions, as decisions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
from envoy.extensions.filters.http.rbac.v3 import rbac_pb2

from istiod.access.facts import OWN, Access, Eviction, Grant, NotGrantedError, Revocation
from istiod.access.group import grants_of
from istiod.compile.authorization import http_filters, policies_of, tcp_filters
from istiod.compile.clusters import identities
from istiod.resources.document import Document, parse
from istiod.resources.mesh_config import MeshConfig
from istiod.snapshot import Snapshot, build
from registry.model import Health, Instance, Port, Resource, Service
from wire.spiffe import SpiffeId

REVIEWS = Instance(
    id="default/reviews-vm1",
    service="reviews",
    namespace="default",
    addresses=("10.0.0.1", "fd00::1"),
    ports=(Port("http", 9080),),
    labels={"app": "reviews"},
    service_account="reviews",
    health=Health.HEALTHY,
    workload="reviews-vm1",
)
RATINGS = replace(
    REVIEWS, id="default/ratings-vm2", service="reviews", service_account="ratings", addresses=("10.0.0.2",)
)
SERVICE = Service("reviews", "default", (Port("http", 9080),), "240.240.0.1", "2001:2::f0f0:1")
GRANT = Grant("default", "reviews", "reviews")


def nowhere(_: str) -> bool:
    return False


def resources(text: str) -> list[Resource]:
    parsed = parse(text)
    assert not parsed.blocking(), [str(problem) for problem in parsed.blocking()]
    return [one.resource for one in parsed.documents]


def snapshot(access: Access, *instances: Instance, text: str = "", **mesh: object) -> Snapshot:
    return build((SERVICE,), instances, resources(text), MeshConfig.model_validate(mesh), access=access)


def accepted(found: Snapshot, host: str = "reviews.default.svc.cluster.local") -> tuple[str, ...]:
    """The identities that callers of the host accept."""
    return identities(found.by_host[host][0], found.mesh)


def test_an_identity_may_serve_what_it_was_granted_and_nothing_else() -> None:
    access = Access.of([GRANT])
    assert access.admit(REVIEWS, "10.0.0.1", nowhere).addresses == ("10.0.0.1",)
    with pytest.raises(
        NotGrantedError, match=r"default/ratings may not serve default/reviews .*--add ratings"
    ):
        access.admit(RATINGS, "10.0.0.2", nowhere)


@pytest.mark.parametrize(
    ("granted", "peer", "admitted"),
    [
        ((OWN,), "10.0.0.1", ("10.0.0.1",)),
        ((OWN,), "::ffff:10.0.0.1", ("10.0.0.1",)),
        ((OWN,), "fd00::1", ("fd00::1",)),
        ((OWN,), "10.0.0.9", ()),
        (("10.0.0.0/24",), "192.0.2.1", ("10.0.0.1",)),
        (("10.0.1.0/24",), "10.0.0.1", ()),
        ((OWN, "fd00::/64"), "10.0.0.1", ("10.0.0.1", "fd00::1")),
    ],
)
def test_an_instances_addresses_are_the_connections_own_or_granted(
    granted: tuple[str, ...], peer: str, admitted: tuple[str, ...]
) -> None:
    access = Access.of([replace(GRANT, addresses=granted)])
    if admitted:
        assert access.admit(REVIEWS, peer, nowhere).addresses == admitted
    else:
        with pytest.raises(NotGrantedError, match="--address CIDR"):
            access.admit(REVIEWS, peer, nowhere)


def test_an_agent_on_istiods_own_host_may_be_at_that_hosts_addresses_only() -> None:
    access = Access.of([GRANT])
    assert access.admit(REVIEWS, "127.0.0.1", lambda address: address == "fd00::1").addresses == ("fd00::1",)
    with pytest.raises(NotGrantedError):
        access.admit(REVIEWS, "127.0.0.1", nowhere)


def test_callers_accept_granted_identities_whoever_is_registered() -> None:
    impostor = snapshot(Access.of([GRANT]), REVIEWS, RATINGS)
    assert accepted(impostor) == ("spiffe://cluster.local/ns/default/sa/reviews",)
    assert [one.id for one in impostor.instances] == [REVIEWS.id]
    assert accepted(snapshot(Access.of([GRANT]))) == ("spiffe://cluster.local/ns/default/sa/reviews",)


def test_granted_identities_are_accepted_in_every_trust_domain_of_the_mesh() -> None:
    found = snapshot(Access.of([GRANT]), trustDomain="new.example", trustDomainAliases=["old.example"])
    assert accepted(found) == (
        "spiffe://new.example/ns/default/sa/reviews",
        "spiffe://old.example/ns/default/sa/reviews",
    )


def test_a_revoked_identity_serves_nothing_and_is_accepted_by_nobody() -> None:
    subject = "spiffe://cluster.local/ns/default/sa/reviews"
    access = Access.of([GRANT], [Revocation(subject), Revocation("abc123")])
    found = snapshot(access, REVIEWS)
    assert (accepted(found), found.instances) == ((), ())
    reviews, ratings = SpiffeId.parse(subject), SpiffeId("cluster.local", "default", "ratings")
    assert access.barred(reviews) == f"the identity {subject} was revoked"
    assert access.barred(SpiffeId("old.example", "default", "reviews")) is not None
    assert access.barred(ratings) is None
    assert access.barred(ratings, "abc123") == f"the certificate abc123 of {ratings} was revoked"


def test_an_evicted_instance_is_out_while_others_of_its_service_stay() -> None:
    other = replace(REVIEWS, id="default/reviews-vm3", addresses=("10.0.0.3",))
    access = Access.of([GRANT], evictions=[Eviction(REVIEWS.id, "disk fails")])
    assert [one.id for one in snapshot(access, REVIEWS, other).instances] == [other.id]
    with pytest.raises(NotGrantedError, match=r"was evicted: disk fails .*readmit default/reviews-vm1"):
        access.check_eviction(REVIEWS.id)
    access.check_eviction(other.id)


GROUP = """
apiVersion: networking.istio.io/v1
kind: WorkloadGroup
metadata: {name: reviews-vms, namespace: default}
spec:
  metadata: {labels: {app: reviews, tier: backend}}
  template: {serviceAccount: reviews, ports: {http: 8080}, locality: eu-west/a, weight: 7}
"""


def test_a_workload_group_is_a_grant_and_its_labels_are_its_instances() -> None:
    groups: list[Document[object]] = parse(GROUP).documents
    (grant,) = grants_of(groups)  # type: ignore[arg-type]
    assert (grant.service, grant.service_account, grant.source) == (
        "reviews", "reviews", "WorkloadGroup reviews-vms",
    )  # fmt: skip
    mine = replace(REVIEWS, labels={"tier": "frontend", "version": "v1"}, ports=(Port("http", 9080),))
    admitted = Access.of([grant]).admit(mine, "10.0.0.1", nowhere)
    assert admitted.labels == {"app": "reviews", "tier": "backend", "version": "v1"}
    assert admitted.ports == (Port("http", 9080, "", 8080),)
    assert (admitted.locality, admitted.weight) == ("eu-west/a", 7)
    assert accepted(snapshot(Access(), text=GROUP)) == ("spiffe://cluster.local/ns/default/sa/reviews",)


ENTRY = """
apiVersion: networking.istio.io/v1
kind: ServiceEntry
metadata: {name: payments, namespace: default}
spec:
  hosts: [payments.example.com]
  location: MESH_INTERNAL
  resolution: STATIC
  ports: [{number: 443, name: http}]
  workloadSelector: {labels: {app: reviews}}
"""


def test_a_host_does_not_become_a_service_entrys_endpoint_by_choosing_its_labels() -> None:
    host = "payments.example.com"
    chosen = snapshot(Access.of([GRANT]), REVIEWS, text=ENTRY)
    assert (chosen.by_host[host][0].endpoints, accepted(chosen, host)) == ((), ())
    for access, text in (
        (Access.of([GRANT, Grant("default", host, "reviews")]), ENTRY),
        (Access(), f"{ENTRY}\n---\n{GROUP}"),
    ):
        found = snapshot(access, REVIEWS, text=text)
        assert [one.workload for one in found.by_host[host][0].endpoints] == ["reviews-vm1"]
        assert accepted(found, host) == ("spiffe://cluster.local/ns/default/sa/reviews",)


@pytest.mark.parametrize("filters", [http_filters, tcp_filters])
def test_workloads_deny_the_calls_of_revoked_identities(filters: Callable[..., Iterable[Any]]) -> None:
    stolen = Revocation("spiffe://old.example/ns/prod/sa/ratings")
    mesh = {"trustDomain": "new.example", "trustDomainAliases": ["old.example"]}
    found = snapshot(Access.of([GRANT], [stolen]), REVIEWS, **mesh)
    policies = policies_of(found, "default", {"app": "reviews"})
    (made,) = filters(policies, found.mesh)
    rules = rbac_pb2.RBAC.FromString(made.typed_config.value).rules
    assert rbac_pb2.RBAC().rules.Action.Name(rules.action) == "DENY"
    for domain in ("new.example", "old.example"):
        assert f"spiffe://{domain}/ns/prod/sa/ratings" in str(rules)
    before = snapshot(Access.of([GRANT]), REVIEWS, **mesh)
    assert not list(filters(policies_of(before, "default", {"app": "reviews"}), before.mesh))
