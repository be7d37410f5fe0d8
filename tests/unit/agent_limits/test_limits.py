"""Two workers' views of one region: what one of them takes is gone for the other, and comes back when it dies."""

from __future__ import annotations

import logging
import os
from typing import Any

import pytest

from agent.filters import FilterState
from agent.filters.local_rate_limit import Limiter
from agent.filters.names import Names
from agent.filters.network import NetworkGate, compile_network
from agent.filters.token_bucket import BucketPlace
from agent.http.request import ConnectionInfo
from agent.limits.region import LimitsRegion, Shares
from agent.table.cluster import Cluster, Thresholds
from agent.table.filter_config import ConnectionLimit, Descriptor, LocalRateLimit, TokenBucket
from agent.table.listener import Address, ChainMatch, FilterChain, FilterConfig, Listener, TcpProxy
from agent.upstream.breaker import COUNTS, Breaker, SharedBreaker, breakers


def workers(number: int = 2, **capacity: int) -> tuple[LimitsRegion, list[Shares]]:
    """The host's view, and each worker's."""
    region = LimitsRegion.create(number, **capacity)
    return region, [
        Shares(LimitsRegion.attach(os.dup(region.fd)), column).of("default/a") for column in range(number)
    ]


def breaker_of(shares: Shares, name: str = "c", **limits: Any) -> Breaker:
    cluster = Cluster(name, "static", default_thresholds=Thresholds(**limits))
    return breakers(cluster, shares.tallies(f"cluster|{name}", 2 * COUNTS))[0]


def test_what_one_worker_uses_the_other_may_not() -> None:
    region, (one, two) = workers()
    here, there = (breaker_of(each, max_requests=3, max_connections=1) for each in (one, two))
    here.add_requests(2)
    assert there.may_request()
    there.add_requests(1)
    assert not here.may_request() and not there.may_request()
    assert here.may_connect()
    here.add_connections(1)
    assert not there.may_connect()
    assert breaker_of(two, "another").requests == 0
    region.forget(0)
    assert there.requests == 1 and there.may_connect()


def test_a_retry_budget_is_a_share_of_what_all_workers_do() -> None:
    _, (one, two) = workers()
    here, there = (breaker_of(each, retry_budget_percent=20.0, retry_budget_min=1) for each in (one, two))
    here.add_requests(9)
    there.add_pending(1)
    there.add_retries(1)
    assert here.may_retry()
    here.add_retries(1)
    assert not there.may_retry()


def test_the_only_worker_shares_nothing() -> None:
    assert not any(isinstance(each, SharedBreaker) for each in breakers(Cluster("c", "static")))


def test_names_of_one_workload_are_not_anothers() -> None:
    region, (one, _) = workers()
    breaker_of(one).add_requests(5)
    other = Shares(LimitsRegion.attach(os.dup(region.fd)), 1).of("default/b")
    assert breaker_of(other).requests == 0


def test_without_room_each_worker_counts_alone_and_each_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, (one, two) = workers(rows=2 * COUNTS)
    breaker_of(one, "first").add_requests(1)
    assert breaker_of(two, "first").requests == 1
    with caplog.at_level(logging.ERROR):
        breaker_of(one, "second").add_requests(1)
        breaker_of(one, "third").add_requests(1)
    assert breaker_of(two, "second").requests == 0
    assert breaker_of(two, "first").requests == 1
    assert [record.getMessage() for record in caplog.records] == [
        "no room for more shared limits: new ones count for each worker alone"
    ] * 2


def test_what_is_no_region_is_refused() -> None:
    fd = os.memfd_create("x", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, 100_000)
    with pytest.raises(ValueError, match="not a region"):
        LimitsRegion.attach(fd)
    os.close(fd)


def test_a_bucket_is_one_for_all_and_outlives_who_took_from_it() -> None:
    region, (one, two) = workers()
    config = TokenBucket(3, 1, 10.0)
    here, there = (BucketPlace(each, "x").bucket(config) for each in (one, two))
    assert [here.take(100.0), there.take(100.0), here.take(100.0), there.take(100.0)] == [True] * 3 + [False]
    assert here.remaining(100.0) == 0 and here.seconds_to_next(104.0) == 6
    region.forget(0)
    assert not there.take(100.0)
    assert there.take(110.0) and not here.take(110.0)
    assert not here.take(109.0), "another worker's clock may be a little behind"
    other = BucketPlace(two, "x").bucket(TokenBucket(4, 1, 10.0))
    assert other.remaining(110.0) == 4, "other contents are another bucket"


def limiter(shares: Shares, dynamic: int) -> Limiter:
    bucket = TokenBucket(2, 1, 1000.0)
    config = LocalRateLimit(
        "x", bucket=None, descriptors=(Descriptor((("client", ""),), bucket),),
        max_dynamic_descriptors=dynamic,
    )  # fmt: skip
    return Limiter(config, BucketPlace(shares, "x"))


def test_values_of_a_descriptor_have_a_bucket_each_until_others_need_its_place() -> None:
    _, shares = workers()
    here, there = (limiter(each, 2) for each in shares)

    def ask(at: Limiter, value: str, now: float) -> bool:
        return at.ask([(("client", value),)], now)[0]

    assert ask(here, "a", 1.0) and ask(there, "a", 2.0) and not ask(here, "a", 3.0)
    assert ask(there, "b", 4.0) and ask(here, "b", 5.0) and not ask(there, "b", 6.0)
    assert ask(here, "c", 7.0), "in the place of a, which was used before b"
    assert not ask(there, "b", 8.0)
    assert ask(there, "a", 9.0), "forgotten, and full again"


def gate(shares: Shares, *limits: ConnectionLimit) -> NetworkGate:
    filters = tuple(FilterConfig("limit", "connection_limit", limit) for limit in limits)
    chain = FilterChain("", ChainMatch(), TcpProxy("tcp", ()), filters)
    names = Names({})
    names.chain(Listener("l", Address("127.0.0.1", 80), chains=(chain,)).name, chain)
    state = FilterState(shares)
    state.names = names.by_identity
    made = compile_network(filters, state)
    assert made is not None
    return made


def test_equal_limits_in_two_places_are_two_limits() -> None:
    _, (one, two) = workers()
    connection = ConnectionInfo(1, ("127.0.0.1", 1), ("127.0.0.1", 2))
    gates = [gate(each, ConnectionLimit("x", 2), ConnectionLimit("x", 2)) for each in (one, two)]
    assert [each.enter(connection) is None for each in (*gates, *gates)] == [True, True, False, False]
    gates[0].leave()
    assert gates[1].enter(connection) is None
