"""The certificates that a worker sends: a leaf alone gets its issuers, so that OpenSSL need not look for them each time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from agent.worker.certificates import with_issuers
from wire import x509

NOW = datetime.now(UTC)
DAY = timedelta(days=1)


def test_a_leaf_alone_is_completed_from_what_is_trusted_and_nothing_else_is_changed() -> None:
    root_key, other_key, key = x509.new_key(), x509.new_key(), x509.new_key()
    root = x509.self_signed_root(root_key, ttl=DAY, now=NOW)
    other = x509.self_signed_root(other_key, ttl=DAY, now=NOW)
    leaf = x509.issue(key.public_key(), ca_cert=root, ca_key=root_key, ttl=DAY, now=NOW, dns_sans=["a"])
    alone, whole, trusted = x509.to_pem(leaf), x509.to_pem([leaf, root]), x509.to_pem(root)
    assert x509.load_chain(with_issuers(alone, trusted)) == [leaf, root]
    assert with_issuers(whole, trusted) == whole
    assert with_issuers(alone, b"").strip() == alone.strip()
    assert with_issuers(b"no certificate", trusted) == b"no certificate"
    assert other.subject == root.subject
    both = with_issuers(alone, trusted + x509.to_pem(other))
    assert x509.load_chain(both) == [leaf], "one of two of the same name was guessed"
