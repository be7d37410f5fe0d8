"""/certs: the certificates in use (envoy.admin.v3.Certificates). Not for: keys, which never come here."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from cryptography import x509
from cryptography.x509.extensions import ExtensionNotFound

from agent.host.admin.sources import Certificates


def certificates_page(held: Iterable[Certificates], now: float) -> dict[str, Any]:
    """One entry a workload; `now` in seconds since the epoch."""
    return {
        "certificates": [
            {
                "cert_chain": [_details(item, now) for item in _read(one.chain_pem)[:1]],
                "ca_cert": [_details(item, now) for item in _read(one.roots_pem)],
            }
            for one in held
        ]
    }


def _read(pem: bytes) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(pem) if pem else []


def _details(certificate: x509.Certificate, now: float) -> dict[str, Any]:
    left = certificate.not_valid_after_utc - datetime.fromtimestamp(now, UTC)
    return {
        "path": "<inline>",
        "serial_number": f"{certificate.serial_number:x}",
        "subject_alt_names": _names(certificate),
        "days_until_expiration": str(max(0, left.days)),
        "valid_from": _time(certificate.not_valid_before_utc),
        "expiration_time": _time(certificate.not_valid_after_utc),
    }


def _names(certificate: x509.Certificate) -> list[dict[str, str]]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except ExtensionNotFound:
        return []
    return [
        *({"uri": uri} for uri in names.get_values_for_type(x509.UniformResourceIdentifier)),
        *({"dns": dns} for dns in names.get_values_for_type(x509.DNSName)),
        *({"ip_address": str(ip)} for ip in names.get_values_for_type(x509.IPAddress)),
    ]


def _time(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
