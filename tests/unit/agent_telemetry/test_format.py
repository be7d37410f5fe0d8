"""The substitution formatter: what a user of Envoy's format strings sees."""

from __future__ import annotations

import json

import pytest

from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, PeerIdentity, RequestContext
from agent.table.cluster import Cluster
from agent.telemetry.format import DEFAULT_FORMAT, FormatError, compile_format, compile_json
from agent.telemetry.outcome import Outcome


def outcome_of_a_request() -> Outcome:
    connection = ConnectionInfo(
        id=7,
        remote=("10.0.0.9", 41000),
        local=("fd00::1", 9080),
        tls=True,
        peer=PeerIdentity(
            uri_sans=("spiffe://cluster.local/ns/default/sa/productpage",), subject="CN=x", sha256="ab"
        ),
        sni="reviews",
        tls_version="TLSv1.3",
        filter_chain="chain",
    )
    request = RequestContext(
        b"GET",
        b"/reviews/0?a=1&b=2",
        b"reviews:9080",
        Headers([(b"user-agent", b"curl/8"), (b"x-request-id", b"id-1"), (b"x-raw", b"caf\xc3\xa9\xff")]),
        connection,
    )
    request.request_id = b"id-1"
    request.client = ("192.0.2.1", 0)
    request.dynamic_metadata = {"ns": {"number": 3.0, "deep": {"b": True, "a": "x"}}}
    outcome = Outcome()
    outcome.request = request
    outcome.connection = connection
    outcome.protocol = "HTTP/1.1"
    outcome.response_code = 503
    outcome.response_headers = Headers([(b"x-envoy-upstream-service-time", b"4")])
    outcome.flags = ["UF", "URX"]
    outcome.details = "upstream_reset_before_response_started{connection failure}"
    outcome.cluster = Cluster(name="outbound|9080||reviews", discovery="eds", alt_stat_name="reviews")
    outcome.upstream_address = "[fd00::2]:9080"
    outcome.upstream_local = "[fd00::1]:50000"
    outcome.bytes_sent = 91
    outcome.received_at = 1481832756.1234
    outcome.started_at = 100.0
    outcome.request_done_at = 100.0015
    outcome.finished_at = 100.2509
    outcome.attempts = 2
    return outcome


def test_the_default_line_is_envoys() -> None:
    assert compile_format(DEFAULT_FORMAT)(outcome_of_a_request()) == (
        '[2016-12-15T20:12:36.123Z] "GET /reviews/0?a=1&b=2 HTTP/1.1" 503 UF,URX 0 91 250 4 '
        '"-" "curl/8" "id-1" "reviews:9080" "[fd00::2]:9080"\n'
    )


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("%START_TIME(%Y/%m/%dT%H:%M:%S%z %3f %s %E3S)%", "2016/12/15T20:12:36+0000 123 1481832756 36.123"),
        ("%START_TIME(%s.%6f)%", "1481832756.123400"),
        ("%START_TIME(%9f)%", "123400000"),
        ("%REQ(X-Missing?User-Agent):4%", "curl"),
        ("%REQ(HOST)% %REQ(:SCHEME)%", "reviews:9080 http"),
        ("%RESP(X-NOTHING)%%TRAILER(grpc-status)%", "--"),
        ("%RESPONSE_FLAGS_LONG%", "UpstreamConnectionFailure,UpstreamRetryLimitExceeded"),
        ("%RESPONSE_CODE_DETAILS%", "upstream_reset_before_response_started{connection_failure}"),
        (
            "%RESPONSE_CODE_DETAILS(ALLOW_WHITESPACES)%",
            "upstream_reset_before_response_started{connection failure}",
        ),
        ("%REQUEST_DURATION% %RESPONSE_DURATION%", "1 -"),
        ("%COMMON_DURATION(DS_RX_BEG:DS_RX_END:us)%", "1500"),
        ("%UPSTREAM_CLUSTER% %UPSTREAM_CLUSTER_RAW%", "reviews outbound|9080||reviews"),
        ("%UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT% %UPSTREAM_REMOTE_PORT%", "fd00::2 9080"),
        ("%UPSTREAM_HOST_NAME%", "[fd00::2]:9080"),
        ("%DOWNSTREAM_REMOTE_ADDRESS% %DOWNSTREAM_DIRECT_REMOTE_ADDRESS%", "192.0.2.1:0 10.0.0.9:41000"),
        ("%DOWNSTREAM_LOCAL_ADDRESS% %DOWNSTREAM_LOCAL_PORT%", "[fd00::1]:9080 9080"),
        ("%DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT%", "10.0.0.9"),
        ("%DOWNSTREAM_PEER_URI_SAN%", "spiffe://cluster.local/ns/default/sa/productpage"),
        ("%DOWNSTREAM_PEER_DNS_SAN% %DOWNSTREAM_PEER_FINGERPRINT_256%", "- ab"),
        ("%REQUESTED_SERVER_NAME% %FILTER_CHAIN_NAME% %DOWNSTREAM_TLS_VERSION%", "reviews chain TLSv1.3"),
        ("%CONNECTION_ID% %STREAM_ID% %UPSTREAM_REQUEST_ATTEMPT_COUNT%", "7 id-1 2"),
        ("%DYNAMIC_METADATA(ns:number)% %UPSTREAM_LOCAL_PORT%", "3 50000"),
        ("%DYNAMIC_METADATA(ns:deep)%", '{"a":"x","b":true}'),
        ("%DYNAMIC_METADATA(ns:deep:a)% %METADATA(ROUTE:ns:x)%", "x -"),
        ("%QUERY_PARAM(b)% %PATH(NQ)% %PATH%", "2 /reviews/0 /reviews/0?a=1&b=2"),
        ("%GRPC_STATUS%", "-"),
        ("100%% of %RESPONSE_CODE%", "100% of 503"),
        ("no operator", "no operator"),
    ],
)
def test_an_operator_prints_what_envoy_prints(source: str, line: str) -> None:
    assert compile_format(source)(outcome_of_a_request()) == line


def test_nothing_happened_yet_prints_dashes_or_nothing() -> None:
    source = (
        "%REQ(:METHOD)%|%PROTOCOL%|%UPSTREAM_HOST%|%DOWNSTREAM_REMOTE_ADDRESS%|%DURATION%|%RESPONSE_FLAGS%"
    )
    assert compile_format(source)(Outcome()) == "-|-|-|-|-|-"
    assert compile_format(source, omit_empty=True)(Outcome()) == "|||||-"


def test_bytes_that_are_not_text_reach_a_file_unchanged() -> None:
    line = compile_format("%REQ(X-RAW)%")(outcome_of_a_request())
    assert line.encode("utf-8", "surrogateescape") == b"caf\xc3\xa9\xff"


@pytest.mark.parametrize(
    ("source", "operator", "offset"),
    [
        ("a %NO_SUCH_THING% b", "NO_SUCH_THING", 2),
        ("%UPSTREAM_WIRE_BYTES_SENT%", "UPSTREAM_WIRE_BYTES_SENT", 0),
        ("%REQ%", "REQ", 0),
        ("%PROTOCOL(x)%", "PROTOCOL", 0),
        ("%DURATION:3%", "DURATION", 0),
        ("%REQ(A?B?C)%", "REQ", 0),
        ("%START_TIME(%n)%", "START_TIME", 0),
        ("%COMMON_DURATION(DS_RX_BEG:NOWHERE)%", "COMMON_DURATION", 0),
        ("50% of", "%", 2),
    ],
)
def test_what_is_not_understood_is_refused_with_its_place(source: str, operator: str, offset: int) -> None:
    with pytest.raises(FormatError) as caught:
        compile_format(source)
    assert (caught.value.operator, caught.value.offset) == (operator, offset)


def test_json_keeps_types_and_sorts_keys() -> None:
    tree = {
        "status": "%RESPONSE_CODE%",
        "from": "%DOWNSTREAM_REMOTE_PORT%",
        "agent": "%REQ(USER-AGENT)%",
        "mixed": "%PROTOCOL% %RESPONSE_CODE%",
        "nobody": "%REQ(X-MISSING)%",
        "deep": {"list": ["%ROUTE_NAME%", "%BYTES_SENT%"], "metadata": "%DYNAMIC_METADATA(ns)%"},
        "raw": "%REQ(X-RAW)%",
    }
    line = compile_json(tree)(outcome_of_a_request())
    assert line.endswith("}\n")
    assert json.loads(line) == {
        "status": 503,
        "from": 0,
        "agent": "curl/8",
        "mixed": "HTTP/1.1 503",
        "nobody": None,
        "deep": {"list": [None, 91], "metadata": {"number": 3, "deep": {"a": "x", "b": True}}},
        "raw": "cafÃ©ÿ",
    }
    assert list(json.loads(line)) == sorted(tree)
    without = json.loads(compile_json(tree, omit_empty=True)(outcome_of_a_request()))
    assert "nobody" not in without
    assert without["deep"]["list"] == [91]
