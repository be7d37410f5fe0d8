"""Which hosts the DNS names of a certificate stand for (Envoy dnsNameMatch)."""

from __future__ import annotations

import pytest

from agent.http.request import PeerIdentity
from agent.table.matchers import StringMatch
from agent.table.tls import SanMatch
from agent.worker.certificates import compile_judge, covers


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("api.example.com", "api.example.com", True),
        ("API.example.com", "api.Example.com", True),
        ("*.example.com", "api.example.com", True),
        ("*.example.com", "a.b.example.com", False),
        ("*.example.com", "example.com", False),
        ("api-*.example.com", "api-1.example.com", True),
        ("api-*.example.com", "web-1.example.com", False),
        ("a*a.example.com", "a.example.com", False),
        ("*", "com", False),
        ("*", "localhost", False),
        ("api.*.com", "api.example.com", False),
        ("*.*.com", "api.example.com", False),
        ("xn--*.example.com", "xn--p1.example.com", False),
        ("*.example.com\0.evil.example", "api.example.com", False),
    ],
)
def test_a_wildcard_stands_within_the_first_label_only(pattern: str, host: str, expected: bool) -> None:
    assert covers(pattern, host) == expected


def test_a_certificate_for_a_wildcard_serves_the_name_that_was_called() -> None:
    judge = compile_judge([SanMatch("dns", StringMatch("exact", "api.example.com"))])
    assert judge is not None
    assert judge(PeerIdentity(dns_sans=("www.example.com", "*.example.com")))
    assert not judge(PeerIdentity(dns_sans=("www.example.com", "*.example.org")))
    assert not judge(PeerIdentity(uri_sans=("*.example.com",)))
