"""The agent's session against the server's: two state machines talking to each other."""

from __future__ import annotations

import pytest
from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from envoy.service.discovery.v3 import discovery_pb2

from wire.xds import (
    CLUSTER,
    ENDPOINT,
    LISTENER,
    WILDCARD,
    DeltaClient,
    DeltaSession,
    EncodedResource,
    Kind,
    XdsError,
    encode,
    endpoint_names,
    route_names,
)

NODE = base_pb2.Node(id="sidecar~10.0.0.1~reviews-h1.default~default.svc.cluster.local")


def clusters(*names: str, step: int = 0) -> dict[str, EncodedResource]:
    return {
        name: encode(name, cluster_pb2.Cluster(name=name, type="EDS", alt_stat_name=str(step)))
        for name in names
    }


def endpoints(*names: str) -> dict[str, EncodedResource]:
    return {name: encode(name, endpoint_pb2.ClusterLoadAssignment(cluster_name=name)) for name in names}


def exchange(client: DeltaClient, session: DeltaSession) -> list[tuple[str, list[str], list[str]]]:
    """Let them talk until nothing more is said, the client subscribing to what clusters need."""
    seen = []
    while (data := session.next_response()) is not None:
        update = client.receive(data)
        seen.append((update.type_url, sorted(update.resources), list(update.removed)))
        assert session.receive(client.ack(update)).kind is Kind.ACK
        request = client.subscribe(ENDPOINT, endpoint_names(client.held(CLUSTER).values()))
        if request is not None:
            session.receive(request)
    return seen


def connect(client: DeltaClient, session: DeltaSession) -> None:
    for request in client.start():
        session.receive(request)


def test_a_client_gets_what_it_wants_and_goes_on_from_there_on_a_new_stream() -> None:
    client = DeltaClient(NODE, {CLUSTER: WILDCARD, ENDPOINT: ()})
    session = DeltaSession()
    session.update({CLUSTER: clusters("a", "b"), ENDPOINT: endpoints("a", "b", "c")})
    connect(client, session)
    assert session.node.id == NODE.id
    assert exchange(client, session) == [(CLUSTER, ["a", "b"], []), (ENDPOINT, ["a", "b"], [])]
    assert sorted(client.held(ENDPOINT)) == ["a", "b"]
    session.update({CLUSTER: clusters("b", "c")})
    assert exchange(client, session) == [(CLUSTER, ["c"], ["a"]), (ENDPOINT, ["c"], [])]
    assert sorted(client.held(ENDPOINT)) == ["b", "c"]

    # istiod restarts with the same content: nothing is sent. Then with other content: only that.
    session = DeltaSession()
    session.update({CLUSTER: clusters("b", "c"), ENDPOINT: endpoints("b", "c")})
    connect(client, session)
    assert exchange(client, session) == []
    session = DeltaSession()
    session.update({CLUSTER: clusters("c") | clusters("b", step=1), ENDPOINT: endpoints("b", "c")})
    connect(client, session)
    assert (CLUSTER, ["b"], []) in exchange(client, session)


def test_a_preloaded_client_is_only_sent_what_changed_while_it_was_away() -> None:
    client = DeltaClient(NODE, {CLUSTER: WILDCARD})
    client.preload(CLUSTER, clusters("a", "b"))
    session = DeltaSession()
    session.update({CLUSTER: clusters("a")})
    connect(client, session)
    update = client.receive(session.next_response() or b"")
    assert (dict(update.resources), update.removed) == ({}, ("b",))
    session.receive(client.ack(update))
    assert client.held(CLUSTER) == clusters("a")


def test_a_refused_update_changes_nothing_and_says_why() -> None:
    client = DeltaClient(NODE, {CLUSTER: WILDCARD})
    session = DeltaSession()
    session.update({CLUSTER: clusters("a")})
    connect(client, session)
    session.receive(client.ack(client.receive(session.next_response() or b"")))
    session.update({CLUSTER: clusters("a", step=1)})
    update = client.receive(session.next_response() or b"")
    received = session.receive(client.nack(update, "clusters[0].lb_policy: unsupported"))
    assert received.kind is Kind.NACK
    assert received.nack is not None
    assert received.nack.reason == "clusters[0].lb_policy: unsupported"
    assert client.held(CLUSTER) == clusters("a")


def test_what_the_server_holds_and_what_the_client_holds_are_equal() -> None:
    client = DeltaClient(NODE, {CLUSTER: WILDCARD})
    session = DeltaSession()
    offered = clusters("a", "b", "c")
    session.update({CLUSTER: offered})
    connect(client, session)
    exchange(client, session)
    assert client.held(CLUSTER) == offered


def test_a_response_that_was_not_asked_for_or_of_a_wrong_type_is_refused() -> None:
    client = DeltaClient(NODE, {CLUSTER: WILDCARD})
    client.start()
    stray = discovery_pb2.DeltaDiscoveryResponse(type_url=LISTENER)
    wrong = discovery_pb2.DeltaDiscoveryResponse(type_url=CLUSTER, resources=[{"name": "a"}])
    for data in (stray.SerializeToString(), wrong.SerializeToString(), b"\xff\xff"):
        with pytest.raises(XdsError):
            client.receive(data)


def test_names_are_subscribed_only_while_there_is_a_stream() -> None:
    client = DeltaClient(NODE, {CLUSTER: WILDCARD, ENDPOINT: ()})
    assert client.subscribe(ENDPOINT, ["x"]) is None
    first = [discovery_pb2.DeltaDiscoveryRequest.FromString(request) for request in client.start()]
    assert [(r.type_url, list(r.resource_names_subscribe)) for r in first] == [
        (CLUSTER, []),
        (ENDPOINT, ["x"]),
    ]
    assert [r.HasField("node") for r in first] == [True, False]
    assert client.subscribe(ENDPOINT, ["x"]) is None
    change = discovery_pb2.DeltaDiscoveryRequest.FromString(client.subscribe(ENDPOINT, ["y"]) or b"")
    assert (list(change.resource_names_subscribe), list(change.resource_names_unsubscribe)) == (["y"], ["x"])


def test_listeners_name_the_routes_they_need() -> None:
    manager = http_connection_manager_pb2.HttpConnectionManager(rds={"route_config_name": "9080"})
    listener = listener_pb2.Listener(name="0.0.0.0_9080")
    listener.filter_chains.add().filters.add(name="hcm").typed_config.Pack(manager)
    assert route_names([encode(listener.name, listener)]) == {"9080"}
