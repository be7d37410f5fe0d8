"""Calls acted out on both sides: retries, time-outs, ejection, and what the application receives."""

from __future__ import annotations

from collections import Counter

import pytest

from registry.model import Port
from tests.mesh.bookinfo import bookinfo, shares

REVIEWS = "http://reviews:9080/reviews/0"
NETWORKING = "apiVersion: networking.istio.io/v1\n"


def virtual_service(http: str, host: str = "reviews") -> str:
    """A VirtualService with these rules."""
    return f"{NETWORKING}kind: VirtualService\nmetadata: {{name: {host}}}\nspec: {{hosts: [{host}], http: {http}}}"


def destination_rule(spec: str, host: str = "reviews") -> str:
    """A DestinationRule."""
    return f"{NETWORKING}kind: DestinationRule\nmetadata: {{name: {host}}}\nspec: {{host: {host}, {spec}}}"


# Istio's defaults


def test_a_host_that_refuses_connections_is_tried_once_and_others_after_it() -> None:
    mesh = bookinfo()
    mesh.workloads["reviews-v1"].down = mesh.workloads["reviews-v2"].down = True
    tried: Counter[int] = Counter()
    for number in range(60):
        decision = mesh.call("productpage-v1", REVIEWS, random=number * 0x9E3779B97F4A7C15 % 2**64)
        endpoints = decision.outbound.endpoints_tried
        assert len(set(endpoints)) == len(endpoints), "a host that just failed is not asked again"
        assert (decision.status, decision.workload) == (200, "reviews-v3")
        tried[len(endpoints)] += 1
    assert set(tried) <= {1, 2, 3}
    assert tried[2]


def test_a_503_is_retried_twice_and_then_told_to_the_caller() -> None:
    mesh = bookinfo()
    for version in ("v1", "v2", "v3"):
        mesh.workloads[f"reviews-{version}"].status = 503
    decision = mesh.call("productpage-v1", REVIEWS)
    assert decision.status == 503
    assert decision.outbound.attempts == 3
    assert "URX" in decision.outbound.flags
    assert sum(len(one.received) for one in mesh.workloads.values()) == 3
    assert decision.got("x-envoy-attempt-count") == "3"


@pytest.mark.parametrize("status", [500, 502, 504, 404, 429])
def test_other_statuses_are_the_applications_own(status: int) -> None:
    mesh = bookinfo()
    mesh.workloads["details-v1"].status = status
    decision = mesh.call("productpage-v1", "http://details:9080/")
    assert (decision.status, decision.outbound.attempts) == (status, 1)


def test_there_is_no_timeout_unless_a_rule_says_so() -> None:
    mesh = bookinfo()
    mesh.workloads["details-v1"].takes = 3000.0
    assert mesh.call("productpage-v1", "http://details:9080/").seconds == 3000.0


# What rules change


def test_attempts_zero_switches_retries_off() -> None:
    mesh = bookinfo()
    mesh.apply(
        virtual_service("[{retries: {attempts: 0}, route: [{destination: {host: details}}]}]", "details")
    )
    mesh.workloads["details-v1"].status = 503
    assert mesh.call("productpage-v1", "http://details:9080/").outbound.attempts == 1


def test_retry_on_names_statuses() -> None:
    mesh = bookinfo()
    rule = "[{retries: {attempts: 1, retryOn: '500'}, route: [{destination: {host: details}}]}]"
    mesh.apply(virtual_service(rule, "details"))
    details = mesh.workloads["details-v1"]
    details.status = 500
    assert mesh.call("productpage-v1", "http://details:9080/").outbound.attempts == 2
    details.status = 503
    assert mesh.call("productpage-v1", "http://details:9080/").outbound.attempts == 1


def test_each_try_has_its_own_time_within_the_whole() -> None:
    mesh = bookinfo()
    rule = (
        "[{timeout: 5s, retries: {attempts: 2, perTryTimeout: 2s, retryOn: 'reset,5xx'}, "
        "route: [{destination: {host: details}}]}]"
    )
    mesh.apply(virtual_service(rule, "details"))
    mesh.workloads["details-v1"].takes = 60.0
    decision = mesh.call("productpage-v1", "http://details:9080/")
    assert (decision.status, decision.seconds) == (504, 5.0)
    assert decision.outbound.attempts == 3
    assert (decision.outbound.timeout, decision.outbound.per_try_timeout) == (5.0, 2.0)


def test_the_caller_may_not_set_envoys_timeouts_for_itself() -> None:
    # A sidecar does not trust its caller's x-envoy-* fields (use_remote_address is off, no x-forwarded-for).
    mesh = bookinfo()
    mesh.workloads["details-v1"].takes = 2.0
    headers = {"x-envoy-upstream-rq-timeout-ms": "1", "x-envoy-max-retries": "9"}
    assert mesh.call("productpage-v1", "http://details:9080/", headers=headers).status == 200


def test_five_errors_in_a_row_eject_an_endpoint() -> None:
    mesh = bookinfo()
    mesh.apply(
        destination_rule(
            "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}, "
            "outlierDetection: {consecutive5xxErrors: 5, baseEjectionTime: 30s, maxEjectionPercent: 100}}"
        )
    )
    mesh.workloads["reviews-v1"].status = 500
    answers = [mesh.call("productpage-v1", REVIEWS).status for _ in range(40)]
    assert answers.count(500) == 5
    assert answers[20:] == [200] * 20


def test_a_cookie_keeps_a_caller_on_one_endpoint() -> None:
    mesh = bookinfo()
    mesh.apply(destination_rule("trafficPolicy: {loadBalancer: {consistentHash: {httpHeaderName: x-user}}}"))
    for user in ("anna", "bert", "carl", "dora"):
        found = {
            mesh.call("productpage-v1", REVIEWS, headers={"x-user": user}, random=number * 7919).workload
            for number in range(20)
        }
        assert len(found) == 1, user


def test_weights_of_instances_count() -> None:
    mesh = bookinfo()
    mesh.workloads["reviews-v1"].weight = 8
    mesh.changed()
    found = shares(mesh, REVIEWS, calls=500)
    assert found["reviews-v1"] > 3 * found["reviews-v2"], found


def test_an_unhealthy_instance_is_not_called() -> None:
    mesh = bookinfo()
    mesh.workloads["reviews-v2"].healthy = False
    mesh.changed()
    assert set(shares(mesh, REVIEWS, calls=60)) == {"reviews-v1", "reviews-v3"}


def test_requests_with_a_body_arrive_whole() -> None:
    mesh = bookinfo()
    decision = mesh.call("productpage-v1", REVIEWS, method="POST", body=b"x" * 5000)
    assert decision.received is not None
    assert (decision.received.method, decision.received.body) == (b"POST", b"x" * 5000)


# Rewrites and redirects as the caller and the application see them


def test_the_application_receives_the_rewritten_request() -> None:
    mesh = bookinfo()
    mesh.apply(
        virtual_service(
            "[{match: [{uri: {prefix: /old}}], rewrite: {uri: /new, authority: inner.example}, "
            "headers: {request: {set: {x-a: '1'}, remove: [x-b]}, response: {set: {x-c: '3'}}}, "
            "route: [{destination: {host: details}}]}]",
            "details",
        )
    )
    decision = mesh.call("productpage-v1", "http://details:9080/old/1?q=2", headers={"x-b": "2"})
    assert decision.received is not None
    assert (decision.received.path, decision.received.authority) == (b"/new/1?q=2", b"inner.example")
    assert (decision.got("x-a"), decision.got("x-b"), decision.headers["x-c"]) == ("1", None, "3")


@pytest.mark.parametrize(
    ("redirect", "location", "status"),
    [
        ("{uri: /v2, authority: other.example}", "http://other.example/v2?b=c", 301),
        ("{scheme: https, redirectCode: 308}", "https://details:9080/a?b=c", 308),
        ("{authority: o.example, port: 8443, scheme: https}", "https://o.example:8443/a?b=c", 301),
        ("{scheme: https, derivePort: FROM_PROTOCOL_DEFAULT}", "https://details:9080/a?b=c", 301),
    ],
)
def test_a_redirect_tells_the_caller_where_to_go(redirect: str, location: str, status: int) -> None:
    mesh = bookinfo()
    mesh.apply(virtual_service(f"[{{redirect: {redirect}}}]", "details"))
    decision = mesh.call("productpage-v1", "http://details:9080/a?b=c")
    assert (decision.status, decision.headers["location"], decision.workload) == (status, location, "")


# Who the application is told that it is called by


def test_the_application_learns_the_callers_identity() -> None:
    told = bookinfo().call("productpage-v1", "http://details:9080/").got("x-forwarded-client-cert")
    assert told is not None
    assert "URI=spiffe://cluster.local/ns/default/sa/bookinfo-productpage" in told
    assert "By=spiffe://cluster.local/ns/default/sa/bookinfo-details" in told


def test_a_caller_cannot_make_its_identity_up() -> None:
    mesh = bookinfo()
    spoofed = {"x-forwarded-client-cert": "URI=spiffe://cluster.local/ns/default/sa/admin"}
    plain = mesh.knock("http://10.0.0.2:9080/", headers=spoofed)
    assert plain.workload == "details-v1"
    assert plain.got("x-forwarded-client-cert") is None
    own = mesh.call("productpage-v1", "http://details:9080/", headers=spoofed).got("x-forwarded-client-cert")
    assert own is not None
    assert "sa/admin" not in own


@pytest.mark.parametrize(
    "host",
    [
        "details",
        "DETAILS",
        "details:9080",
        "details.default",
        "Details.Default.svc",
        "details.default.svc.cluster.local:9080",
    ],
)
def test_a_service_is_known_by_every_form_of_its_name(host: str) -> None:
    decision = bookinfo().call("productpage-v1", "http://details:9080/", host=host)
    assert decision.outbound.virtual_host == "details.default.svc.cluster.local:9080"


def test_a_service_is_known_by_its_address() -> None:
    mesh = bookinfo("virtual-service-all-v1", "destination-rule-all")
    address = mesh.resolve("productpage-v1", "details")
    assert address.startswith("240.240.")
    assert mesh.call("productpage-v1", f"http://{address}:9080/").workload == "details-v1"


def test_the_host_field_decides_and_not_the_address() -> None:
    # As in Istio: HTTP is routed by its authority, whatever name was resolved.
    mesh = bookinfo()
    assert mesh.call("productpage-v1", "http://ratings:9080/", host="details:9080").workload == "details-v1"


def test_a_pod_address_is_reached_without_the_mesh_between() -> None:
    # Calling an instance by its own address matches no virtual host: passed through, as in Istio.
    mesh = bookinfo()
    decision = mesh.call("productpage-v1", "http://10.0.0.5:9080/")
    assert (decision.workload, decision.outbound.cluster) == ("reviews-v2", "PassthroughCluster")
    assert not decision.mtls


def test_a_host_may_call_its_own_service() -> None:
    mesh = bookinfo()
    decision = mesh.call("details-v1", "http://details:9080/")
    assert (decision.workload, decision.mtls) == ("details-v1", True)


def test_a_service_without_instances_answers_503() -> None:
    mesh = bookinfo()
    mesh.service("empty", ports=(Port("http", 9080),))
    decision = mesh.call("productpage-v1", "http://empty:9080/")
    assert (decision.status, decision.outbound.flags) == (503, ("UH",))


@pytest.mark.parametrize("address", ["10.0.1.9", "fd00::9"])
def test_a_host_is_told_addresses_of_its_own_families_only(address: str) -> None:
    mesh = bookinfo()
    mesh.add("lone-1", service="lone", address=address)
    mesh.workloads["details-v1"].address = "fd00::2" if ":" in address else "10.0.0.2"
    mesh.changed()
    resolved = mesh.resolve("lone-1", "details")
    assert resolved.startswith("2001:2::" if ":" in address else "240.240.")
    decision = mesh.call("lone-1", "http://details:9080/")
    assert (decision.workload, decision.mtls) == ("details-v1", True)
    assert mesh.knock(f"http://{'[fd00::2]' if ':' in address else '10.0.0.2'}:9080/").status == 200
