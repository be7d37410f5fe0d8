"""The life of a request as a transcript: what the client and the upstream see, and the one line in the log."""

from __future__ import annotations

from pathlib import Path

from agent.upstream import reset
from tests.unit.agent_worker.stage import GET, OK, Stage, status


def staged(tmp_path: Path, routes: str) -> Stage:
    return Stage(tmp_path, routes)


def test_a_request_goes_out_on_a_connection_of_the_pool_and_the_next_one_takes_it_again(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    upstream = stage.dials.accept()
    request = upstream.take()
    assert request.startswith(b"GET /x HTTP/1.1\r\nhost: a\r\n")
    assert b"x-envoy-expected-rq-timeout-ms: 15000" in request
    upstream.owner.received(OK)
    assert client.take().endswith(b"\r\n\r\nhi")
    stage.turn()
    client.owner.received(GET)
    if stage.dials.asked:  # the other host of the cluster has no connection yet
        stage.dials.accept().owner.received(OK)
        client.take()
        client.owner.received(GET)
    assert not stage.dials.asked
    assert upstream.take().startswith(b"GET /x")
    assert set(stage.logged()) == {"/x 200 - via_upstream"}


def test_nobody_answers_on_the_upstream_port(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    stage.dials.refuse(reset.CONNECT_FAILURE, "delayed connect error: Connection refused")
    assert status(client) == 503
    assert client.sent.endswith(b"reset reason: remote connection failure")
    assert stage.logged() == [
        "/x 503 UF upstream_reset_before_response_started"
        "{remote_connection_failure|delayed_connect_error:_Connection_refused}"
    ]


def test_a_failed_response_is_tried_again_after_a_pause_with_the_body_sent_again(tmp_path: Path) -> None:
    stage = staged(tmp_path, "[{match: {prefix: /}, route: {cluster: a, retry_policy: {retry_on: 5xx}}}]")
    client = stage.client()
    client.owner.received(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc")
    first = stage.dials.accept()
    assert first.take().endswith(b"\r\n\r\nabc")
    first.owner.received(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
    assert client.sent == b""
    assert not stage.dials.asked
    stage.later(0.025)
    second = stage.dials.accept() if stage.dials.asked else first
    assert second.take().endswith(b"\r\n\r\nabc")
    second.owner.received(OK)
    assert status(client) == 200
    assert stage.space.clusters["a"].breakers[0].retries == 0
    stage.close()


def test_a_response_without_a_body_that_is_tried_again_leaves_its_connection_usable(tmp_path: Path) -> None:
    stage = staged(tmp_path, "[{match: {prefix: /}, route: {cluster: a, retry_policy: {retry_on: 5xx}}}]")
    client = stage.client()
    client.owner.received(GET)
    first = stage.dials.accept()
    first.take()
    first.owner.received(b"HTTP/1.1 503 No\r\ncontent-length: 0\r\n\r\n")
    stage.later(0.025)
    assert not first.closed
    second = stage.dials.accept() if stage.dials.asked else first
    assert second.take().startswith(b"GET /x ")
    second.owner.received(OK)
    assert status(client) == 200
    stage.close()


def test_retries_end(tmp_path: Path) -> None:
    stage = staged(tmp_path, "[{match: {prefix: /}, route: {cluster: a, retry_policy: {retry_on: reset}}}]")
    client = stage.client()
    client.owner.received(GET)
    for _ in range(2):
        stage.dials.accept().owner.lost("connection reset")
        stage.later(0.3)
    assert client.sent.endswith(b"retried and the latest reset reason: connection termination")
    assert stage.logged() == ["/x 503 URX,UC upstream_reset_before_response_started{connection_termination}"]
    stage.close()


def test_a_route_timeout_answers_504_and_leaves_the_upstream(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    upstream = stage.dials.accept()
    stage.later(14.9)
    assert client.sent == b""
    stage.later(0.2)
    assert status(client) == 504
    assert upstream.closed
    assert stage.logged() == ["/x 504 UT response_timeout"]
    assert stage.space.clusters["a"].breakers[0].requests == 0


def test_a_client_that_leaves_takes_its_request_along(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    upstream = stage.dials.accept()
    client.owner.ended()
    assert upstream.closed
    assert stage.logged() == ["/x 0 DC downstream_remote_disconnect"]
    assert not stage.space.connections()


def test_a_client_that_leaves_before_there_is_a_connection_leaves_the_queue(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    client.owner.lost("connection reset")
    upstream = stage.dials.accept()
    assert upstream.take() == b""
    assert not upstream.closed  # kept for others
    assert stage.space.clusters["a"].breakers[0].pending == 0


def test_a_slow_client_holds_the_upstream_back(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    upstream = stage.dials.accept()
    client.full = True
    upstream.owner.received(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
    assert upstream.paused
    client.full = False
    client.owner.drained()
    assert not upstream.paused
    upstream.owner.received(b"cd")
    assert client.sent.endswith(b"\r\n\r\nabcd")


def test_a_body_that_nobody_takes_yet_is_held_back_at_the_limit(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 10000\r\n\r\n" + b"x" * 5000)
    assert client.paused
    upstream = stage.dials.accept()
    assert not client.paused
    assert upstream.take().endswith(b"x" * 5000)
    upstream.full = True
    client.owner.received(b"x" * 1000)
    assert client.paused
    upstream.full = False
    upstream.owner.drained()
    assert not client.paused


def test_pipelined_requests_are_answered_in_order_and_wait_outside(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET + GET.replace(b"/x", b"/y"))
    upstreams = [stage.dials.accept()]
    client.owner.received(GET.replace(b"/x", b"/z"))
    assert client.paused
    for path in (b"/x", b"/y", b"/z"):
        if stage.dials.asked:
            upstreams.append(stage.dials.accept())
        busy = [upstream for upstream in upstreams if upstream.sent]
        assert len(busy) == 1
        assert busy[0].take().startswith(b"GET " + path)
        busy[0].owner.received(OK)
        assert client.take().endswith(b"hi")
        stage.turn()
    assert not client.paused
    assert [line.split()[0] for line in stage.logged()] == ["/x", "/y", "/z"]


def test_hundreds_of_pipelined_requests_that_are_answered_at_once(tmp_path: Path) -> None:
    stage = staged(
        tmp_path, '[{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: "d"}}}]'
    )
    client = stage.client()
    client.owner.received(GET * 900)
    seen = [client.sent.count(b"HTTP/1.1 200 OK")]
    while stage.turn():
        assert client.paused or len(seen) == 900 // 16
        seen.append(client.sent.count(b"HTTP/1.1 200 OK"))
    assert seen[-1] == 900
    assert not client.paused
    steps = [after - before for before, after in zip([0, *seen], seen, strict=False)]
    assert max(steps) <= 17, "one client was answered more often than its share of a turn"
    stage.close()


def test_a_client_that_does_not_read_is_answered_no_more(tmp_path: Path) -> None:
    stage = staged(
        tmp_path, '[{match: {prefix: /}, direct_response: {status: 200, body: {inline_string: "d"}}}]'
    )
    client = stage.client()
    client.owner.received(GET)
    client.full = True
    client.owner.received(GET * 900)
    while stage.turn():
        pass
    assert client.sent.count(b"HTTP/1.1 200 OK") <= 2
    assert client.paused
    client.full = False
    client.owner.drained()
    while stage.turn():
        pass
    assert client.sent.count(b"HTTP/1.1 200 OK") == 901
    assert not client.paused
    stage.close()


def test_informational_heads_and_tiny_chunks_are_read_a_share_at_a_time(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    upstream = stage.dials.accept()
    upstream.owner.received(b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 1000)
    assert upstream.paused
    turns = 0
    while stage.turn():
        turns += 1
    assert turns >= 1000 // 32
    assert not upstream.paused
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    upstream.owner.received(head + b"1\r\nx\r\n" * 2000)
    assert client.sent.partition(b"\r\n\r\n")[2].count(b"x") < 200
    while stage.turn():
        turns += 1
    upstream.owner.received(b"0\r\n\r\n")
    sent = client.take().partition(b"\r\n\r\n")[2]
    assert sent.count(b"x") == 2000
    assert sent.count(b"\r\n") < 100, "what came together did not leave together"
    assert sent.endswith(b"0\r\n\r\n")
    assert not upstream.paused


def test_a_refused_client_is_not_read_any_further(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(b"GARBAGE\r\n\r\n")
    assert client.take().startswith(b"HTTP/1.1 400")
    client.owner.received(b"x" * 65536)
    assert client.paused


def test_a_client_that_leaves_while_nothing_is_read_of_it_is_let_go(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET + GET)
    client.owner.received(GET)
    assert client.paused
    upstream = stage.dials.accept()
    client.owner.hung_up(False)
    assert client.closed
    assert upstream.closed
    assert [line.split()[2] for line in stage.logged()] == ["DC"]


def test_the_proxy_says_continue_by_itself(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(b"POST /x HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
    assert client.take() == b"HTTP/1.1 100 Continue\r\n\r\n"
    upstream = stage.dials.accept()
    assert b"\r\nexpect:" not in upstream.take()


UPGRADE = b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"


def test_nothing_follows_an_upgrade_before_the_upstream_agrees(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(UPGRADE + b"early")
    client.owner.received(b" bird")
    assert client.paused  # what is sent before the answer waits outside, however much it is
    upstream = stage.dials.accept()
    assert upstream.take().endswith(b"\r\n\r\n")
    upstream.owner.received(SWITCHED + b"hello")
    assert not client.paused
    assert upstream.take() == b"early bird"
    assert client.take().endswith(b"\r\n\r\nhello")
    client.owner.received(b"up")
    upstream.owner.received(b"down")
    assert (upstream.take(), client.take()) == (b"up", b"down")
    upstream.owner.ended()
    assert client.closed


def test_what_follows_a_refused_upgrade_is_thrown_away(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(UPGRADE + b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
    upstream = stage.dials.accept()
    upstream.take()
    upstream.owner.received(b"HTTP/1.1 403 No\r\ncontent-length: 0\r\n\r\n")
    assert status(client) == 403
    assert b"connection: close" in client.sent
    assert upstream.closed
    stage.later(2.0)
    assert client.closed
    assert [line.split()[0] for line in stage.logged()] == ["/ws"]


def test_an_upstream_that_breaks_the_protocol_is_a_502(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    upstream = stage.dials.accept()
    upstream.owner.received(b"GARBAGE\r\n\r\n")
    assert status(client) == 502
    assert upstream.closed
    assert stage.logged() == ["/x 502 UPE upstream_reset_before_response_started{protocol_error}"]


def test_bytes_beyond_a_response_cost_the_connection(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    upstream = stage.dials.accept()
    upstream.owner.received(OK + b"HTTP/1.1 200 smuggled\r\n\r\n")
    assert client.sent.endswith(b"\r\n\r\nhi")
    assert upstream.closed


def test_a_response_that_is_cut_off_is_cut_off_for_the_client(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(GET)
    upstream = stage.dials.accept()
    upstream.owner.received(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n")
    upstream.owner.ended()
    assert client.sent.endswith(b"2\r\nhi\r\n")
    stage.later(2.0)
    assert client.closed
    assert stage.logged() == ["/x 200 UPE upstream_reset_after_response_started{protocol_error}"]


def test_an_early_response_closes_the_connection(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nabc")
    upstream = stage.dials.accept()
    upstream.owner.received(OK)
    assert b"connection: close" in client.sent
    assert upstream.closed
    stage.later(2.0)
    assert client.closed


def test_broken_http_is_answered_and_logged_without_a_request(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(b"GARBAGE\r\n\r\n")
    assert client.sent.endswith(b"\r\n\r\nBad Request")
    assert stage.logged() == ["- 400 DPE http1.codec_error"]
    stage.later(2.0)
    assert client.closed


def test_an_idle_connection_is_wound_down(stage: Stage) -> None:
    client = stage.client()
    stage.later(3600.0)
    assert not client.closed  # a request may be on its way: Envoy's drain time runs
    stage.later(6.0)
    assert client.closed


def test_half_a_head_runs_into_the_idle_timeout(stage: Stage) -> None:
    client = stage.client()
    client.owner.received(b"GET / HTTP/1.1\r\nHo")
    stage.later(301.0)
    assert status(client) == 408


# Tables
