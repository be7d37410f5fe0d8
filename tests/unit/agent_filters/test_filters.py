"""What filters remember and how they use chance and time: the rest is in the recorded decisions."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from agent.filters import FilterState, compile_steps
from agent.filters.network import Refusal, compile_network
from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, Delay, LocalReply, PeerIdentity, RequestContext, ResponseHead
from agent.table.filter_config import (
    ConnectionLimit,
    Descriptor,
    Fault,
    FaultAbort,
    FaultDelay,
    LocalRateLimit,
    RateLimitActions,
    Rbac,
    RbacPolicy,
    RbacRules,
    Rule,
    SetMetadata,
    TokenBucket,
)
from agent.table.listener import FilterConfig
from agent.table.matchers import EVERYTHING, Fraction, MetadataMatch, StringMatch, ValueMatch
from agent.table.route import FilterOverride, RouteScope


def request(
    *, headers: dict[str, str] | None = None, random: int = 0, now: float = 0.0, peer: PeerIdentity | None = None,
    tls: bool = False, remote: str = "10.0.0.9", connection: int = 1,
) -> RequestContext:  # fmt: skip
    """A request to /x."""
    info = ConnectionInfo(connection, (remote, 1), ("10.0.0.1", 80), tls=tls or peer is not None, peer=peer)
    fields = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    return RequestContext(b"GET", b"/x", b"host", Headers(fields), info, random=random, started_at=now)


def run(
    ctx: RequestContext,
    *filters: FilterConfig,
    state: FilterState | None = None,
    scope: RouteScope | None = None,
) -> Any:
    """What the chain says first: a reply, a delay, or None."""
    steps = compile_steps(filters, scope or RouteScope(), state)
    for step in steps.request:
        outcome = step(ctx)
        if outcome is not None:
            return outcome
    return None


def rbac(*principals: Rule, action: str = "allow", shadow: bool = False) -> FilterConfig:
    """One policy for anything that these principals ask."""
    rules = RbacRules(action, (RbacPolicy("p", (Rule("any"),), principals),))
    return FilterConfig("rbac", "rbac", Rbac(shadow=rules) if shadow else Rbac(rules))


def allowed(outcome: Any) -> bool:
    """Did the request pass?"""
    return not isinstance(outcome, LocalReply)


SPIFFE = PeerIdentity(uri_sans=("spiffe://td/ns/a/sa/b",), dns_sans=("b.a",), subject="CN=b")


@pytest.mark.parametrize(
    ("match", "passes"),
    [
        (StringMatch("exact", "spiffe://td/ns/a/sa/b"), True),
        (StringMatch("exact", "spiffe://td/ns/a/sa/bb"), False),
        (StringMatch("suffix", "/sa/b"), True),
        (StringMatch("exact", "b.a"), True),
        (StringMatch("exact", "CN=b"), True),
        (StringMatch("regex", ".*/ns/a/.*"), True),
        (StringMatch("regex", "/ns/a/"), False),
        (None, True),
    ],
)
def test_a_principal_is_the_peers_verified_name(match: StringMatch | None, passes: bool) -> None:
    chain = rbac(Rule("authenticated", match))
    assert allowed(run(request(peer=SPIFFE), chain)) is passes
    assert not allowed(run(request(), chain)), "plain text has no principal"


def test_shadow_rules_are_noted_and_let_everything_pass() -> None:
    ctx = request()
    assert run(ctx, rbac(Rule("not", Rule("any")), shadow=True)) is None
    assert ctx.dynamic_metadata == {"envoy.filters.http.rbac": {"shadow_engine_result": "denied"}}


def test_rbac_reads_metadata_that_an_earlier_filter_set() -> None:
    noted = FilterConfig("m", "set_metadata", SetMetadata((("ns", {"user": {"role": "admin"}}, False),)))
    role = MetadataMatch("ns", ("user", "role"), ValueMatch("string", StringMatch("exact", "admin")))
    assert allowed(run(request(), noted, rbac(Rule("metadata", role))))
    assert not allowed(run(request(), rbac(Rule("metadata", role))))


def test_a_denial_names_its_policy() -> None:
    rules = RbacRules("deny", (RbacPolicy("no one", (Rule("any"),), (Rule("any"),)),))
    reply = run(request(), FilterConfig("rbac", "rbac", Rbac(rules)))
    assert (reply.status, reply.details) == (403, "rbac_access_denied_matched_policy[no_one]")


def test_faults_hit_their_share_and_delay_and_abort_draw_apart() -> None:
    half = Fraction(50)
    chain = FilterConfig("f", "fault", Fault(FaultDelay(2.0, half), FaultAbort(503, None, half)))
    steps = compile_steps((chain,)).request
    outcomes: Counter[tuple[bool, bool]] = Counter()
    for number in range(4000):
        ctx = request(random=number * 0x9E3779B97F4A7C15 % (1 << 64))
        delayed, aborted = (step(ctx) for step in steps)
        assert delayed is None or delayed == Delay(2.0)
        outcomes[delayed is not None, aborted is not None] += 1
    assert all(850 < count < 1150 for count in outcomes.values()), outcomes
    assert len(outcomes) == 4


def test_active_faults_are_bounded_until_their_requests_end() -> None:
    fault = Fault(FaultDelay(1.0, EVERYTHING), max_active=1)
    chain, state = FilterConfig("f", "fault", fault), FilterState()
    first, second, third = request(), request(), request()
    assert run(first, chain, state=state) == Delay(1.0)
    assert run(second, chain, state=state) is None
    for release in first.at_end or []:
        release()
    assert run(third, chain, state=state) == Delay(1.0)


def limit(**fields: Any) -> FilterConfig:
    """A rate limit of two requests in ten seconds."""
    value = LocalRateLimit(bucket=TokenBucket(2, 2, 10.0), enabled=EVERYTHING, enforced=EVERYTHING, **fields)
    return FilterConfig("l", "local_rate_limit", value)


def test_a_bucket_empties_and_fills_with_time() -> None:
    chain, state = limit(), FilterState()
    answers = [
        allowed(run(request(now=now), chain, state=state))
        for now in (0, 0, 0, 4.9, 5.1, 5.2, 1000, 1000, 1000)
    ]
    assert answers == [True, True, False, False, True, False, True, True, False]


def test_the_same_configuration_keeps_its_bucket_over_a_recompilation_and_another_does_not() -> None:
    state, chain = FilterState(), limit()
    assert [allowed(run(request(), chain, state=state)) for _ in range(3)] == [True, True, False]
    assert not allowed(run(request(), chain, state=state)), "compiled again, same value"
    assert allowed(run(request(), limit(), state=state)), "an equal value of another table"


def test_a_routes_own_limit_has_its_own_bucket() -> None:
    state, chain, own = FilterState(), limit(), limit().value
    scope = RouteScope({"l": (FilterOverride(own),)})
    assert [allowed(run(request(), chain, state=state)) for _ in range(3)] == [True, True, False]
    assert [allowed(run(request(), chain, state=state, scope=scope)) for _ in range(3)] == [True, True, False]


def test_a_limit_for_each_connection_counts_apart() -> None:
    state, chain = FilterState(), limit(per_connection=True)
    answers = [allowed(run(request(connection=number), chain, state=state)) for number in (1, 1, 1, 2)]
    assert answers == [True, True, False, True]


def test_descriptors_have_their_own_buckets_and_any_value_gets_one_each() -> None:
    action = RateLimitActions(
        (("request_headers", {"name": b"x-user", "key": "user", "skip_if_absent": False}),)
    )
    descriptor = Descriptor((("user", ""),), TokenBucket(1, 1, 60.0))
    value = LocalRateLimit(
        enabled=EVERYTHING,
        enforced=EVERYTHING,
        descriptors=(descriptor,),
        rate_limits=(action,),
        max_dynamic_descriptors=2,
    )
    chain, state = FilterConfig("l", "local_rate_limit", value), FilterState()
    users = ["a", "b", "a", "", "", "c", "d", "a"]
    answers = [
        allowed(run(request(headers={"x-user": user} if user else {}), chain, state=state)) for user in users
    ]
    assert answers == [True, True, False, True, True, True, True, True]


def test_a_disabled_filter_leaves_no_step() -> None:
    chain = FilterConfig("l", "local_rate_limit", limit().value, disabled=True)
    assert compile_steps((chain,)).request == ()
    off = RouteScope({"l": (FilterOverride(None, disabled=True),)})
    assert compile_steps((limit(),), off).request == ()


def test_response_steps_run_from_the_last_filter_to_the_first() -> None:
    marks = [FilterConfig(name, "header_mutation", _appending(name)) for name in ("first", "second")]
    head = ResponseHead(200, Headers())
    for step in compile_steps(marks).response:
        step(request(), head)
    assert head.headers.get_all(b"x-by") == [b"second", b"first"]


def _appending(value: str) -> Any:
    from agent.table.filter_config import HeaderMutation, Mutation
    from agent.table.route import HeaderOption

    return HeaderMutation(response=(Mutation("append", HeaderOption(b"x-by", value)),))


def test_a_gate_lets_connections_in_up_to_its_limit_and_out_again() -> None:
    chain = [FilterConfig("c", "connection_limit", ConnectionLimit("c", 1, delay=0.5))]
    gate = compile_network(chain, FilterState())
    assert gate is not None
    info = request().connection
    assert gate.enter(info) is None
    assert gate.enter(info) == Refusal("connection_limit", 0.5)
    gate.leave()
    assert gate.enter(info) is None


def test_a_gate_judges_the_peer() -> None:
    rules = Rbac(
        RbacRules(
            "allow", (RbacPolicy("p", (Rule("destination_port", (80, 81)),), (Rule("authenticated"),)),)
        )
    )
    gate = compile_network([FilterConfig("r", "network_rbac", rules)], FilterState())
    assert gate is not None
    assert gate.enter(request(peer=SPIFFE).connection) is None
    refusal = gate.enter(request().connection)
    assert refusal is not None and refusal.details == "rbac_access_denied_matched_policy[none]"
