"""Where the authorities come from: made once and kept, plugged in as Istio's cacerts, and never confused."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import trio
from cryptography import x509 as lib
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID

from istiod.admin_context import read
from istiod.ca.admin import ensure_admin_context
from istiod.ca.keys import CaError, admin_authority, claim_root, mesh_authority
from registry.opening import SqliteSettings, open_registry
from wire import x509
from wire.spiffe import SpiffeId

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
WEB = SpiffeId("cluster.local", "default", "web")


def sign(
    subject: str, key: x509.PrivateKey, issuer: str, issuer_key: x509.PrivateKey, *, ca: bool = True
) -> lib.Certificate:
    def name(text: str) -> lib.Name:
        return lib.Name([lib.NameAttribute(NameOID.COMMON_NAME, text)])

    return (
        lib.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(lib.random_serial_number())
        .not_valid_before(NOW - timedelta(days=1))
        .not_valid_after(NOW + timedelta(days=30))
        .add_extension(lib.BasicConstraints(ca=ca, path_length=None), critical=True)
        .sign(issuer_key, hashes.SHA256())
    )


@pytest.fixture
def cacerts(tmp_path: Path) -> Path:
    """As Istio's Makefile.selfsigned.mk makes it: an RSA root, an intermediate, and the chain."""
    directory = tmp_path / "cacerts"
    directory.mkdir()
    root_key = rsa.generate_private_key(65537, 2048)
    old_key, middle_key, ca_key = x509.new_key(), x509.new_key(), x509.new_key()
    root = sign("root", root_key, "root", root_key)
    old = sign("old root", old_key, "old root", old_key)
    middle = sign("middle", middle_key, "root", root_key)
    ca = sign("ca", ca_key, "middle", middle_key)
    (directory / "root-cert.pem").write_bytes(x509.to_pem([old, root]))
    (directory / "cert-chain.pem").write_bytes(x509.to_pem([ca, middle, root]))
    (directory / "ca-cert.pem").write_bytes(x509.to_pem(ca))
    (directory / "ca-key.pem").write_bytes(x509.key_to_pem(ca_key))
    return directory


def test_the_root_is_made_once_and_kept_private(tmp_path: Path) -> None:
    first = mesh_authority(tmp_path, None, NOW)
    again = mesh_authority(tmp_path, None, NOW + timedelta(days=3000))
    assert first.fingerprint == again.fingerprint
    assert (tmp_path / "ca").stat().st_mode & 0o777 == 0o700
    assert {file.stat().st_mode & 0o777 for file in (tmp_path / "ca").iterdir()} == {0o600}
    assert first.root.not_valid_after_utc - NOW > timedelta(days=3650)
    assert admin_authority(tmp_path, NOW).fingerprint != first.fingerprint


def test_a_key_without_its_certificate_is_a_broken_first_start(tmp_path: Path) -> None:
    mesh_authority(tmp_path, None, NOW)
    (tmp_path / "ca" / "root-cert.pem").unlink()
    mesh_authority(tmp_path, None, NOW)


def test_a_certificate_without_its_key_is_an_error_and_no_new_root(tmp_path: Path) -> None:
    before = mesh_authority(tmp_path, None, NOW)
    (tmp_path / "ca" / "root-key.pem").unlink()
    with pytest.raises(CaError, match=r"root-key\.pem: No such file"):
        mesh_authority(tmp_path, None, NOW)
    kept = x509.load_chain((tmp_path / "ca" / "root-cert.pem").read_bytes())
    assert x509.fingerprint(kept[0]) == before.fingerprint


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    mesh_authority(tmp_path, None, NOW)
    (tmp_path / "ca" / "root-key.pem").chmod(0o644)
    with pytest.raises(CaError, match="chmod 600"):
        mesh_authority(tmp_path, None, NOW)


def test_an_expired_root_is_refused(tmp_path: Path) -> None:
    mesh_authority(tmp_path, None, NOW)
    with pytest.raises(CaError, match="not now"):
        mesh_authority(tmp_path, None, NOW + timedelta(days=4000))


def test_a_plugged_authority_presents_its_whole_chain_with_its_root_last(
    cacerts: Path, tmp_path: Path
) -> None:
    authority = mesh_authority(tmp_path, cacerts, NOW)
    issued = authority.issue(x509.new_key().public_key(), now=NOW, ttl=timedelta(hours=1), uris=(WEB,))
    texts = [x509.load_chain(text) for text in issued.messages]
    assert [len(chain) for chain in texts] == [1, 1, 1, 2]
    leaf, ca, middle, (root, old) = texts[0][0], texts[1][0], texts[2][0], texts[3]
    leaf.verify_directly_issued_by(ca)
    ca.verify_directly_issued_by(middle)
    middle.verify_directly_issued_by(root)
    assert "old root" in old.subject.rfc4514_string()
    assert x509.fingerprint(x509.load_chain(issued.presented)[-1]) == authority.fingerprint
    assert not (tmp_path / "ca").exists()


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("ca-key.pem", lambda: x509.key_to_pem(x509.new_key()), "belongs to another certificate"),
        ("ca-cert.pem", lambda: b"nonsense", "ca-cert.pem: the certificates cannot be read"),
        ("cert-chain.pem", lambda: None, "has the issuer of CN=ca"),
        ("root-cert.pem", lambda: None, "root-cert.pem: No such file"),
    ],
)
def test_a_plugged_directory_that_does_not_fit_is_named(
    cacerts: Path, tmp_path: Path, file: str, content: object, reason: str
) -> None:
    assert callable(content)
    new = content()
    if new is None:
        (cacerts / file).unlink()
    else:
        (cacerts / file).write_bytes(new)
    with pytest.raises(CaError, match=reason):
        mesh_authority(tmp_path, cacerts, NOW)


def test_a_leafs_certificate_is_no_authority(cacerts: Path, tmp_path: Path) -> None:
    key = x509.new_key()
    leaf = sign("leaf", key, "leaf", key, ca=False)
    for file in ("ca-cert.pem", "root-cert.pem"):
        (cacerts / file).write_bytes(x509.to_pem(leaf))
    (cacerts / "ca-key.pem").write_bytes(x509.key_to_pem(key))
    with pytest.raises(CaError, match="may not sign"):
        mesh_authority(tmp_path, cacerts, NOW)


def test_a_second_root_in_one_registry_is_refused_unless_it_is_plugged(tmp_path: Path, cacerts: Path) -> None:
    async def main() -> None:
        async with open_registry(SqliteSettings(tmp_path / "registry.db")) as registry:
            first = mesh_authority(tmp_path / "a", None, NOW)
            other = mesh_authority(tmp_path / "b", None, NOW)
            plugged = mesh_authority(tmp_path / "b", cacerts, NOW)
            assert await claim_root(registry.records, first, plugged=False) is None
            assert await claim_root(registry.records, first, plugged=False) is None
            with pytest.raises(CaError, match="Bring back the state directory"):
                await claim_root(registry.records, other, plugged=False)
            assert await claim_root(registry.records, plugged, plugged=True) == first.fingerprint
            assert await claim_root(registry.records, plugged, plugged=True) is None

    trio.run(main)


def test_the_admin_context_is_written_once_and_anew_when_it_would_not_work(tmp_path: Path) -> None:
    authority = admin_authority(tmp_path, NOW)
    path = tmp_path / "admin-context.yaml"
    address = "https://127.0.0.1:8443"
    assert ensure_admin_context(tmp_path, authority, address, NOW)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not ensure_admin_context(tmp_path, authority, address, NOW)
    context = read(path)
    certificate = x509.load_chain(context.client_certificate)[0]
    certificate.verify_directly_issued_by(authority.root)
    assert context.address == address
    assert ensure_admin_context(tmp_path, authority, "https://127.0.0.1:9443", NOW)
    assert ensure_admin_context(tmp_path, authority, "https://127.0.0.1:9443", NOW + timedelta(days=300))
    path.write_text("damaged")
    path.chmod(0o600)
    assert ensure_admin_context(tmp_path, authority, address, NOW)
