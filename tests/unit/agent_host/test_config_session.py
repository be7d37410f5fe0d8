"""One workload's configuration, told by istiod's own session on the other side: bytes there, bytes back."""

from __future__ import annotations

from envoy.config.cluster.v3 import cluster_pb2
from envoy.config.core.v3 import base_pb2
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.config.listener.v3 import listener_pb2
from envoy.config.route.v3 import route_pb2
from envoy.extensions.filters.network.http_connection_manager.v3 import http_connection_manager_pb2
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import Message

from agent.host.control.config_session import Applied, ConfigSession, Held
from agent.table.build import Refused
from wire.proto import name_table_pb2
from wire.xds import CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE, EncodedResource, encode
from wire.xds.delta import DeltaSession

Content = dict[str, dict[str, EncodedResource]]


def cluster(name: str) -> EncodedResource:
    return encode(name, cluster_pb2.Cluster(name=name, type=cluster_pb2.Cluster.EDS))


def endpoints(name: str, step: int = 0) -> EncodedResource:
    policy = {"overprovisioning_factor": {"value": 100 + step}}
    return encode(name, endpoint_pb2.ClusterLoadAssignment(cluster_name=name, policy=policy))


def listener(name: str, route: str) -> EncodedResource:
    manager = http_connection_manager_pb2.HttpConnectionManager(stat_prefix=name)
    manager.rds.route_config_name = route
    message = listener_pb2.Listener(name=name)
    message.filter_chains.add().filters.add(name="http").typed_config.Pack(manager)
    return encode(name, message)


def simple(name: str, message: Message) -> dict[str, EncodedResource]:
    return {name: encode(name, message)}


def content(*names: str) -> Content:
    """A mesh in which each name is a cluster, its endpoints, a listener and its route."""
    return {
        CLUSTER: {name: cluster(name) for name in names},
        ENDPOINT: {name: endpoints(name) for name in names},
        LISTENER: {name: listener(name, f"route-{name}") for name in names},
        ROUTE: {
            f"route-{name}": encode(f"route-{name}", route_pb2.RouteConfiguration(name=f"route-{name}"))
            for name in names
        },
        NAME_TABLE: simple("names", name_table_pb2.NameTable()),
    }


class Pair:
    """The agent's session and istiod's, connected."""

    def __init__(self, mesh: Content, agent: ConfigSession | None = None) -> None:
        self.agent = agent or ConfigSession(
            base_pb2.Node(id="sidecar~10.0.0.1~a.default~default.svc.cluster.local")
        )
        self.istiod = DeltaSession()
        self.mesh = mesh
        self.sent: list[str] = []
        self.tell_istiod(self.agent.start())
        self.istiod.update(mesh)

    def tell_istiod(self, requests: list[bytes]) -> None:
        for request in requests:
            self.istiod.receive(request)

    def change(self, mesh: Content) -> None:
        self.mesh = mesh
        self.istiod.update(mesh)

    def step(self) -> bool:
        """One response, if there is one."""
        response = self.istiod.next_response()
        if response is None:
            return False
        self.tell_istiod(self.agent.receive(response))
        return True

    def settle(self) -> int:
        """Use every complete set until nothing more comes; how many sets there were."""
        uses = 0
        while True:
            while self.step():
                pass
            candidate = self.agent.candidate()
            if candidate is None:
                return uses
            uses += 1
            self.tell_istiod(self.agent.settle(candidate, Applied(candidate.resources)))


def test_the_first_set_is_whole_with_all_that_it_names() -> None:
    pair = Pair(content("a", "b"))
    while pair.step():
        candidate = pair.agent.candidate()
        if candidate is not None:
            assert set(candidate.resources[LISTENER]) == {"a", "b"}
            assert set(candidate.resources[ENDPOINT]) == {"a", "b"}
            assert set(candidate.resources[ROUTE]) == {"route-a", "route-b"}
    assert pair.settle() >= 1
    assert pair.agent.held() == pair.mesh
    assert not pair.agent.pending


def test_a_new_service_is_used_only_with_its_endpoints_and_route() -> None:
    pair = Pair(content("a"))
    pair.settle()
    pair.change(content("a", "b"))
    while pair.step():
        candidate = pair.agent.candidate()
        if candidate is not None:
            assert set(candidate.resources[ENDPOINT]) >= set(candidate.resources[CLUSTER])
    pair.settle()
    assert pair.agent.held() == pair.mesh


def test_a_new_service_comes_together_with_changed_endpoints_of_another() -> None:
    pair = Pair(content("a"))
    pair.settle()
    changed = content("a", "b")
    changed[ENDPOINT]["a"] = endpoints("a", 1)
    pair.change(changed)
    assert pair.settle() >= 1
    assert pair.agent.held() == pair.mesh
    assert not pair.agent.pending


def test_what_is_gone_is_let_go_after_the_new_set_is_in_use() -> None:
    pair = Pair(content("a", "b"))
    pair.settle()
    pair.change(content("a"))
    pair.settle()
    assert pair.agent.held() == pair.mesh
    assert pair.istiod.interest(ENDPOINT).names == {"a"}
    assert pair.istiod.interest(ROUTE).names == {"route-a"}


def test_a_refusal_keeps_what_was_held_and_tells_why() -> None:
    pair = Pair(content("a"))
    pair.settle()
    before = pair.agent.held()
    pair.change(content("a", "b"))
    while pair.step():
        pass
    candidate = pair.agent.candidate()
    assert candidate is not None
    pair.tell_istiod(pair.agent.rejected(candidate, "listeners[b]: unsupported field"))
    assert pair.agent.held() == before
    nacks = [pair.istiod.state(update.type_url).nack for update in candidate.updates]
    assert all(nack is not None and "unsupported field" in str(nack) for nack in nacks)


def refusing(pair: Pair, *names: str) -> None:
    """Use what has come, but clusters and listeners with these names."""
    while pair.step():
        pass
    candidate = pair.agent.candidate()
    assert candidate is not None
    before = pair.agent.held()
    in_use: Held = {type_url: dict(held) for type_url, held in candidate.resources.items()}
    refused = []
    for type_url in (CLUSTER, LISTENER):
        for name in names:
            if name in in_use[type_url]:
                kind = type_url.rpartition(".")[2]
                refused.append(Refused(type_url, name, f"{kind}[{name}].x", "unsupported field"))
                del in_use[type_url][name]
                if name in before[type_url]:
                    in_use[type_url][name] = before[type_url][name]
    pair.tell_istiod(pair.agent.settle(candidate, Applied(in_use, tuple(refused))))


def test_what_is_right_is_held_beside_what_is_refused_and_the_refusal_names_only_that() -> None:
    pair = Pair(content("a"))
    pair.settle()
    pair.change(content("a", "b", "c"))
    refusing(pair, "b")
    held = pair.agent.held()
    assert set(held[CLUSTER]) == set(held[LISTENER]) == {"a", "c"}
    assert set(held[ROUTE]) >= {"route-a", "route-c"}
    nack = pair.istiod.state(CLUSTER).nack
    assert nack is not None
    assert str(nack).count("unsupported field") == 1
    assert "Cluster[b].x: unsupported field" in str(nack)
    assert pair.istiod.state(ROUTE).nack is None


def test_a_refused_resource_is_offered_again_with_every_set_and_used_once_it_can_be() -> None:
    pair = Pair(content("a"))
    pair.settle()
    pair.change(content("a", "b"))
    refusing(pair, "b")
    changed = content("a", "b")
    changed[ENDPOINT]["a"] = endpoints("a", 1)
    pair.change(changed)
    while pair.step():
        pass
    candidate = pair.agent.candidate()
    assert candidate is not None
    assert set(candidate.resources[CLUSTER]) == set(candidate.resources[LISTENER]) == {"a", "b"}
    pair.tell_istiod(pair.agent.settle(candidate, Applied(candidate.resources)))
    assert set(pair.agent.held()[CLUSTER]) == {"a", "b"}


def test_istiod_hears_that_a_refused_resource_is_in_use_after_all() -> None:
    pair = Pair(content("a"))
    pair.settle()
    pair.change(content("a", "b"))
    refusing(pair, "b")
    assert pair.istiod.state(CLUSTER).nack is not None
    candidate = pair.agent.once_more()
    pair.tell_istiod(pair.agent.settle(candidate, Applied(candidate.resources)))
    pair.settle()
    assert pair.istiod.state(CLUSTER).nack is None
    assert pair.istiod.state(LISTENER).nack is None
    assert pair.agent.held() == pair.mesh


def test_a_refused_resource_that_is_removed_is_not_offered_again() -> None:
    pair = Pair(content("a"))
    pair.settle()
    pair.change(content("a", "b"))
    refusing(pair, "b")
    pair.change(content("a"))
    pair.settle()
    assert set(pair.agent.once_more().resources[CLUSTER]) == {"a"}
    assert pair.agent.held() == pair.mesh


def test_a_listener_that_cannot_be_decoded_does_not_end_the_stream() -> None:
    mesh = content("a", "b")
    broken = AnyMessage(type_url=LISTENER, value=b"\xff").SerializeToString()
    mesh[LISTENER]["b"] = EncodedResource("b", "1", broken)
    pair = Pair(mesh)
    while pair.step():
        pass
    candidate = pair.agent.candidate()
    assert candidate is not None
    assert set(candidate.resources[LISTENER]) == {"a", "b"}


def test_a_new_stream_goes_on_from_what_is_held() -> None:
    pair = Pair(content("a", "b"))
    pair.settle()
    again = Pair(pair.mesh, pair.agent)
    assert again.settle() == 0 or again.agent.held() == pair.mesh
    assert again.agent.held() == pair.mesh


def test_a_stored_configuration_needs_nothing_new_from_istiod() -> None:
    pair = Pair(content("a", "b"))
    pair.settle()
    restarted = ConfigSession(base_pb2.Node(id="sidecar~10.0.0.1~a.default~default.svc.cluster.local"))
    restarted.preload(pair.agent.held())
    assert restarted.held() == pair.mesh
    again = Pair(pair.mesh, restarted)
    again.settle()
    assert again.agent.held() == pair.mesh


def test_what_does_not_exist_is_not_waited_for() -> None:
    mesh = content("a", "b")
    del mesh[ENDPOINT]["b"]
    pair = Pair(mesh)
    while pair.step():
        pass
    missing = pair.agent.missing()
    candidate = pair.agent.candidate(complete=False)
    assert candidate is not None
    assert missing in ([], ["b"])
    pair.tell_istiod(pair.agent.settle(candidate, Applied(candidate.resources)))
    pair.settle()
    assert set(pair.agent.held()[CLUSTER]) == {"a", "b"}
