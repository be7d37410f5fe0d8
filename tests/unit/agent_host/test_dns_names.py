"""Mesh names: which questions are ours, and the exact kind of answer each gets."""

from __future__ import annotations

import dns.flags
import dns.message
import dns.name
import dns.rcode
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.host.dns.names import Addresses, Names, answer, failure, question_end

NAMES = Names(
    {
        "reviews.default.svc.cluster.local": Addresses.of(
            ["240.240.0.1", "2001:2::1", "240.240.0.1", "nonsense"]
        ),
        "ratings.other.svc.cluster.local": Addresses.of(["240.240.0.2"]),
        "api.example.com": Addresses.of(["240.240.0.3"]),
        "*.wild.example.com": Addresses.of(["240.240.0.4"]),
        "many.default.svc.cluster.local": Addresses.of(f"10.0.{n // 250}.{n % 250 + 1}" for n in range(300)),
    },
    {"old-name.example.com": "reviews.default.svc.cluster.local"},
    "default",
    "cluster.local",
)


def ask(
    name: str, kind: str = "A", *, stream: bool = False, edns: bool = False, rotation: int = 0
) -> dns.message.Message:
    query = dns.message.make_query(name, kind, use_edns=0 if edns else -1)
    wire = answer(query.to_wire(), NAMES, stream=stream, rotation=rotation)
    assert wire is not None, "passed on"
    response = dns.message.from_wire(wire)
    assert query.is_response(response)
    return response


def addresses(response: dns.message.Message) -> list[str]:
    return [rdata.to_text() for rrset in response.answer for rdata in rrset]


@pytest.mark.parametrize(
    "name",
    [
        "reviews",
        "reviews.default",
        "reviews.default.svc",
        "reviews.default.svc.cluster.local",
        "REVIEWS.Default.svc.CLUSTER.local",
        "old-name.example.com",
    ],
)
def test_a_service_is_known_by_its_full_short_and_alternate_names(name: str) -> None:
    response = ask(name)
    assert addresses(response) == ["240.240.0.1"]
    assert response.answer[0].ttl == 30
    assert response.answer[0].name == dns.name.from_text(name)
    assert addresses(ask(name, "AAAA")) == ["2001:2::1"]


def test_another_namespaces_service_needs_its_namespace() -> None:
    assert addresses(ask("ratings.other")) == ["240.240.0.2"]
    assert answer(dns.message.make_query("ratings", "A").to_wire(), NAMES, stream=False) is None


def test_a_known_name_without_such_an_address_has_no_data_but_exists() -> None:
    for name, kind in (
        ("ratings.other", "AAAA"),
        ("reviews", "MX"),
        ("reviews", "HTTPS"),
        ("api.example.com", "AAAA"),
    ):
        response = ask(name, kind)
        assert response.rcode() == dns.rcode.NOERROR
        assert not response.answer


def test_an_unknown_name_that_only_the_mesh_could_give_does_not_exist() -> None:
    assert ask("nobody.default.svc.cluster.local").rcode() == dns.rcode.NXDOMAIN
    assert ask("default.svc.cluster.local").rcode() == dns.rcode.NOERROR, "names exist below it"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("example.com", "A"),
        ("nobody", "A"),
        ("www.google.com", "AAAA"),
        ("api.example.com", "MX"),
        (".", "NS"),
    ],
)
def test_everything_else_is_passed_on(name: str, kind: str) -> None:
    assert answer(dns.message.make_query(name, kind).to_wire(), NAMES, stream=False) is None


def test_address_hints_do_not_lead_past_the_mesh() -> None:
    assert not ask("api.example.com", "HTTPS").answer


def test_wildcards_match_names_below_them() -> None:
    assert addresses(ask("a.wild.example.com")) == ["240.240.0.4"]
    assert addresses(ask("a.b.wild.example.com")) == ["240.240.0.4"]
    assert answer(dns.message.make_query("wild.example.com", "A").to_wire(), NAMES, stream=False) is None


def test_too_long_an_answer_is_truncated_over_udp_and_whole_over_tcp() -> None:
    for edns in (False, True):
        short = ask("many", edns=edns)
        assert short.flags & dns.flags.TC
        assert not short.answer
    assert len(addresses(ask("many", stream=True))) == 300


def test_lists_of_addresses_are_turned_round() -> None:
    first = addresses(ask("many", stream=True))
    assert addresses(ask("many", stream=True, rotation=1)) == [*first[1:], first[0]]


def test_edns_is_answered_only_when_asked_with() -> None:
    assert ask("reviews", edns=True).edns == 0
    assert ask("reviews").edns == -1


def test_before_the_first_table_mesh_names_fail_instead_of_not_existing() -> None:
    names = Names({}, {}, "default", "cluster.local", known=False)
    wire = answer(
        dns.message.make_query("reviews.default.svc.cluster.local", "A").to_wire(), names, stream=False
    )
    assert wire is not None
    assert dns.message.from_wire(wire).rcode() == dns.rcode.SERVFAIL


def test_a_failure_repeats_the_question() -> None:
    query = dns.message.make_query("example.com", "A")
    wire = failure(query.to_wire())
    assert wire is not None
    response = dns.message.from_wire(wire)
    assert query.is_response(response)
    assert response.rcode() == dns.rcode.SERVFAIL


@settings(deadline=None)  # the machine may be busy
@given(st.binary(max_size=80))
def test_no_bytes_can_break_it(data: bytes) -> None:
    answer(data, NAMES, stream=False)
    failure(data)
    question_end(data)


@settings(deadline=None)  # the machine may be busy
@given(st.data())
def test_no_damaged_query_can_break_it(data: st.DataObject) -> None:
    wire = bytearray(dns.message.make_query("reviews.default.svc.cluster.local", "A", use_edns=0).to_wire())
    for _ in range(data.draw(st.integers(1, 4))):
        wire[data.draw(st.integers(0, len(wire) - 1))] = data.draw(st.integers(0, 255))
    got = answer(bytes(wire[: data.draw(st.integers(0, len(wire)))]), NAMES, stream=True)
    assert got is None or got[2] & 0x80


def test_a_mesh_name_comes_before_the_hosts_own_search_domains() -> None:
    names = Names(
        {"reviews.default.svc.cluster.local": Addresses.of(["240.240.0.1"]), "*.corp.example": Addresses.of(["240.240.0.9"])},
        {}, "default", "cluster.local",
    )  # fmt: skip
    assert names.find("reviews.corp.example", ("corp.example",)) == "reviews.default.svc.cluster.local"
    assert names.find("other.corp.example", ("corp.example",)) == "*.corp.example"
    assert names.find("reviews.corp.example") == "*.corp.example"
    assert names.find("reviews.elsewhere.example", ("corp.example",)) is None


def test_users_without_a_workload_share_the_names_that_only_the_mesh_gives_out() -> None:
    shop = Names(
        {"cart.shop.svc.cluster.local": Addresses.of(["240.240.0.1"]), "www.example": Addresses.of(["240.240.0.2"])},
        {}, "shop", "cluster.local",
    )  # fmt: skip
    bank = Names(
        {"ledger.bank.svc.cluster.local": Addresses.of(["240.240.0.3"])}, {}, "bank", "cluster.local"
    )
    shared = Names.shared([shop, bank])
    assert shared.find("cart") == "cart.shop.svc.cluster.local"
    assert shared.find("ledger") == "ledger.bank.svc.cluster.local"
    assert shared.find("www.example") is None
    unknown = Names({}, {}, "bank", "cluster.local", known=False)
    assert not Names.shared([shop, unknown]).known
