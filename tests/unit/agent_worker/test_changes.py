"""A new configuration while connections and requests are in progress: routes, endpoints, TLS, listeners, ages."""

from __future__ import annotations

from pathlib import Path

from agent.table.bootstrap import load
from tests.unit.agent_worker.stage import GET, OK, ROUTES, Stage, Wire, status


def staged(tmp_path: Path, routes: str) -> Stage:
    return Stage(tmp_path, routes)


def test_new_routes_reach_open_connections_and_a_request_keeps_the_plan_that_it_got(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    upstream = stage.dials.accept()
    stage.apply('[{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: "new"}}}]')
    upstream.owner.received(OK)
    assert client.take().endswith(b"hi")
    other = stage.client()
    other.owner.received(GET)
    assert other.sent.endswith(b"new")


def test_a_change_of_endpoints_alone_keeps_stations_and_pools(stage: Stage) -> None:
    station, pools = (
        stage.space.every_station(),
        {host.name: host.pool for host in stage.space.clusters["a"].hosts},
    )
    stage.apply(change=lambda text: text.replace("10.0.0.2", "10.0.0.3"))
    hosts = {host.name: host.pool for host in stage.space.clusters["a"].hosts}
    assert set(hosts) == {"10.0.0.1:80", "10.0.0.3:80"}
    assert hosts["10.0.0.1:80"] is pools["10.0.0.1:80"]
    assert stage.space.every_station() == station


def over_tls(text: str) -> str:
    """The upstream wants TLS from now on."""
    return text.replace(
        "    type: STATIC\n",
        "    type: STATIC\n"
        "    transport_socket: {name: tls, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets"
        ".tls.v3.UpstreamTlsContext}}\n",
    )


def test_nothing_follows_in_plain_text_on_a_connection_that_was_busy_when_tls_was_asked_for(
    stage: Stage,
) -> None:
    client = stage.client()
    client.owner.received(GET)
    upstream = stage.dials.accept()
    stage.apply(change=over_tls)
    upstream.take()
    upstream.owner.received(OK)
    assert client.take().endswith(b"hi")
    stage.turn()
    assert upstream.closed
    client.owner.received(GET)
    assert upstream.take() == b""
    (host, _), *_ = stage.dials.asked
    assert host.tls is not None


def test_a_connection_that_came_up_before_tls_was_asked_for_takes_no_request(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    _, caller = stage.dials.asked.pop()
    stage.apply(change=over_tls)
    early = Wire(stage.reactor, caller)
    caller.connected(early, None)
    assert early.closed and not early.sent
    assert stage.dials.asked[0][0].tls is not None
    stage.dials.accept().owner.received(OK)
    assert status(client) == 200


def test_health_checks_do_not_go_on_in_plain_text_either(tmp_path: Path) -> None:
    stage = Stage(
        tmp_path,
        change=lambda text: text.replace(
            "    type: STATIC\n",
            "    type: STATIC\n"
            "    health_checks: [{timeout: 1s, interval: 5s, no_traffic_interval: 5s, unhealthy_threshold: 1,"
            " healthy_threshold: 1, http_health_check: {path: /health}}]\n",
        ),
    )
    stage.later(0)
    first = [stage.dials.accept() for _ in range(2)]
    for check in first:
        assert check.take().startswith(b"GET /health ")
        check.owner.received(OK)
    stage.apply(change=over_tls)
    stage.later(6)
    assert [check.closed for check in first] == [True, True]
    assert [host.tls is not None for host, _ in stage.dials.asked] == [True, True]
    stage.close()


def test_a_connection_past_its_age_ends_with_the_response_on_it(tmp_path: Path) -> None:
    stage = Stage(
        tmp_path,
        change=lambda text: text.replace(
            "    type: STATIC\n",
            "    type: STATIC\n"
            "    typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': type."
            "googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http_protocol_options:"
            " {}}, common_http_protocol_options: {max_connection_duration: 5s}}}\n",
        ),
    )
    client = stage.client()
    client.owner.received(GET)
    upstream = stage.dials.accept()
    stage.later(6)
    assert not upstream.closed
    upstream.owner.received(OK)
    assert upstream.closed
    assert client.take().endswith(b"hi")
    stage.close()


def test_connections_of_a_listener_that_left_end_with_their_response(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    upstream = stage.dials.accept()
    stage.apply(change=lambda text: text.replace("name: main", "name: other").replace("10000", "10001"))
    upstream.owner.received(OK)
    assert b"connection: close" in client.sent
    assert client.closed


def test_a_listener_that_cannot_be_used_stays_as_it_was(stage: Stage) -> None:
    before = stage.space.every_station()
    table = load(stage.text.replace("ROUTES", ROUTES).replace(str(stage.log), "/nowhere/at/all/log")).table
    refused = stage.space.apply(table)
    assert [(one.name, one.path) for one in refused] == [("main", "Listener[main].filter_chains[0]")]
    assert "nowhere" in refused[0].reason
    assert stage.space.every_station() == before
    assert str(stage.log) in str(stage.space.table.listeners["main"])
