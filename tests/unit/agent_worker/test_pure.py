"""The worker's pure parts: timers, the choice of a filter chain, first bytes, relays."""

from __future__ import annotations

import ssl
from ipaddress import ip_network
from math import inf

import pytest

from agent.table.listener import ChainMatch
from agent.tcp.relay import Relay
from agent.worker.chain_match import ChainIndex, Seen
from agent.worker.sniff import Hello, client_hello, http_version
from agent.worker.timers import Timers

# Timers


def test_a_deadline_moved_later_fires_once_and_late() -> None:
    timers, fired = Timers(), []
    timer = timers.timer(lambda: fired.append("now"))
    timer.set(1.0)
    timer.set(5.0)
    timers.run(4.9)
    assert not fired
    timers.run(5.0)
    timers.run(100.0)
    assert fired == ["now"]


def test_a_deadline_moved_earlier_fires_early() -> None:
    timers, fired = Timers(), []
    timer = timers.timer(lambda: fired.append("now"))
    timer.set(5.0)
    timer.set(1.0)
    assert timers.next_due() == 1.0
    timers.run(1.0)
    timers.run(5.0)
    assert fired == ["now"]


def test_a_cancelled_timer_can_be_set_again() -> None:
    timers, fired = Timers(), []
    timer = timers.timer(lambda: fired.append("now"))
    timer.set(1.0)
    timer.cancel()
    timers.run(2.0)
    assert (fired, timers.next_due()) == ([], inf)
    timer.set(3.0)
    timers.run(3.0)
    assert fired == ["now"]


def test_a_timer_that_is_moved_on_every_request_stays_one_entry() -> None:
    timers = Timers()
    timer = timers.timer(lambda: None)
    for second in range(1000):
        timer.set(second + 15.0)
    assert len(timers._heap) == 1


# Filter chains


def _seen(**more: object) -> Seen:
    return Seen(**{"local": ("10.0.0.1", 80), "remote": ("10.0.0.9", 5000), **more})  # type: ignore[arg-type]


MATCHES: list[tuple[ChainMatch, str]] = [
    (ChainMatch(destination_port=9080, transport_protocol="tls"), "9080 tls"),
    (ChainMatch(destination_port=9080), "9080"),
    (ChainMatch(prefix_ranges=(ip_network("10.0.0.0/8"),), server_names=("a.example",)), "a.example"),
    (ChainMatch(prefix_ranges=(ip_network("10.0.0.0/8"),), server_names=("*.example",)), "*.example"),
    (
        ChainMatch(prefix_ranges=(ip_network("10.0.0.0/8"),), application_protocols=("http/1.1", "h2c")),
        "http",
    ),
    (ChainMatch(prefix_ranges=(ip_network("10.0.0.0/8"),)), "ten"),
    (ChainMatch(source_type="same_ip_or_loopback"), "own"),
    (ChainMatch(), "any"),
]


@pytest.mark.parametrize(
    ("seen", "chain"),
    [
        (_seen(local=("10.0.0.1", 9080), transport="tls"), "9080 tls"),
        (_seen(local=("10.0.0.1", 9080)), "9080"),
        (_seen(transport="tls", server_name="a.example"), "a.example"),
        (_seen(transport="tls", server_name="b.c.example"), "*.example"),
        (_seen(protocols=("http/1.1",)), "http"),
        (_seen(), "ten"),
        (_seen(local=("192.0.2.1", 80), remote=("127.0.0.1", 1)), "own"),
        (_seen(local=("192.0.2.1", 80)), "any"),
    ],
)
def test_the_most_specific_chain_wins_criterion_by_criterion(seen: Seen, chain: str) -> None:
    assert ChainIndex(MATCHES, None).find(seen) == chain


def test_there_is_no_way_back_once_a_criterion_has_matched() -> None:
    """As in Envoy: port 9080 has chains, so those without a port are out, whatever else they say."""
    chains = [(ChainMatch(destination_port=9080, transport_protocol="tls"), "tls"), (ChainMatch(), "any")]
    assert ChainIndex(chains, "default").find(_seen(local=("10.0.0.1", 9080))) == "default"


# First bytes


def _hello(server_name: str, protocols: list[str]) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(protocols)
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=server_name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_a_client_hello_tells_name_and_protocols_however_it_is_cut() -> None:
    hello = _hello("Reviews.example", ["istio", "h2"])
    for end in range(len(hello)):
        assert client_hello(hello[:end]) is None
    assert client_hello(hello) == Hello(True, "reviews.example", ("istio", "h2"))


def test_other_bytes_are_not_tls_and_lies_about_lengths_hurt_nobody() -> None:
    assert client_hello(b"GET / HTTP/1.1\r\n") == Hello(False)
    assert client_hello(b"\x16\x03\x01\x00\x10\x01\xff\xff\xff" + b"\xff" * 20) == Hello(True)


@pytest.mark.parametrize(
    ("data", "version"),
    [
        (b"GET /x HTTP/1.1\r\nhost: a\r\n", "http/1.1"),
        (b"POST / HTTP/1.0\r\n", "http/1.0"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "h2c"),
        (b"PRI * HT", None),
        (b"GE", None),
        (b"GET /x HT", None),
        (b"\x00\x01", ""),
        (b"EHLO there\r\n", ""),
    ],
)
def test_http_is_told_by_its_first_line(data: bytes, version: str | None) -> None:
    assert http_version(data) == version


# Relays


class Side:
    def __init__(self) -> None:
        self.full = False
        self.story: list[object] = []

    def write(self, data: bytes) -> None:
        self.story.append(data)

    def finish(self) -> None:
        self.story.append("fin")

    def pause(self) -> None:
        self.story.append("pause")

    def resume(self) -> None:
        self.story.append("resume")


def test_early_bytes_wait_for_the_upstream_and_the_client_is_held_back() -> None:
    client, upstream = Side(), Side()
    relay = Relay(client)
    relay.client_data(b"early")
    assert client.story == ["pause"]
    relay.join(upstream)
    assert upstream.story == [b"early"]
    assert client.story == ["pause", "resume"]


def test_each_direction_ends_on_its_own() -> None:
    client, upstream = Side(), Side()
    relay = Relay(client)
    relay.join(upstream)
    relay.client_data(b"question")
    assert not relay.end_client()
    assert upstream.story == [b"question", "fin"]
    relay.upstream_data(b"answer")
    assert relay.end_upstream()
    assert client.story == ["resume", b"answer", "fin"]
    assert (relay.from_client, relay.from_upstream) == (8, 6)


def test_a_slow_side_holds_the_other_one_back() -> None:
    client, upstream = Side(), Side()
    relay = Relay(client)
    relay.join(upstream)
    client.full = True
    relay.upstream_data(b"much")
    assert upstream.story == ["pause"]
    relay.client_drained()
    assert upstream.story == ["pause", "resume"]
