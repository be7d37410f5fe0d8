"""Names in certificates: what `cryptography` reads is what we read, and bytes that are no certificate are refused."""

from __future__ import annotations

import os
import subprocess
from datetime import UTC, datetime, timedelta
from functools import cache

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import NameOID, ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from agent.worker.der import DerError, read_names

_NOW = datetime.now(UTC)


@cache
def _key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def certificate(
    subject: x509.Name, uris: tuple[str, ...] = (), dns: tuple[str, ...] = (), serial: int = 0x1234ABCD
) -> bytes:
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")]))
        .public_key(_key().public_key())
        .serial_number(serial)
        .not_valid_before(_NOW)
        .not_valid_after(_NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    )
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri) for uri in uris]
    names += [x509.DNSName(name) for name in dns]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(_key(), hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def test_a_workloads_certificate_gives_its_spiffe_id_and_no_subject() -> None:
    found = read_names(
        certificate(x509.Name([]), ("spiffe://cluster.local/ns/a/sa/b",), ("b.a.svc",), 2**159 - 5)
    )
    assert found.uris == ("spiffe://cluster.local/ns/a/sa/b",)
    assert found.dns == ("b.a.svc",)
    assert (found.subject, found.issuer, found.serial) == ("", "CN=root", f"{2**159 - 5:x}")


def test_subjects_are_written_as_openssl_writes_them() -> None:
    name = x509.Name(
        [
            x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COUNTRY_NAME, "DE")]),
            x509.RelativeDistinguishedName(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, " Müller, Söhne+Co\n#1 "),
                    x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "#one", _ASN1Type.BMPString),
                ]
            ),
            x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.EMAIL_ADDRESS, "a@b.c")]),
            x509.RelativeDistinguishedName(
                [x509.NameAttribute(ObjectIdentifier("1.3.6.1.4.1.99999.128"), "x")]
            ),
        ]
    )
    der = certificate(name)
    command = ["openssl", "x509", "-inform", "der", "-noout", "-subject", "-nameopt", "RFC2253"]
    told = subprocess.run(command, input=der, capture_output=True, check=True).stdout.decode()
    assert read_names(der).subject == told.strip().removeprefix("subject=")


@given(
    st.lists(
        st.text(st.characters(min_codepoint=0, max_codepoint=127), min_size=1, max_size=40), max_size=5
    ).map(tuple),
    st.lists(
        st.text(st.characters(min_codepoint=0, max_codepoint=127), min_size=1, max_size=40), max_size=5
    ).map(tuple),
    st.integers(1, 2**158),
)
def test_names_are_what_cryptography_reads(uris: tuple[str, ...], dns: tuple[str, ...], serial: int) -> None:
    der = certificate(x509.Name([]), uris, dns, serial)
    found = read_names(der)
    theirs = x509.load_der_x509_certificate(der)
    assert found.serial == f"{theirs.serial_number:x}"
    assert (found.uris, found.dns) == (uris, dns)


@cache
def _workload() -> bytes:
    return certificate(x509.Name([]), ("spiffe://cluster.local/ns/a/sa/b",))


@given(st.lists(st.tuples(st.integers(0, 999), st.integers(0, 255)), max_size=4), st.integers(0, 999))
def test_changed_bytes_give_names_or_a_refusal_and_nothing_else(
    changes: list[tuple[int, int]], cut: int
) -> None:
    der = bytearray(_workload())
    for at, byte in changes:
        der[at % len(der)] = byte
    for changed in (bytes(der), bytes(der[:cut])):
        try:
            read_names(changed)
        except DerError as error:
            assert str(error)


@pytest.mark.parametrize(
    "garbage", [b"", b"\x30", b"\x30\x80", b"\x30\x84\xff\xff\xff\xff", b"\x30\x00", os.urandom(64)]
)
def test_what_is_no_certificate_is_refused(garbage: bytes) -> None:
    with pytest.raises(DerError):
        read_names(garbage)
