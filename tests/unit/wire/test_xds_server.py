"""The server's sessions as transcripts: what a client says, what it is sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.service.discovery.v3 import discovery_pb2

from wire.xds import (
    CLUSTER,
    ENDPOINT,
    HEALTH,
    LISTENER,
    ROUTE,
    SECRET,
    DeltaSession,
    EncodedResource,
    Kind,
    SotwSession,
    XdsError,
    encode,
    health_request,
    in_push_order,
)

_CLASSES: Mapping[str, Any] = {
    CLUSTER: cluster_pb2.Cluster,
    ENDPOINT: endpoint_pb2.ClusterLoadAssignment,
    LISTENER: listener_pb2.Listener,
    ROUTE: route_pb2.RouteConfiguration,
}


def resource(type_url: str, name: str, step: int = 0, *, wildcard: bool = True) -> EncodedResource:
    """A resource whose content differs from step to step."""
    cls = _CLASSES[type_url]
    if type_url == CLUSTER:
        message = cls(name=name, alt_stat_name=str(step))
    elif type_url == ENDPOINT:
        message = cls(cluster_name=name, policy={"overprovisioning_factor": {"value": 100 + step}})
    elif type_url == LISTENER:
        message = cls(name=name, stat_prefix=str(step))
    else:
        message = cls(name=name, most_specific_header_mutations_wins=bool(step))
    return encode(name, message, wildcard=wildcard)


def content(type_url: str, *names: str, step: int = 0) -> dict[str, EncodedResource]:
    return {name: resource(type_url, name, step) for name in names}


class DeltaPeer:
    """A client of a DeltaSession that answers as told."""

    def __init__(self, session: DeltaSession) -> None:
        self.session = session

    def ask(
        self,
        type_url: str,
        subscribe: list[str] | None = None,
        unsubscribe: list[str] | None = None,
        have: Mapping[str, str] | None = None,
    ) -> Kind:
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=type_url,
            resource_names_subscribe=subscribe or [],
            resource_names_unsubscribe=unsubscribe or [],
            initial_resource_versions=have or {},
        )
        return self.session.receive(request.SerializeToString()).kind

    def answer(self, response: Any, refuse: str = "") -> Kind:
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=response.type_url, response_nonce=response.nonce
        )
        if refuse:
            request.error_detail.code = 13
            request.error_detail.message = refuse
        return self.session.receive(request.SerializeToString()).kind

    def next(self) -> Any:
        data = self.session.next_response()
        return None if data is None else discovery_pb2.DeltaDiscoveryResponse.FromString(data)

    def settle(self) -> list[tuple[str, list[str], list[str]]]:
        """Acknowledge everything until nothing more comes; what came, in order."""
        seen = []
        while (response := self.next()) is not None:
            seen.append(
                (response.type_url, [r.name for r in response.resources], list(response.removed_resources))
            )
            assert self.answer(response) is Kind.ACK
        return seen


def test_delta_a_wildcard_gets_everything_once_then_only_what_changes() -> None:
    peer = DeltaPeer(DeltaSession())
    peer.session.update({CLUSTER: content(CLUSTER, "a", "b")})
    assert peer.ask(CLUSTER) is Kind.FIRST
    assert peer.settle() == [(CLUSTER, ["a", "b"], [])]
    peer.session.update({CLUSTER: content(CLUSTER, "a", "b")})
    assert peer.settle() == []
    peer.session.update({CLUSTER: content(CLUSTER, "b", "c") | content(CLUSTER, "b", step=1)})
    assert peer.settle() == [(CLUSTER, ["b", "c"], ["a"])]


def test_delta_resources_arrive_whole_with_name_version_and_body() -> None:
    peer = DeltaPeer(DeltaSession(control_plane="istiod-1"))
    wanted = resource(CLUSTER, "a", 7)
    peer.session.update({CLUSTER: {"a": wanted}})
    peer.ask(CLUSTER)
    response = peer.next()
    (got,) = response.resources
    assert (got.name, got.version) == ("a", wanted.version)
    cluster = cluster_pb2.Cluster()
    assert got.resource.Unpack(cluster)
    assert (cluster.name, cluster.alt_stat_name) == ("a", "7")
    assert response.control_plane.identifier == "istiod-1"


def test_delta_while_a_response_is_outstanding_only_the_latest_content_waits() -> None:
    peer = DeltaPeer(DeltaSession())
    peer.session.update({CLUSTER: content(CLUSTER, "a")})
    peer.ask(CLUSTER)
    first = peer.next()
    for step in range(1, 20):
        peer.session.update({CLUSTER: content(CLUSTER, "a", step=step)})
        assert peer.next() is None
    peer.answer(first)
    assert peer.next().resources[0].version == resource(CLUSTER, "a", 19).version


def test_delta_a_refused_version_is_recorded_and_not_sent_again_until_it_changes() -> None:
    peer = DeltaPeer(DeltaSession())
    peer.session.update({CLUSTER: content(CLUSTER, "a")})
    peer.ask(CLUSTER)
    peer.settle()
    good = peer.session.state(CLUSTER).acked
    peer.session.update({CLUSTER: content(CLUSTER, "a", step=1)})
    assert peer.answer(peer.next(), refuse="no such filter") is Kind.NACK
    state = peer.session.state(CLUSTER)
    assert state.nack is not None
    assert (state.nack.code, state.nack.reason, state.nack.version) == (13, "no such filter", state.sent)
    assert state.acked == good != state.sent
    assert peer.next() is None
    peer.session.update({CLUSTER: content(CLUSTER, "a")})
    assert peer.settle() == [(CLUSTER, ["a"], [])]
    assert peer.session.state(CLUSTER).nack is None
    assert peer.session.state(CLUSTER).acked == good


def test_delta_a_returning_client_is_sent_only_what_it_lacks() -> None:
    old = content(CLUSTER, "same", "changed", "gone")
    now = {"same": old["same"], "changed": resource(CLUSTER, "changed", 1), "new": resource(CLUSTER, "new")}
    peer = DeltaPeer(DeltaSession())
    peer.session.update({CLUSTER: now})
    peer.ask(CLUSTER, have={name: held.version for name, held in old.items()})
    assert peer.settle() == [(CLUSTER, ["changed", "new"], ["gone"])]

    peer = DeltaPeer(DeltaSession())
    peer.session.update({ENDPOINT: content(ENDPOINT, "x", "y")})
    peer.ask(ENDPOINT, ["x", "y"], have={"x": resource(ENDPOINT, "x").version})
    assert peer.settle() == [(ENDPOINT, ["y"], [])]


def test_delta_versions_do_not_depend_on_the_process_or_the_order() -> None:
    one, two = DeltaPeer(DeltaSession()), DeltaPeer(DeltaSession())
    one.session.update({CLUSTER: content(CLUSTER, "a", "b")})
    two.session.update({CLUSTER: content(CLUSTER, "b", "c", "a")})
    for peer in (one, two):
        peer.ask(CLUSTER)
        peer.settle()
    two.session.update({CLUSTER: content(CLUSTER, "b", "a")})
    two.settle()
    assert one.session.state(CLUSTER).acked == two.session.state(CLUSTER).acked != ""


def test_delta_an_empty_wildcard_is_answered_so_that_the_client_can_start() -> None:
    peer = DeltaPeer(DeltaSession())
    assert peer.ask(CLUSTER) is Kind.FIRST
    assert peer.next() is None, "content is not known yet"
    peer.session.update({CLUSTER: {}})
    assert peer.settle() == [(CLUSTER, [], [])]


def test_delta_named_subscriptions_follow_their_names() -> None:
    peer = DeltaPeer(DeltaSession())
    peer.session.update({ENDPOINT: content(ENDPOINT, "x", "y", "z")})
    peer.ask(ENDPOINT, ["x"])
    assert peer.settle() == [(ENDPOINT, ["x"], [])]
    peer.ask(ENDPOINT, ["y", "nowhere"])
    assert peer.settle() == [(ENDPOINT, ["y"], ["nowhere"])]
    peer.ask(ENDPOINT, [], ["x"])
    peer.session.update({ENDPOINT: content(ENDPOINT, "x", "y", "z", "nowhere", step=1)})
    assert peer.settle() == [(ENDPOINT, ["nowhere", "y"], [])]
    assert peer.session.interest(ENDPOINT).names == {"y", "nowhere"}


def test_delta_names_asked_for_while_a_response_is_outstanding_are_answered() -> None:
    peer = DeltaPeer(DeltaSession())
    peer.session.update({ENDPOINT: content(ENDPOINT, "x", "y")})
    peer.ask(ENDPOINT, ["x"])
    first = peer.next()
    peer.ask(ENDPOINT, ["y"])
    second = peer.next()
    assert [r.name for r in second.resources] == ["y"]
    assert peer.next() is None
    peer.answer(first)
    assert peer.session.state(ENDPOINT).outstanding
    assert peer.answer(second) is Kind.ACK
    assert not peer.session.state(ENDPOINT).outstanding


def test_delta_types_without_legacy_wildcard_need_a_star() -> None:
    peer = DeltaPeer(DeltaSession())
    peer.session.update({ROUTE: content(ROUTE, "80")})
    peer.ask(ROUTE)
    assert peer.settle() == []
    peer.ask(ROUTE, ["*"])
    assert peer.settle() == [(ROUTE, ["80"], [])]
    peer.ask(ROUTE, [], ["*"])
    peer.session.update({ROUTE: content(ROUTE, "80", step=1)})
    assert peer.settle() == []


def test_delta_what_is_on_demand_only_never_reaches_a_wildcard() -> None:
    hidden = resource(LISTENER, "xds-target", wildcard=False)
    listeners = content(LISTENER, "virtualOutbound") | {"xds-target": hidden}
    envoy, grpc = DeltaPeer(DeltaSession()), DeltaPeer(DeltaSession())
    for peer, names in ((envoy, []), (grpc, ["xds-target"])):
        peer.session.update({LISTENER: listeners})
        peer.ask(LISTENER, names)
    assert envoy.settle() == [(LISTENER, ["virtualOutbound"], [])]
    assert grpc.settle() == [(LISTENER, ["xds-target"], [])]
    # With both, giving up the name takes away what the wildcard does not cover.
    envoy.ask(LISTENER, ["xds-target"])
    assert envoy.settle() == [(LISTENER, ["xds-target"], [])]
    envoy.ask(LISTENER, [], ["xds-target"])
    assert envoy.settle() == [(LISTENER, [], ["xds-target"])]


def test_delta_giving_up_a_name_under_a_wildcard_is_answered_with_its_state() -> None:
    peer = DeltaPeer(DeltaSession())
    peer.session.update({CLUSTER: content(CLUSTER, "a", "b")})
    peer.ask(CLUSTER, ["*", "a"])
    assert peer.settle() == [(CLUSTER, ["a", "b"], [])]
    peer.ask(CLUSTER, [], ["a"])
    assert peer.settle() == [(CLUSTER, ["a"], [])]


def test_delta_asking_for_a_name_anew_gets_it_anew() -> None:
    peer = DeltaPeer(DeltaSession())
    peer.session.update({ENDPOINT: content(ENDPOINT, "x")})
    peer.ask(ENDPOINT, ["x"])
    peer.settle()
    peer.ask(ENDPOINT, ["x"])
    assert peer.settle() == [(ENDPOINT, ["x"], [])]


def test_delta_a_changed_cluster_is_sent_its_endpoints_again_while_it_warms() -> None:
    peer = DeltaPeer(DeltaSession())
    peer.session.update({CLUSTER: content(CLUSTER, "x", "y"), ENDPOINT: content(ENDPOINT, "x", "y")})
    peer.ask(CLUSTER)
    peer.ask(ENDPOINT, ["x", "y"])
    peer.settle()
    peer.session.update({CLUSTER: content(CLUSTER, "x", step=1) | content(CLUSTER, "y")})
    assert peer.settle() == [(CLUSTER, ["x"], []), (ENDPOINT, ["x"], [])]


def test_delta_makes_before_it_breaks() -> None:
    peer = DeltaPeer(DeltaSession())
    old = {kind: content(kind, "old") for kind in (CLUSTER, ENDPOINT, LISTENER)}
    peer.session.update({**old, ROUTE: content(ROUTE, "80")})
    peer.ask(LISTENER)
    peer.ask(CLUSTER)
    peer.ask(ROUTE, ["80"])
    peer.ask(ENDPOINT, ["old"])
    assert [kind for kind, _, _ in peer.settle()] == [CLUSTER, ENDPOINT, LISTENER, ROUTE]
    new = {kind: content(kind, "new") for kind in (CLUSTER, ENDPOINT)}
    peer.session.update({**new, ROUTE: content(ROUTE, "80", step=1)})
    assert peer.settle() == [
        (CLUSTER, ["new"], []),
        (ROUTE, ["80"], []),
        (CLUSTER, [], ["old"]),
        (ENDPOINT, [], ["old"]),
    ]


def test_delta_a_large_answer_is_cut_at_resources_and_completed() -> None:
    peer = DeltaPeer(DeltaSession(max_response=300))
    peer.session.update({CLUSTER: content(CLUSTER, *(f"cluster-{i}" for i in range(20)))})
    peer.ask(CLUSTER)
    parts = peer.settle()
    assert len(parts) > 3
    assert sorted(name for _, names, _ in parts for name in names) == sorted(
        f"cluster-{i}" for i in range(20)
    )


def test_delta_a_health_report_is_no_subscription() -> None:
    session = DeltaSession()
    node = base_pb2.Node(id="sidecar~10.0.0.1~a.b~b.svc")
    first = discovery_pb2.DeltaDiscoveryRequest(type_url=CLUSTER, node=node)
    session.receive(first.SerializeToString())
    report = session.receive(health_request(False, "probe failed"))
    assert (report.kind, report.error, report.node.id) == (Kind.REPORT, (1, "probe failed"), node.id)
    assert session.receive(health_request(True)).error is None
    assert HEALTH not in session.types


def test_what_is_no_request_ends_the_stream() -> None:
    for session in (DeltaSession(), SotwSession()):
        for data in (b"\xff\xff\xff", b""):
            with pytest.raises(XdsError):
                session.receive(data)


class SotwPeer:
    """A client of a SotwSession that answers as told."""

    def __init__(self, session: SotwSession) -> None:
        self.session = session
        self.names: dict[str, list[str]] = {}
        self.nonces: dict[str, str] = {}

    def ask(self, type_url: str, *names: str, nonce: str | None = None, refuse: str = "") -> Kind:
        self.names[type_url] = list(names)
        request = discovery_pb2.DiscoveryRequest(
            type_url=type_url,
            resource_names=names,
            response_nonce=self.nonces.get(type_url, "") if nonce is None else nonce,
        )
        if refuse:
            request.error_detail.code = 13
            request.error_detail.message = refuse
        return self.session.receive(request.SerializeToString()).kind

    def next(self) -> Any:
        data = self.session.next_response()
        if data is None:
            return None
        response = discovery_pb2.DiscoveryResponse.FromString(data)
        self.nonces[response.type_url] = response.nonce
        return response

    def settle(self) -> list[tuple[str, list[str]]]:
        seen = []
        while (response := self.next()) is not None:
            names = []
            for packed in response.resources:
                message = _CLASSES[response.type_url]()
                packed.Unpack(message)
                names.append(message.cluster_name if response.type_url == ENDPOINT else message.name)
            seen.append((response.type_url, names))
            assert self.ask(response.type_url, *self.names[response.type_url]) is Kind.ACK
        return seen


def test_sotw_clusters_come_complete_and_endpoints_by_what_changed() -> None:
    peer = SotwPeer(SotwSession())
    peer.session.update({CLUSTER: content(CLUSTER, "a", "b"), ENDPOINT: content(ENDPOINT, "a", "b")})
    peer.ask(CLUSTER)
    peer.ask(ENDPOINT, "a", "b")
    assert peer.settle() == [(CLUSTER, ["a", "b"]), (ENDPOINT, ["a", "b"])]
    peer.session.update({ENDPOINT: content(ENDPOINT, "a") | content(ENDPOINT, "b", step=1)})
    assert peer.settle() == [(ENDPOINT, ["b"])]
    peer.session.update({CLUSTER: content(CLUSTER, "a", "b", "c")})
    assert peer.settle() == [(CLUSTER, ["a", "b", "c"])]
    peer.session.update({CLUSTER: content(CLUSTER, "a")})
    assert peer.settle() == [(CLUSTER, ["a"])]


def test_sotw_an_empty_wildcard_is_answered() -> None:
    peer = SotwPeer(SotwSession())
    peer.session.update({LISTENER: {}})
    peer.ask(LISTENER)
    assert peer.settle() == [(LISTENER, [])]


def test_sotw_a_stale_answer_changes_nothing() -> None:
    peer = SotwPeer(SotwSession())
    peer.session.update({CLUSTER: content(CLUSTER, "a")})
    peer.ask(CLUSTER)
    first = peer.next()
    peer.ask(CLUSTER)
    peer.session.update({CLUSTER: content(CLUSTER, "a", "b")})
    assert peer.next() is not None
    assert peer.ask(CLUSTER, nonce=first.nonce, refuse="late") is Kind.STALE
    state = peer.session.state(CLUSTER)
    assert state.outstanding
    assert state.nack is None


def test_sotw_a_refusal_is_recorded() -> None:
    peer = SotwPeer(SotwSession())
    peer.session.update({CLUSTER: content(CLUSTER, "a")})
    peer.ask(CLUSTER)
    peer.next()
    assert peer.ask(CLUSTER, refuse="bad cluster") is Kind.NACK
    nack = peer.session.state(CLUSTER).nack
    assert nack is not None
    assert (nack.code, nack.reason) == (13, "bad cluster")
    assert peer.next() is None


def test_sotw_new_names_are_sent_and_none_after_names_means_none() -> None:
    peer = SotwPeer(SotwSession())
    peer.session.update({LISTENER: content(LISTENER, "a", "b")})
    peer.ask(LISTENER, "a")
    assert peer.settle() == [(LISTENER, ["a"])]
    peer.ask(LISTENER, "a", "b")
    assert peer.settle() == [(LISTENER, ["a", "b"])]
    peer.ask(LISTENER)
    assert not peer.session.interest(LISTENER).wildcard
    assert peer.session.interest(LISTENER).names == frozenset()


def test_sotw_a_changed_cluster_is_sent_its_endpoints_again() -> None:
    peer = SotwPeer(SotwSession())
    peer.session.update({CLUSTER: content(CLUSTER, "x", "y"), ENDPOINT: content(ENDPOINT, "x", "y")})
    peer.ask(CLUSTER)
    peer.ask(ENDPOINT, "x", "y")
    peer.settle()
    peer.session.update({CLUSTER: content(CLUSTER, "x", step=1) | content(CLUSTER, "y")})
    assert peer.settle() == [(CLUSTER, ["x", "y"]), (ENDPOINT, ["x"])]


def test_sotw_asking_for_the_same_again_gets_it_again() -> None:
    peer = SotwPeer(SotwSession())
    peer.session.update({ENDPOINT: content(ENDPOINT, "x")})
    peer.ask(ENDPOINT, "x")
    peer.settle()
    assert peer.ask(ENDPOINT, "x") is Kind.CHANGE
    assert peer.settle() == [(ENDPOINT, ["x"])]


def test_types_are_pushed_in_the_order_of_what_refers_to_what() -> None:
    assert in_push_order([SECRET, ROUTE, "other", LISTENER, ENDPOINT, CLUSTER]) == [
        CLUSTER,
        ENDPOINT,
        LISTENER,
        ROUTE,
        SECRET,
        "other",
    ]
