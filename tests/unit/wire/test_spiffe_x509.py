"""Identities and certificates: what is issued can be read back, and what is wrong is refused."""

from __future__ import annotations

import ssl
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509 as cx509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from wire import x509
from wire.secret_file import write_secret
from wire.spiffe import SpiffeError, SpiffeId

NOW = datetime(2026, 11, 3, 12, 0, tzinfo=UTC)
REVIEWS = SpiffeId("cluster.local", "default", "bookinfo-reviews")


def test_an_id_reads_back_as_it_was_written() -> None:
    text = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews"
    assert SpiffeId.parse(text) == REVIEWS
    assert str(REVIEWS) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spiffe://",
        "https://cluster.local/ns/default/sa/a",
        "SPIFFE://cluster.local/ns/default/sa/a",
        "spiffe://Cluster.local/ns/default/sa/a",
        "spiffe://cluster.local:80/ns/default/sa/a",
        "spiffe://user@cluster.local/ns/default/sa/a",
        "spiffe:///ns/default/sa/a",
        "spiffe://cluster.local/ns/default/sa/",
        "spiffe://cluster.local/ns//sa/a",
        "spiffe://cluster.local/ns/../sa/a",
        "spiffe://cluster.local/ns/./sa/a",
        "spiffe://cluster.local/ns/default/sa/a/",
        "spiffe://cluster.local/ns/default/sa/a/b",
        "spiffe://cluster.local/ns/default/sa/a?x=1",
        "spiffe://cluster.local/ns/default/sa/a#x",
        "spiffe://cluster.local/ns/default/sa/a%2Fb",
        "spiffe://cluster.local/ns/default/sa/a\x00",
        "spiffe://cluster.local/ns/default/sa/a\n",
        "spiffe://cluster.local/ns/défault/sa/a",
        "spiffe://cluster.local/sa/a/ns/default",
        "spiffe://cluster.local/ns/default/sa/" + "a" * 2048,
    ],
)
def test_a_text_that_is_no_workload_id_is_refused(text: str) -> None:
    with pytest.raises(SpiffeError):
        SpiffeId.parse(text)


def _certificate(names: list[cx509.GeneralName] | None, san: bytes | None = None) -> cx509.Certificate:
    key = x509.new_key()
    builder = (
        cx509.CertificateBuilder()
        .subject_name(cx509.Name([]))
        .issuer_name(cx509.Name([]))
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW)
        .not_valid_after(NOW + timedelta(hours=1))
    )
    if names is not None:
        builder = builder.add_extension(cx509.SubjectAlternativeName(names), critical=True)
    if san is not None:
        oid = cx509.ExtensionOID.SUBJECT_ALTERNATIVE_NAME
        builder = builder.add_extension(cx509.UnrecognizedExtension(oid, san), critical=True)
    return builder.sign(key, hashes.SHA256())


def test_a_certificate_names_its_workload_from_object_and_from_der() -> None:
    certificate = _certificate([cx509.UniformResourceIdentifier(str(REVIEWS)), cx509.DNSName("reviews")])
    assert SpiffeId.of_certificate(certificate) == REVIEWS
    assert SpiffeId.of_certificate(certificate.public_bytes(serialization.Encoding.DER)) == REVIEWS


def test_certificates_with_none_two_or_tricky_names_are_refused() -> None:
    uri = cx509.UniformResourceIdentifier
    good = str(REVIEWS).encode()
    nul = good + b"\x00.evil"
    raw_nul = bytes([0x30, len(nul) + 2, 0x86, len(nul)]) + nul
    for certificate in (
        _certificate(None),
        _certificate([cx509.DNSName("reviews")]),
        _certificate([uri(str(REVIEWS)), uri("spiffe://cluster.local/ns/default/sa/other")]),
        _certificate([uri(str(REVIEWS)), uri("https://example.net/")]),
        _certificate(None, san=raw_nul),
    ):
        with pytest.raises(SpiffeError):
            SpiffeId.of_certificate(certificate)
        with pytest.raises(SpiffeError):
            SpiffeId.of_certificate(certificate.public_bytes(serialization.Encoding.DER))
    with pytest.raises(SpiffeError):
        SpiffeId.of_certificate(b"no certificate")


def test_a_signing_request_gives_key_and_identity() -> None:
    key = x509.new_key()
    public_key, spiffe_id = x509.read_csr(x509.make_csr(key, REVIEWS))
    assert public_key == key.public_key()
    assert spiffe_id == REVIEWS


def test_a_signing_request_signed_by_another_key_is_refused() -> None:
    csr = cx509.load_pem_x509_csr(x509.make_csr(x509.new_key(), REVIEWS))
    der = bytearray(csr.public_bytes(serialization.Encoding.DER))
    der[-1] ^= 1
    forged = b"-----BEGIN CERTIFICATE REQUEST-----\n"
    forged += ssl.DER_cert_to_PEM_cert(bytes(der)).split("\n", 1)[1].rsplit("-----END", 1)[0].encode()
    forged += b"-----END CERTIFICATE REQUEST-----\n"
    with pytest.raises(x509.X509Error):
        x509.read_csr(forged)


def test_signing_requests_for_more_names_or_weak_keys_are_refused() -> None:
    def request(key: object, names: list[cx509.GeneralName]) -> bytes:
        algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
        builder = cx509.CertificateSigningRequestBuilder().subject_name(cx509.Name([]))
        if names:
            builder = builder.add_extension(cx509.SubjectAlternativeName(names), critical=False)
        return builder.sign(key, algorithm).public_bytes(serialization.Encoding.PEM)  # type: ignore[arg-type]

    uri = cx509.UniformResourceIdentifier(str(REVIEWS))
    good = x509.new_key()
    x509.read_csr(request(rsa.generate_private_key(65537, 2048), [uri]))
    for pem in (
        request(good, []),
        request(good, [uri, cx509.DNSName("istiod")]),
        request(good, [uri, uri]),
        request(ed25519.Ed25519PrivateKey.generate(), [uri]),
        request(ec.generate_private_key(ec.SECP521R1()), [uri]),
        request(rsa.generate_private_key(65537, 1024), [uri]),
        b"",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        b"x" * 100_000,
    ):
        with pytest.raises(x509.X509Error):
            x509.read_csr(pem)


def test_an_issued_certificate_verifies_and_never_outlives_its_ca() -> None:
    ca_key, key = x509.new_key(), x509.new_key()
    root = x509.self_signed_root(ca_key, ttl=timedelta(days=10), now=NOW)
    leaf = x509.issue(
        key.public_key(),
        uri_sans=[REVIEWS],
        dns_sans=["istiod"],
        ip_sans=["::1", "127.0.0.1"],
        ca_cert=root,
        ca_key=ca_key,
        ttl=timedelta(days=20),
        now=NOW,
    )
    leaf.verify_directly_issued_by(root)
    assert leaf.not_valid_after_utc == root.not_valid_after_utc
    assert leaf.not_valid_before_utc == NOW - timedelta(minutes=2)
    assert SpiffeId.of_certificate(leaf) == REVIEWS
    assert x509.load_chain(x509.to_pem([leaf, root])) == [leaf, root]
    assert x509.fingerprint(root) == root.fingerprint(hashes.SHA256()).hex()
    with pytest.raises(x509.X509Error):
        x509.issue(
            key.public_key(), uri_sans=[REVIEWS], ca_cert=root, ca_key=key, ttl=timedelta(days=1), now=NOW
        )
    with pytest.raises(x509.X509Error):
        x509.issue(key.public_key(), ca_cert=root, ca_key=ca_key, ttl=timedelta(days=1), now=NOW)
    with pytest.raises(x509.X509Error):
        late = NOW + timedelta(days=11)
        x509.issue(
            key.public_key(), uri_sans=[REVIEWS], ca_cert=root, ca_key=ca_key, ttl=timedelta(1), now=late
        )


def test_keys_survive_pem_and_broken_ones_are_refused() -> None:
    key = x509.new_key()
    assert x509.key_from_pem(x509.key_to_pem(key)).public_key() == key.public_key()
    for pem in (b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        with pytest.raises(x509.X509Error):
            x509.key_from_pem(pem)
    with pytest.raises(x509.X509Error):
        x509.load_chain(b"nothing")


def test_a_secret_replaces_the_old_one_and_is_its_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(b"old")
    path.chmod(0o644)
    write_secret(path, b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.pem"]
