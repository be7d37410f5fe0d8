"""The tasks of Istio's documentation on bookinfo, with its samples unchanged: does each do what the page says?"""

from __future__ import annotations

import pytest

from tests.mesh.bookinfo import add, bookinfo, shares

REVIEWS = "http://reviews:9080/reviews/0"
RATINGS = "http://ratings:9080/ratings/0"
JASON = {"end-user": "jason"}
RULES = "destination-rule-all"


def test_without_rules_calls_go_to_every_version_evenly() -> None:
    found = shares(bookinfo(), REVIEWS)
    assert set(found) == {"reviews-v1", "reviews-v2", "reviews-v3"}
    assert min(found.values()) > 280


def test_all_v1_pins_every_service_to_v1() -> None:
    mesh = bookinfo(RULES, "virtual-service-all-v1")
    assert shares(mesh, REVIEWS, calls=50) == {"reviews-v1": 50}
    assert mesh.call("productpage-v1", "http://details:9080/details/0").workload == "details-v1"
    assert mesh.call("reviews-v2", RATINGS).workload == "ratings-v1"


def test_a_decision_reads_as_the_design_says() -> None:
    mesh = bookinfo(RULES, "virtual-service-all-v1")
    assert str(mesh.call("productpage-v1", REVIEWS)) == (
        "reviews-v1 at 10.0.0.4:9080, no timeout, 3 tries, "
        "mTLS with spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
    )


def test_jason_sees_v2_and_everybody_else_v1() -> None:
    mesh = bookinfo(RULES, "virtual-service-all-v1", "virtual-service-reviews-test-v2")
    assert mesh.call("productpage-v1", REVIEWS, headers=JASON).workload == "reviews-v2"
    for headers in ({}, {"end-user": "Jason"}, {"end-user": "jason2"}, {"end_user": "jason"}):
        assert mesh.call("productpage-v1", REVIEWS, headers=headers).workload == "reviews-v1", headers


def test_a_header_sent_twice_is_not_jason() -> None:
    mesh = bookinfo(RULES, "virtual-service-reviews-test-v2")
    decision = mesh.call("productpage-v1", REVIEWS, headers={"end-user": "jason,jason"})
    assert decision.workload == "reviews-v1"


@pytest.mark.parametrize(
    ("sample", "expected"),
    [
        ("virtual-service-reviews-90-10", {"reviews-v1": 900, "reviews-v2": 100}),
        ("virtual-service-reviews-80-20", {"reviews-v1": 800, "reviews-v2": 200}),
        ("virtual-service-reviews-50-v3", {"reviews-v1": 500, "reviews-v3": 500}),
        ("virtual-service-reviews-v2-v3", {"reviews-v2": 500, "reviews-v3": 500}),
    ],
)
def test_a_split_shares_a_thousand_calls_as_weighted(sample: str, expected: dict[str, int]) -> None:
    found = shares(bookinfo(RULES, sample), REVIEWS)
    assert set(found) == set(expected)
    for workload, count in expected.items():
        assert abs(found[workload] - count) < 50, found


def test_the_last_step_of_traffic_shifting_sends_everything_to_v3() -> None:
    mesh = bookinfo(RULES, "virtual-service-reviews-50-v3")
    mesh.sample("virtual-service-reviews-v3")
    assert shares(mesh, REVIEWS, calls=100) == {"reviews-v3": 100}


def test_jason_gets_v2_and_everybody_else_v3() -> None:
    mesh = bookinfo(RULES, "virtual-service-reviews-jason-v2-v3")
    assert mesh.call("productpage-v1", REVIEWS, headers=JASON).workload == "reviews-v2"
    assert mesh.call("productpage-v1", REVIEWS).workload == "reviews-v3"


def test_a_delay_of_seven_seconds_hits_jason_alone() -> None:
    mesh = bookinfo(RULES, "virtual-service-ratings-test-delay")
    slow = mesh.call("reviews-v2", RATINGS, headers=JASON)
    assert (slow.workload, slow.seconds, slow.outbound.flags) == ("ratings-v1", 7.0, ("DI",))
    assert mesh.call("reviews-v2", RATINGS).seconds == 0.0


def test_an_abort_hits_jason_alone() -> None:
    mesh = bookinfo(RULES, "virtual-service-ratings-test-abort")
    failed = mesh.call("reviews-v2", RATINGS, headers=JASON)
    assert (failed.status, failed.body, failed.workload) == (500, b"fault filter abort", "")
    assert failed.outbound.flags == ("FI",)
    assert mesh.workloads["ratings-v1"].received == []
    assert mesh.call("reviews-v2", RATINGS).status == 200


def test_details_fails_with_555() -> None:
    mesh = bookinfo("fault-injection-details-v1")
    assert mesh.call("productpage-v1", "http://details:9080/details/0").status == 555


def test_the_request_timeout_task_answers_504_after_half_a_second() -> None:
    # https://istio.io/latest/docs/tasks/traffic-management/request-timeouts/
    mesh = bookinfo(RULES, "virtual-service-all-v1")
    mesh.apply("""
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews, subset: v2}}]
    timeout: 0.5s
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: ratings}
spec:
  hosts: [ratings]
  http:
  - fault: {delay: {percentage: {value: 100}, fixedDelay: 2s}}
    route: [{destination: {host: ratings, subset: v1}}]
""")
    mesh.workloads["reviews-v2"].takes = 2.0  # it waits for ratings
    late = mesh.call("productpage-v1", REVIEWS)
    assert (late.status, late.seconds, late.outbound.flags) == (504, 0.5, ("UT",))
    assert late.body == b"upstream request timeout"
    assert mesh.call("reviews-v2", RATINGS).seconds == 2.0


def test_details_moves_to_its_second_version() -> None:
    mesh = bookinfo(RULES, "virtual-service-details-v2")
    nobody = mesh.call("productpage-v1", "http://details:9080/details/0")
    assert (nobody.status, nobody.body, nobody.outbound.flags) == (503, b"no healthy upstream", ("UH",))
    add(mesh, "details", "v2")
    assert mesh.call("productpage-v1", "http://details:9080/details/0").workload == "details-v2"


@pytest.mark.parametrize(
    ("sample", "version"),
    [
        ("virtual-service-ratings-db", "v2"),
        ("virtual-service-ratings-mysql", "v2-mysql"),
        ("virtual-service-ratings-mysql-vm", "v2-mysql-vm"),
    ],
)
def test_ratings_from_a_database_are_shown_by_v3(sample: str, version: str) -> None:
    mesh = bookinfo(RULES, sample)
    add(mesh, "ratings", version)
    assert mesh.call("productpage-v1", REVIEWS).workload == "reviews-v3"
    assert mesh.call("reviews-v3", RATINGS).workload == f"ratings-{version}"


def test_rules_for_all_mtls_reach_only_servers_with_a_certificate() -> None:
    mesh = bookinfo("destination-rule-all-mtls", "virtual-service-all-v1")
    decision = mesh.call("productpage-v1", REVIEWS)
    assert decision.workload == "reviews-v1"
    assert decision.mtls
    assert decision.outbound.upstream_tls is not None
    assert decision.outbound.upstream_tls.max_version == "TLSv1.3"


def test_a_gateways_rules_do_not_reach_the_mesh() -> None:
    # `route` claims the host * for its gateway; calls inside the mesh are none of its business.
    mesh = bookinfo(RULES, "route")
    assert mesh.call("productpage-v1", "http://details:9080/details/0").workload == "details-v1"


def test_google_apis_are_called_by_tls_that_the_proxy_begins() -> None:
    mesh = bookinfo("egress-rule-google-apis")
    decision = mesh.call("productpage-v1", "http://www.googleapis.com/discovery")
    assert decision.status == 200
    assert decision.outbound.cluster == "outbound|443||www.googleapis.com"
    tls = decision.outbound.upstream_tls
    assert tls is not None
    assert tls.sni == "www.googleapis.com"
    assert not tls.certificates
