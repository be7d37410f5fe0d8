"""After a refusal: whatever a client keeps of a refused response, in the end it has all that it does not refuse."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
from envoy.config.endpoint.v3 import endpoint_pb2
from envoy.service.discovery.v3 import discovery_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.wire.test_xds_server import content, resource
from wire.xds import CLUSTER, ENDPOINT, LISTENER, ROUTE, DeltaSession, EncodedResource, Kind, SotwSession

KEEPS_NOTHING, KEEPS_THE_GOOD, NAMES_THE_BAD = "nothing", "the good", "the good, and names the bad"
CLIENTS = (KEEPS_NOTHING, KEEPS_THE_GOOD, NAMES_THE_BAD)


class Client:
    """A client of a DeltaSession that uses no resource whose version is in `bad`, and keeps of a refused response
    what its `manner` says. `held` is what it really has."""

    def __init__(self, session: DeltaSession, type_url: str, manner: str) -> None:
        self.session, self.type_url, self.manner = session, type_url, manner
        self.bad: set[str] = set()
        self.held: dict[str, str] = {}
        self.responses = 0

    def ask(self, *names: str) -> None:
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=self.type_url, resource_names_subscribe=names)
        self.session.receive(request.SerializeToString())

    def settle(self) -> None:
        """Take and answer responses until none comes."""
        while (data := self.session.next_response()) is not None:
            self.responses += 1
            assert self.responses < 1000, "the session sends for ever"
            self.take(discovery_pb2.DeltaDiscoveryResponse.FromString(data))

    def take(self, response: Any) -> None:
        came = {one.name: one.version for one in response.resources}
        # What it holds already, it has taken once, and takes again.
        wrong = sorted(
            name for name, version in came.items() if version in self.bad and self.held.get(name) != version
        )
        request = discovery_pb2.DeltaDiscoveryRequest(type_url=self.type_url, response_nonce=response.nonce)
        if wrong:
            request.error_detail.code = 13
            request.error_detail.message = "something is wrong"
            if self.manner == NAMES_THE_BAD:
                short = self.type_url.rpartition(".")[2]
                request.error_detail.message = "\n".join(f"{short}[{name}].x: is wrong" for name in wrong)
        if not wrong or self.manner != KEEPS_NOTHING:
            self.held.update({name: version for name, version in came.items() if name not in wrong})
            for name in response.removed_resources:
                self.held.pop(name, None)
        self.session.receive(request.SerializeToString())


def versions(resources: Mapping[str, EncodedResource]) -> dict[str, str]:
    return {name: one.version for name, one in resources.items()}


@pytest.mark.parametrize("manner", CLIENTS)
def test_what_came_with_a_refused_resource_reaches_the_client_all_the_same(manner: str) -> None:
    session = DeltaSession()
    client = Client(session, CLUSTER, manner)
    client.ask()
    everything = content(CLUSTER, *(f"c{n}" for n in range(40)))
    client.bad = {everything["c17"].version}
    session.update({CLUSTER: everything})
    client.settle()
    assert client.held.keys() == everything.keys() - {"c17"}
    assert set(session.state(CLUSTER).refused) == {"c17"}
    assert client.responses <= (1 if manner == NAMES_THE_BAD else 15)


@pytest.mark.parametrize("manner", CLIENTS)
def test_a_removal_that_came_with_a_refused_resource_is_not_lost(manner: str) -> None:
    session = DeltaSession()
    client = Client(session, CLUSTER, manner)
    client.ask()
    session.update({CLUSTER: content(CLUSTER, "a", "b", "gone")})
    client.settle()
    changed = content(CLUSTER, "a", "b", step=1)
    client.bad = {changed["a"].version}
    session.update({CLUSTER: changed})
    client.settle()
    assert client.held == {
        "a": resource(CLUSTER, "a").version,
        "b": changed["b"].version,
    }


@pytest.mark.parametrize("manner", CLIENTS)
def test_a_refusal_is_over_when_the_resource_is_as_it_was_before(manner: str) -> None:
    session = DeltaSession()
    client = Client(session, CLUSTER, manner)
    client.ask()
    before = content(CLUSTER, "a", "b")
    session.update({CLUSTER: before})
    client.settle()
    wrong = {**before, "a": resource(CLUSTER, "a", 1)}
    client.bad = {wrong["a"].version}
    session.update({CLUSTER: wrong})
    client.settle()
    assert set(session.state(CLUSTER).refused) == {"a"}
    session.update({CLUSTER: dict(before)})
    client.settle()
    assert not session.state(CLUSTER).refused
    assert client.held == versions(before)


def test_a_client_that_comes_to_a_bad_configuration_recovers_when_that_is_mended() -> None:
    """The listeners are good and were refused with the routes: once the routes change, the listeners come again."""
    session = DeltaSession()
    client = Client(session, LISTENER, KEEPS_NOTHING)
    client.ask()
    listeners = content(LISTENER, "one", "two")
    client.bad = {one.version for one in listeners.values()}
    session.update({LISTENER: listeners})
    client.settle()
    assert not client.held
    client.bad = set()
    assert session.retry_refused()
    client.settle()
    assert client.held == versions(listeners)
    assert not session.retry_refused()


def test_a_refused_version_is_not_sent_again_by_itself() -> None:
    session = DeltaSession()
    client = Client(session, CLUSTER, KEEPS_THE_GOOD)
    client.ask()
    everything = content(CLUSTER, "a", "b")
    client.bad = {everything["a"].version}
    session.update({CLUSTER: everything})
    client.settle()
    count = client.responses
    for step in range(1, 4):
        session.update({CLUSTER: {**everything, "b": resource(CLUSTER, "b", step)}})
        client.settle()
        assert client.responses == count + step


def test_names_with_brackets_are_told_apart() -> None:
    session = DeltaSession()
    client = Client(session, LISTENER, NAMES_THE_BAD)
    client.ask()
    everything = content(LISTENER, "[::1]", "[::1]_80", "x")
    client.bad = {everything["[::1]_80"].version}
    session.update({LISTENER: everything})
    client.settle()
    assert set(session.state(LISTENER).refused) == {"[::1]_80"}
    assert client.responses == 1


def test_an_answer_counts_for_the_responses_before_it() -> None:
    """Envoy answers each of two responses that are under way, our agent only the last: both are understood."""
    for nonces in ((0, 1), (1,)):
        session = DeltaSession()
        client = Client(session, ROUTE, KEEPS_NOTHING)
        client.ask("a")
        session.update({ROUTE: content(ROUTE, "a", "b")})
        first = discovery_pb2.DeltaDiscoveryResponse.FromString(session.next_response())
        client.ask("b")
        second = discovery_pb2.DeltaDiscoveryResponse.FromString(session.next_response())
        assert session.state(ROUTE).outstanding
        for index in nonces:
            client.take((first, second)[index])
        assert not session.state(ROUTE).outstanding
        assert session.state(ROUTE).acked == session.state(ROUTE).sent


def test_the_refusal_of_the_first_of_two_responses_is_kept() -> None:
    session = DeltaSession()
    client = Client(session, ROUTE, KEEPS_NOTHING)
    client.ask("a")
    everything = content(ROUTE, "a", "b")
    client.bad = {everything["a"].version}
    session.update({ROUTE: everything})
    first = discovery_pb2.DeltaDiscoveryResponse.FromString(session.next_response())
    client.ask("b")
    second = discovery_pb2.DeltaDiscoveryResponse.FromString(session.next_response())
    client.take(first)
    client.take(second)
    assert set(session.state(ROUTE).refused) == {"a"}
    client.settle()
    assert client.held == {"b": everything["b"].version}


STEPS = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 3), max_size=8),
        st.sets(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3)), max_size=6),
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CLIENTS), st.sampled_from((CLUSTER, ROUTE)), STEPS)
def test_the_session_is_right_about_every_client(manner: str, type_url: str, steps: Any) -> None:
    session = DeltaSession()
    client = Client(session, type_url, manner)
    client.ask(*(() if type_url == CLUSTER else "abcdefgh"))
    for wanted, bad in steps:
        everything = {name: resource(type_url, name, step) for name, step in wanted.items()}
        client.bad = {resource(type_url, name, step).version for name, step in bad}
        session.update({type_url: everything})
        client.settle()
        session.retry_refused()  # the client refuses other versions than before
        client.settle()
        good = {name: version for name, version in versions(everything).items() if version not in client.bad}
        assert good.items() <= client.held.items()
        assert client.held.keys() <= everything.keys()
        lacking = {name for name, version in versions(everything).items() if client.held.get(name) != version}
        assert set(session.state(type_url).refused) == lacking


class SotwClient:
    """As Client, for the state of the world and types of which a response holds what changed."""

    def __init__(self, session: SotwSession, names: list[str], keeps_good: bool) -> None:
        self.session, self.names, self.keeps_good = session, names, keeps_good
        self.bad: set[int] = set()
        self.held: dict[str, int] = {}
        self.responses = 0
        self._nonce = ""

    def ask(self, refuse: str = "") -> Kind:
        request = discovery_pb2.DiscoveryRequest(
            type_url=ENDPOINT, resource_names=self.names, response_nonce=self._nonce
        )
        if refuse:
            request.error_detail.code = 13
            request.error_detail.message = refuse
        return self.session.receive(request.SerializeToString()).kind

    def settle(self) -> None:
        while (data := self.session.next_response()) is not None:
            self.responses += 1
            assert self.responses < 1000, "the session sends for ever"
            response = discovery_pb2.DiscoveryResponse.FromString(data)
            self._nonce = response.nonce
            came = {}
            for packed in response.resources:
                message = endpoint_pb2.ClusterLoadAssignment()
                packed.Unpack(message)
                came[message.cluster_name] = message.policy.overprovisioning_factor.value
            wrong = any(version in self.bad for version in came.values())
            if not wrong or self.keeps_good:
                self.held.update({name: one for name, one in came.items() if one not in self.bad})
            self.ask("something is wrong" if wrong else "")


@pytest.mark.parametrize("keeps_good", [True, False])
def test_with_state_of_the_world_endpoints_that_came_with_refused_ones_come_again(keeps_good: bool) -> None:
    session = SotwSession()
    names = [f"c{n}" for n in range(20)]
    client = SotwClient(session, names, keeps_good)
    client.ask()
    everything = content(ENDPOINT, *names)
    everything["c5"] = resource(ENDPOINT, "c5", 7)
    client.bad = {107}
    session.update({ENDPOINT: everything})
    client.settle()
    assert client.held.keys() == set(names) - {"c5"}
    assert set(session.state(ENDPOINT).refused) == {"c5"}
    everything = {**everything, "c5": resource(ENDPOINT, "c5", 8)}
    session.update({ENDPOINT: everything})
    client.settle()
    assert client.held["c5"] == 108
    assert not session.state(ENDPOINT).refused


def test_with_state_of_the_world_a_refused_list_of_clusters_stays_refused_until_it_changes() -> None:
    session = SotwSession()
    ask: Callable[..., Any] = discovery_pb2.DiscoveryRequest
    session.receive(ask(type_url=CLUSTER).SerializeToString())
    session.update({CLUSTER: content(CLUSTER, "a", "b")})
    first = discovery_pb2.DiscoveryResponse.FromString(session.next_response())
    nack = ask(type_url=CLUSTER, response_nonce=first.nonce)
    nack.error_detail.message = "no"
    session.receive(nack.SerializeToString())
    assert session.next_response() is None
    assert session.state(CLUSTER).refused["*"].reason == "no"
    session.update({CLUSTER: content(CLUSTER, "a")})
    second = discovery_pb2.DiscoveryResponse.FromString(session.next_response())
    session.receive(ask(type_url=CLUSTER, response_nonce=second.nonce).SerializeToString())
    assert not session.state(CLUSTER).refused
