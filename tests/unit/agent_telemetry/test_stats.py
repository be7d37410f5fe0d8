"""Statistics: what is counted in one process is read in another, under Envoy's and Istio's names."""

from __future__ import annotations

import json
import os

import pytest
from prometheus_client.parser import text_string_to_metric_families

from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, PeerIdentity, RequestContext
from agent.table.cluster import Cluster
from agent.table.listener import Address, Direction, Listener
from agent.telemetry.labels import passes_through
from agent.telemetry.outcome import Outcome
from agent.telemetry.prometheus import exposition, stats_json, stats_text
from agent.telemetry.reading import Statistics, Workers
from agent.telemetry.series import Recorder
from agent.telemetry.stats import StatsRegion

NODE = {
    "NAMESPACE": "default",
    "WORKLOAD_NAME": "productpage-vm1",
    "LABELS": {"app": "productpage", "version": "v1"},
    "CLUSTER_ID": "vms",
}
REVIEWS = Cluster(
    name="outbound|9080|v2|reviews.default.svc.cluster.local",
    discovery="eds",
    metadata={
        "istio": {
            "services": [
                {"host": "reviews.default.svc.cluster.local", "name": "reviews", "namespace": "default"}
            ]
        }
    },
)
ENDPOINT = {"istio": {"workload": "reviews-vm2;default;reviews;v2;vms"}}
OUTBOUND = Listener(name="virtualOutbound", address=Address("0.0.0.0", 15001), direction=Direction.OUTBOUND)
INBOUND = Listener(name="virtualInbound", address=Address("0.0.0.0", 15006), direction=Direction.INBOUND)


def published(recorder: Recorder) -> int:
    """A descriptor of what readers see."""
    recorder.region.publish()
    return os.dup(recorder.region.fd)


def finished(listener: Listener = OUTBOUND, status: int = 200, milliseconds: float = 3.0) -> Outcome:
    outcome = Outcome()
    outcome.connection = ConnectionInfo(id=1, remote=("10.0.0.1", 5), local=("10.0.0.2", 80))
    outcome.request = RequestContext(b"GET", b"/", b"reviews", Headers(), outcome.connection)
    outcome.listener = listener
    outcome.stat_prefix = "outbound_0.0.0.0_9080"
    outcome.cluster, outcome.charged = REVIEWS, True
    outcome.upstream_metadata = ENDPOINT
    outcome.upstream_address = "10.0.0.3:9080"
    outcome.upstream_peer = PeerIdentity(uri_sans=("spiffe://cluster.local/ns/default/sa/reviews",))
    outcome.upstream_uris = outcome.upstream_peer.uri_sans
    outcome.response_code = status
    outcome.started_at, outcome.finished_at = 50.0, 50.0 + milliseconds / 1e3
    outcome.bytes_sent = 379
    return outcome


def read(*regions: StatsRegion) -> Statistics:
    total = Statistics()
    for region in regions:
        total.read(region)
    return total


def by_labels(statistics: Statistics, name: str) -> dict[frozenset[tuple[str, str]], int]:
    return {
        frozenset(labels): value for (found, labels), value in statistics.counters.items() if found == name
    }


def test_a_request_is_counted_with_istios_labels() -> None:
    recorder = Recorder(node_metadata=NODE, principal="spiffe://cluster.local/ns/default/sa/productpage")
    for _ in range(3):
        recorder.record(finished())
    ((labels, count),) = by_labels(read(recorder.region), "istio_requests_total").items()
    assert count == 3
    assert dict(labels) == {
        "reporter": "source",
        "source_workload": "productpage-vm1",
        "source_workload_namespace": "default",
        "source_principal": "spiffe://cluster.local/ns/default/sa/productpage",
        "source_app": "productpage",
        "source_version": "v1",
        "source_cluster": "vms",
        "source_canonical_service": "productpage",
        "source_canonical_revision": "v1",
        "destination_workload": "reviews-vm2",
        "destination_workload_namespace": "default",
        "destination_principal": "spiffe://cluster.local/ns/default/sa/reviews",
        "destination_app": "reviews",
        "destination_version": "v2",
        "destination_cluster": "vms",
        "destination_canonical_service": "reviews",
        "destination_canonical_revision": "v2",
        "destination_service": "reviews.default.svc.cluster.local",
        "destination_service_name": "reviews",
        "destination_service_namespace": "default",
        "request_protocol": "http",
        "response_code": "200",
        "grpc_response_status": "",
        "response_flags": "-",
        "connection_security_policy": "unknown",
    }


def test_the_receiving_side_names_the_caller_by_its_certificate() -> None:
    recorder = Recorder(node_metadata=NODE)
    outcome = finished(INBOUND)
    outcome.connection = ConnectionInfo(
        id=1,
        remote=("10.0.0.1", 5),
        local=("10.0.0.2", 80),
        peer=PeerIdentity(uri_sans=("spiffe://cluster.local/ns/shop/sa/cart",)),
    )
    outcome.peer_uris = outcome.connection.peer.uri_sans
    recorder.record(outcome)
    ((found, _),) = by_labels(read(recorder.region), "istio_requests_total").items()
    labels = dict(found)
    assert labels["reporter"] == "destination"
    assert labels["source_principal"] == "spiffe://cluster.local/ns/shop/sa/cart"
    assert labels["source_workload_namespace"] == "shop"
    assert labels["source_workload"] == "unknown"
    assert labels["destination_workload"] == "productpage-vm1"
    assert labels["connection_security_policy"] == "mutual_tls"


def passing(authority: str) -> Outcome:
    """A request to a place that is no service of the mesh."""
    outcome = finished()
    outcome.cluster = Cluster("PassthroughCluster", "original_dst")
    outcome.upstream_metadata = {}
    outcome.request = RequestContext(
        b"GET", b"/", authority.encode(), Headers(), ConnectionInfo(1, ("127.0.0.1", 1), ("127.0.0.1", 2))
    )
    outcome.plain = not passes_through(outcome)
    return outcome


def test_what_passes_through_is_counted_under_the_name_that_each_request_says() -> None:
    recorder = Recorder(node_metadata=NODE)
    for authority in ("one.example", "two.example", "two.example"):
        recorder.record(passing(authority))
    counted = by_labels(read(recorder.region), "istio_requests_total")
    assert {dict(labels)["destination_service"]: value for labels, value in counted.items()} == {
        "one.example": 1,
        "two.example": 2,
    }


def test_names_that_clients_choose_do_not_crowd_out_services() -> None:
    recorder = Recorder(node_metadata=NODE, max_series=300)
    for number in range(1000):
        recorder.record(passing(f"{number}.example"))
    recorder.record(finished())
    counted = by_labels(read(recorder.region), "istio_requests_total")
    services = {dict(labels)["destination_service"]: value for labels, value in counted.items()}
    assert services["reviews.default.svc.cluster.local"] == 1
    assert services["overflow"] == 1000 - (len(services) - 2)


def test_a_principal_that_nobody_has_verified_is_unknown() -> None:
    recorder = Recorder(node_metadata=NODE)
    outcome = finished()
    outcome.upstream_peer = PeerIdentity(uri_sans=("spiffe://cluster.local/ns/x/sa/y",), verified=False)
    recorder.record(outcome)
    ((found, _),) = by_labels(read(recorder.region), "istio_requests_total").items()
    assert dict(found)["destination_principal"] == "unknown"


def test_codes_flags_and_peers_are_told_apart() -> None:
    recorder = Recorder(node_metadata=NODE)
    recorder.record(finished(status=200))
    failed = finished(status=503)
    failed.flags = ["UF", "URX"]
    recorder.record(failed)
    counted = by_labels(read(recorder.region), "istio_requests_total")
    assert {dict(labels)["response_code"]: dict(labels)["response_flags"] for labels in counted} == {
        "200": "-",
        "503": "UF,URX",
    }


def test_one_request_shows_in_envoys_cluster_and_http_statistics_too() -> None:
    recorder = Recorder()
    recorder.record(finished(status=200))
    recorder.record(finished(status=503))
    counters = read(recorder.region).counters
    cluster = f"cluster.{REVIEWS.name}"
    assert counters[f"{cluster}.upstream_rq_completed", ()] == 2
    assert counters[f"{cluster}.upstream_rq_5xx", ()] == 1
    assert counters[f"{cluster}.upstream_rq_503", ()] == 1
    assert counters["http.outbound_0.0.0.0_9080.downstream_rq_2xx", ()] == 1


def test_without_a_mesh_there_are_no_istio_metrics() -> None:
    recorder = Recorder()
    recorder.record(finished(Listener(name="l", address=Address("127.0.0.1", 1))))
    assert not by_labels(read(recorder.region), "istio_requests_total")


def test_histograms_have_istios_buckets_and_add_up_over_workers() -> None:
    workers = Workers()
    for milliseconds in (0.4, 7.0, 7.5):
        recorder = Recorder(node_metadata=NODE)
        recorder.record(finished(milliseconds=milliseconds))
        workers.add(StatsRegion.attach(published(recorder)))
    text = exposition(workers.read())
    family = next(
        family
        for family in text_string_to_metric_families(text)
        if family.name == "istio_request_duration_milliseconds"
    )
    buckets = {
        sample.labels["le"]: sample.value for sample in family.samples if sample.name.endswith("_bucket")
    }
    assert (buckets["0.5"], buckets["5"], buckets["10"], buckets["+Inf"]) == (1, 1, 3, 3)
    total = next(sample.value for sample in family.samples if sample.name.endswith("_sum"))
    assert total == pytest.approx(14.9, abs=0.01)


def test_counters_of_a_worker_that_ended_stay_and_its_gauges_go() -> None:
    workers = Workers()
    recorder = Recorder(node_metadata=NODE)
    stats = recorder.cluster("web")
    recorder.slots[stats.upstream_cx_total] += 5
    recorder.slots[stats.upstream_cx_active] += 2
    recorder.record(finished())
    number = workers.add(StatsRegion.attach(published(recorder)))
    assert workers.read().gauges["cluster.web.upstream_cx_active", ()] == 2
    workers.retire(number)
    after = workers.read()
    assert after.counters["cluster.web.upstream_cx_total", ()] == 5
    assert ("cluster.web.upstream_cx_active", ()) not in after.gauges
    assert sum(by_labels(after, "istio_requests_total").values()) == 1
    assert workers.read().counters == after.counters


def test_the_number_of_series_is_bounded() -> None:
    recorder = Recorder(node_metadata=NODE, max_series=10)
    for status in range(200, 300):
        recorder.record(finished(status=status))
    counted = by_labels(read(recorder.region), "istio_requests_total")
    assert len(counted) == 11
    assert sum(counted.values()) == 100
    overflow = {dict(labels)["response_code"]: value for labels, value in counted.items()}["overflow"]
    assert overflow == 90


def test_a_full_region_never_stops_the_writer() -> None:
    region = StatsRegion.create(slots=1024, index_bytes=8192)
    recorder = Recorder(region)
    for number in range(2000):
        stats = recorder.cluster(f"cluster-{number}")
        recorder.slots[stats.ssl_fail_verify_san] += 1
        recorder.record(finished(status=100 + number % 500))
    assert region.dropped > 0
    failures = [
        value for (name, _), value in read(region).counters.items() if name.endswith("ssl.fail_verify_san")
    ]
    assert failures
    assert set(failures) == {1}


def test_tcp_connections_are_counted_by_label() -> None:
    recorder = Recorder(node_metadata=NODE)
    outcome = finished()
    outcome.request = None
    series = recorder.record_tcp_opened(outcome)
    recorder.record_tcp_bytes(series, 10, 2000)
    recorder.record_tcp_bytes(series, 1, 0)
    recorder.record_tcp_closed(series)
    statistics = read(recorder.region)
    for name, value in (
        ("istio_tcp_connections_opened_total", 1),
        ("istio_tcp_connections_closed_total", 1),
        ("istio_tcp_received_bytes_total", 11),
        ("istio_tcp_sent_bytes_total", 2000),
    ):
        assert list(by_labels(statistics, name).values()) == [value]


def test_a_reader_cannot_write_and_a_stranger_is_no_region() -> None:
    recorder = Recorder()
    reader = StatsRegion.attach(published(recorder))
    assert reader.pid == os.getpid()
    with pytest.raises(ValueError, match="only the process"):
        reader.counter("x")
    with pytest.raises(TypeError):
        reader.slots[0] = 1
    for name, size in (("empty", 0), ("zeros", 1 << 20)):
        stranger = os.memfd_create(name)
        os.ftruncate(stranger, size)
        with pytest.raises(ValueError, match="not a statistics region"):
            StatsRegion.attach(stranger)
    with pytest.raises(ValueError, match="not a statistics region"):
        StatsRegion.attach(os.open("/dev/null", os.O_RDONLY))


def test_a_region_cannot_be_shrunk_under_its_readers() -> None:
    recorder = Recorder()
    with pytest.raises(PermissionError):
        os.ftruncate(recorder.region.fd, 4096)


def test_what_one_worker_garbles_costs_nobody_elses_numbers(caplog: pytest.LogCaptureFixture) -> None:
    workers = Workers()
    for garbage in (None, ("r", "{}"), ("s", "nothing.like.it"), ("t", "[")):
        recorder = Recorder(node_metadata=NODE)
        recorder.record(finished())
        if garbage is not None:
            recorder.region.block(*garbage)
        number = workers.add(StatsRegion.attach(published(recorder)))
    workers.retire(number)
    assert sum(by_labels(workers.read(), "istio_requests_total").values()) >= 1
    assert "are left out" in caplog.text
    assert "are lost" in caplog.text


def test_reset_zeroes_counters_and_keeps_gauges() -> None:
    recorder = Recorder()
    stats = recorder.cluster("web")
    recorder.slots[stats.upstream_cx_total] += 5
    recorder.slots[stats.upstream_cx_active] += 2
    recorder.record(finished())
    recorder.region.reset_counters()
    statistics = read(recorder.region)
    assert statistics.gauges["cluster.web.upstream_cx_active", ()] == 2
    assert set(statistics.counters.values()) == {0}


def test_envoys_names_become_envoys_tags() -> None:
    recorder = Recorder()
    stats = recorder.cluster("outbound|80||web.local")
    recorder.slots[stats.outlier_detection_ejections_active] += 1
    recorder.slots[stats.circuit_breakers_default_rq_open] += 1
    recorder.slots[recorder.http("ingress").downstream_rq_total] += 4
    recorder.slots[recorder.listener("0.0.0.0_80").downstream_cx_total] += 4
    recorder.record(finished(status=503))
    lines = exposition(read(recorder.region), used_only=True).splitlines()
    assert (
        'envoy_cluster_outlier_detection_ejections_active{envoy_cluster_name="outbound|80||web.local"} 1'
        in lines
    )
    assert (
        'envoy_cluster_circuit_breakers_default_rq_open{envoy_cluster_name="outbound|80||web.local"} 1'
        in lines
    )
    assert 'envoy_http_downstream_rq_total{envoy_http_conn_manager_prefix="ingress"} 4' in lines
    assert 'envoy_listener_downstream_cx_total{envoy_listener_address="0.0.0.0_80"} 4' in lines
    assert (
        'envoy_cluster_upstream_rq_xx{envoy_response_code_class="5",'
        f'envoy_cluster_name="{REVIEWS.name}"}} 1' in lines
    )
    assert "# TYPE envoy_cluster_upstream_rq_time histogram" in lines


def test_envoys_stats_page_lists_names_and_values() -> None:
    recorder = Recorder()
    recorder.slots[recorder.http("ingress").downstream_rq_total] += 4
    recorder.record(finished())
    statistics = read(recorder.region)
    text = stats_text(statistics, lambda name: "downstream_rq_total" in name)
    assert "http.ingress.downstream_rq_total: 4\n" in text
    used = stats_text(statistics, lambda name: name.startswith("http."), used_only=True)
    assert "downstream_cx_total" not in used
    assert "http.outbound_0.0.0.0_9080.downstream_rq_time: P0(" in used
    printed = json.loads(stats_json(statistics, lambda _: True))["stats"]
    assert {"name": "http.ingress.downstream_rq_total", "value": 4} in printed
