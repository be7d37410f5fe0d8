"""TLS contexts and secrets (envoy.extensions.transport_sockets.tls.v3)."""

from __future__ import annotations

from typing import Any

from agent.table.decode.matchers import data_source, string_match
from agent.table.decode.message import Reader
from agent.table.tls import DownstreamTls, SanMatch, Secret, UpstreamTls, Validation

_TLS = "envoy.extensions.transport_sockets.tls.v3."
_RAW = "envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer"
_VERSIONS = {"TLS_AUTO": "", "TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}
_SAN_KINDS = {"EMAIL": "email", "DNS": "dns", "URI": "uri", "IP_ADDRESS": "ip"}


def downstream_tls(reader: Reader | None) -> DownstreamTls | None:
    """A filter chain's transport socket; None for raw."""
    typed = _transport(reader)
    if typed is None:
        return None
    if typed.type != f"{_TLS}DownstreamTlsContext":
        typed.fail("", f"unsupported type {typed.type}")
    with typed as r:
        require = r.boolean("require_client_certificate")
        r.only("disable_stateful_session_resumption", False)
        r.only(
            "full_scan_certs_on_sni_mismatch", False
        )  # there is one certificate of a kind, whatever the name
        r.choice("ocsp_staple_policy", {"LENIENT_STAPLING": ""})
        r.only("require_sni", False)
        return DownstreamTls(
            **_common(r.must("common_tls_context"), "TLSv1.3"),
            require_client_certificate=require,
            tickets=not r.boolean("disable_stateless_session_resumption"),
            client_ciphers_first=r.boolean("prefer_client_ciphers"),
        )


def upstream_tls(reader: Reader | None) -> UpstreamTls | None:
    """A cluster's transport socket; None for raw."""
    typed = _transport(reader)
    if typed is None:
        return None
    if typed.type != f"{_TLS}UpstreamTlsContext":
        typed.fail("", f"unsupported type {typed.type}")
    with typed as r:
        r.only("enforce_rsa_key_usage", False)
        r.only("auto_host_sni", False)
        r.only("auto_sni_san_validation", False)
        r.only("allow_renegotiation", False)
        sni = r.text("sni")
        common = r.child("common_tls_context")
        values = {} if common is None else _common(common, "TLSv1.2")
        return UpstreamTls(**values, sni=sni, resume=r.integer("max_session_keys", 1) > 0)


def _transport(reader: Reader | None) -> Reader | None:
    if reader is None:
        return None
    with reader as r:
        r.without_effect("name")  # the type decides
        typed = r.typed("typed_config")
        if typed is None:
            if r.text("name") in {"raw_buffer", "envoy.transport_sockets.raw_buffer"}:
                return None
            r.fail("typed_config", "required")
        if typed.type == _RAW:
            with typed:
                return None
        return typed


def _common(reader: Reader, newest: str) -> dict[str, Any]:
    """CommonTlsContext. Envoy's clients stop at TLS 1.2 unless told otherwise; its servers offer 1.3."""
    with reader as r:
        values: dict[str, Any] = {"alpn": r.texts("alpn_protocols")}
        low, high = "TLSv1.2", newest
        if (params := r.child("tls_params")) is not None:
            with params as p:
                low = p.choice("tls_minimum_protocol_version", _VERSIONS) or low
                high = p.choice("tls_maximum_protocol_version", _VERSIONS) or high
                values["ciphers"] = p.texts("cipher_suites")
        high = max(high, low)
        values["min_version"], values["max_version"] = low, high
        certificates: list[Secret | str] = [certificate(item, "") for item in r.children("tls_certificates")]
        certificates += [_sds_name(item) for item in r.children("tls_certificate_sds_secret_configs")]
        values["certificates"] = tuple(certificates)
        values["validation"] = _validation(r)
        return values


def _sds_name(reader: Reader) -> str:
    """SdsSecretConfig: by name alone; where it comes from (ADS, a file, static) is the table's business."""
    with reader as r:
        if (source := r.child("sds_config")) is not None:
            config_source(source)
        return r.text("name")


def config_source(reader: Reader) -> None:
    """ConfigSource: the agent gets everything from its one control plane, whatever this names."""
    with reader as r:
        r.without_effect(  # see above; and a set is complete when its parts have come, however long that takes
            "ads",
            "self",
            "api_config_source",
            "path_config_source",
            "initial_fetch_timeout",
            "resource_api_version",
        )


def certificate(reader: Reader, name: str) -> Secret:
    """TlsCertificate."""
    with reader as r:
        return Secret(
            name,
            certificate_chain=data_source(r.must("certificate_chain")),
            private_key=data_source(r.must("private_key")),
        )


def _validation(r: Reader) -> Validation | None:
    kind = r.which("validation_context_type")
    if not kind:
        return None
    if kind == "validation_context":
        return validation(r.must(kind), "")
    if kind == "validation_context_sds_secret_config":
        return Validation(ca=_sds_name(r.must(kind)))
    if kind == "combined_validation_context":
        with r.must(kind) as combined:
            default = validation(combined.must("default_validation_context"), "")
            name = _sds_name(combined.must("validation_context_sds_secret_config"))
            return Validation(
                ca=name,
                sans=default.sans,
                certificate_hashes=default.certificate_hashes,
                accept_untrusted=default.accept_untrusted,
            )
    return r.fail(kind, "unsupported field")


def validation(reader: Reader, name: str) -> Validation:
    """CertificateValidationContext."""
    with reader as r:
        ca = r.child("trusted_ca")
        sans = [_san(item) for item in r.children("match_typed_subject_alt_names")]
        sans += [SanMatch("any", string_match(item)) for item in r.children("match_subject_alt_names")]
        untrusted = r.choice(
            "trust_chain_verification", {"VERIFY_TRUST_CHAIN": "", "ACCEPT_UNTRUSTED": "untrusted"}
        )
        found = Validation(
            ca=None if ca is None else Secret(name, trusted_ca=data_source(ca)),
            sans=tuple(sans),
            certificate_hashes=tuple(
                text.replace(":", "").lower() for text in r.texts("verify_certificate_hash")
            ),
            accept_untrusted=bool(untrusted),
        )
        if found.sans and ca is None and name == "" and not r.path.endswith("default_validation_context"):
            r.fail("match_typed_subject_alt_names", "a trusted_ca is required to verify names")
        return found


def _san(reader: Reader) -> SanMatch:
    with reader as r:
        return SanMatch(r.choice("san_type", _SAN_KINDS), string_match(r.must("matcher")))


def secret(reader: Reader) -> Secret:
    """Secret, static or by SDS: a certificate or roots."""
    with reader as r:
        name, kind = r.text("name"), r.which("type")
        if kind == "tls_certificate":
            return certificate(r.must(kind), name)
        if kind == "validation_context":
            found = validation(r.must(kind), name)
            if not isinstance(found.ca, Secret):
                r.fail("validation_context.trusted_ca", "required")
            return found.ca
        return r.fail(
            kind, "unsupported field" if kind else "a certificate or a validation context is required"
        )
