"""Make before break: what a proxy is given, portion by portion, on both protocol variants."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.service.discovery.v3 import discovery_pb2

from istiod.xds.phases import PhasedContent
from wire.xds import CLUSTER, ENDPOINT, LISTENER, ROUTE, DeltaSession, EncodedResource, SotwSession, encode

EDS = cluster_pb2.Cluster.EDS


def content(clusters: str, route_to: str) -> dict[str, dict[str, EncodedResource]]:
    """A mesh whose clusters are the letters of `clusters` and whose one route goes to `route_to`."""
    route = route_pb2.RouteConfiguration(name="80")
    route.virtual_hosts.add(name=route_to)
    listener = listener_pb2.Listener(name="l")
    return {
        CLUSTER: {name: encode(name, cluster_pb2.Cluster(name=name, type=EDS)) for name in clusters},
        ENDPOINT: {
            name: encode(name, endpoint_pb2.ClusterLoadAssignment(cluster_name=name)) for name in clusters
        },
        LISTENER: {"l": encode("l", listener)},
        ROUTE: {"80": encode("80", route)},
    }


class DeltaProxy:
    """A client that speaks delta as Envoy does: wildcard CDS and LDS, names for EDS and RDS."""

    def __init__(self) -> None:
        self.session = DeltaSession()
        self.phases = PhasedContent(self.session)

    def ask(self, type_url: str, *names: str) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=type_url, resource_names_subscribe=names)
        self.session.receive(request.SerializeToString())

    def ack(self, response: discovery_pb2.DeltaDiscoveryResponse) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(
            type_url=response.type_url, response_nonce=response.nonce
        )
        self.session.receive(request.SerializeToString())

    def receive(self, *, patience_over: bool = False) -> list[discovery_pb2.DeltaDiscoveryResponse]:
        """All that the server sends before it needs an answer."""
        responses = []
        while True:
            while (message := self.session.next_response()) is not None:
                responses.append(discovery_pb2.DeltaDiscoveryResponse.FromString(message))
            if not self.phases.step(patience_over=patience_over):
                return responses


def shown(responses: list[discovery_pb2.DeltaDiscoveryResponse]) -> list[str]:
    """`CDS +b` for an added b, `CDS -a` for a removed a, in order of sending."""
    short = {CLUSTER: "CDS", ENDPOINT: "EDS", LISTENER: "LDS", ROUTE: "RDS"}
    lines = []
    for response in responses:
        lines += [f"{short[response.type_url]} +{resource.name}" for resource in response.resources]
        lines += [f"{short[response.type_url]} -{name}" for name in response.removed_resources]
    return lines


def connected(clusters: str) -> DeltaProxy:
    proxy = DeltaProxy()
    proxy.phases.replace(content(clusters, clusters[0]))
    proxy.ask(CLUSTER)
    proxy.ask(ENDPOINT, *clusters)
    proxy.ask(LISTENER)
    proxy.ask(ROUTE, "80")
    for response in proxy.receive():
        proxy.ack(response)
    assert proxy.receive() == []
    return proxy


def test_a_fresh_proxy_gets_everything_in_the_order_in_which_it_asks() -> None:
    proxy = DeltaProxy()
    proxy.phases.replace(content("a", "a"))
    proxy.ask(LISTENER)
    assert shown(proxy.receive()) == ["LDS +l"]


def test_a_route_to_a_new_cluster_waits_until_the_cluster_has_its_endpoints() -> None:
    proxy = connected("a")
    proxy.phases.replace(content("ab", "b"))
    (added,) = proxy.receive()
    assert shown([added]) == ["CDS +b"]
    proxy.ack(added)
    assert proxy.receive() == [], "the proxy has not asked for b's endpoints yet"
    proxy.ask(ENDPOINT, "b")
    (endpoints,) = proxy.receive()
    assert shown([endpoints]) == ["EDS +b"]
    proxy.ack(endpoints)
    assert shown(proxy.receive()) == ["RDS +80"]


def test_a_cluster_goes_only_after_the_route_that_used_it() -> None:
    proxy = connected("ab")
    proxy.phases.replace(content("b", "b"))
    (route,) = proxy.receive()
    assert shown([route]) == ["RDS +80"]
    proxy.ack(route)
    assert shown(proxy.receive()) == ["CDS -a", "EDS -a"]


def test_a_change_of_routes_alone_is_sent_at_once() -> None:
    proxy = connected("ab")
    proxy.phases.replace(content("ab", "b"))
    assert shown(proxy.receive()) == ["RDS +80"]


def test_a_proxy_that_never_asks_for_the_endpoints_gets_its_routes_when_patience_is_over() -> None:
    proxy = connected("a")
    proxy.phases.replace(content("ab", "b"))
    for response in proxy.receive():
        proxy.ack(response)
    assert proxy.receive() == []
    assert shown(proxy.receive(patience_over=True)) == ["RDS +80"]


def test_newer_content_replaces_what_was_still_held_back() -> None:
    proxy = connected("a")
    proxy.phases.replace(content("ab", "b"))
    (added,) = proxy.receive()
    proxy.phases.replace(content("ac", "c"))
    assert proxy.receive() == []
    proxy.ack(added)
    (added,) = proxy.receive()
    assert shown([added]) == ["CDS +c"], "b stays until the routes have moved on"
    proxy.ack(added)
    proxy.ask(ENDPOINT, "c")
    for response in proxy.receive():
        proxy.ack(response)
    (route,) = proxy.receive() or [None]
    if route is not None:
        proxy.ack(route)
    assert "CDS -b" in shown(proxy.receive())


def test_with_state_of_the_world_a_removed_cluster_stays_in_the_list_until_the_routes_moved() -> None:
    session = SotwSession()
    phases = PhasedContent(session)
    phases.replace(content("ab", "a"))
    answers: dict[str, str] = {}

    def ask(type_url: str, *names: str) -> None:
        request = discovery_pb2.DiscoveryRequest(
            type_url=type_url, resource_names=names, response_nonce=answers.get(type_url, "")
        )
        session.receive(request.SerializeToString())

    def receive() -> list[discovery_pb2.DiscoveryResponse]:
        found = []
        while True:
            while (message := session.next_response()) is not None:
                response = discovery_pb2.DiscoveryResponse.FromString(message)
                answers[response.type_url] = response.nonce
                found.append(response)
            if not phases.step(patience_over=False):
                return found

    wanted = {CLUSTER: (), ENDPOINT: ("a", "b"), LISTENER: (), ROUTE: ("80",)}
    for type_url, names in wanted.items():
        ask(type_url, *names)
    for response in receive():
        ask(response.type_url, *wanted[response.type_url])
    receive()
    phases.replace(content("b", "b"))
    (route,) = receive()
    assert route.type_url == ROUTE
    ask(ROUTE, "80")
    removal = receive()
    assert [len(response.resources) for response in removal if response.type_url == CLUSTER] == [1]
