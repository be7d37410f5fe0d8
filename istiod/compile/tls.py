"""TLS contexts: mutual TLS of the mesh on both sides, and TLS that is originated towards others.

Certificates and trusted roots of the mesh are SDS secrets `default` and `ROOTCA`, which the proxy's own host
serves: keys never come from here. Istio's names and Istio's SDS cluster, so that a real Envoy finds them too.
Not for: deciding who uses TLS (authentication.py, clusters.py).
"""

from __future__ import annotations

from collections.abc import Iterable

from envoy.config.core.v3 import base_pb2, config_source_pb2, grpc_service_pb2
from envoy.extensions.transport_sockets.raw_buffer.v3 import raw_buffer_pb2
from envoy.extensions.transport_sockets.tls.v3 import common_pb2, secret_pb2, tls_pb2
from envoy.type.matcher.v3 import string_pb2

from istiod.compile.envoy import any_of, duration, true
from istiod.resources.destination_rule import ClientTls
from istiod.resources.mesh_config import MeshConfig

SDS_CLUSTER = "sds-grpc"
CERTIFICATE_SECRET = "default"  # noqa: S105 - a name
ROOT_SECRET = "ROOTCA"  # noqa: S105 - a name
TLS_SOCKET = "envoy.transport_sockets.tls"
RAW_SOCKET = "envoy.transport_sockets.raw_buffer"
SYSTEM_ROOTS = "/etc/ssl/certs/ca-certificates.crt"

MESH_ALPN = ("istio-peer-exchange", "istio")
"""What Istio's clients offer for opaque TCP; a server that sees `istio` knows mutual TLS of the mesh."""
ALPN_TCP = ("istio",)
ALPN_HTTP1 = ("istio-http/1.1", "istio", "http/1.1")
ALPN_HTTP2 = ("istio-h2", "istio", "h2")
ALPN_SNIFFED = ("istio-http/1.1", "istio")
"""HTTP of either version: nothing that the server would choose, so that it looks at the first bytes."""
MATCH_HTTP = ("istio-http/1.0", "istio-http/1.1", "istio-h2")
SERVER_ALPN = ("h2", "http/1.1")
_CIPHERS = (
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
)
_URI = common_pb2.SubjectAltNameMatcher.URI
_DNS = common_pb2.SubjectAltNameMatcher.DNS


def raw_socket() -> base_pb2.TransportSocket:
    """Plain text."""
    return base_pb2.TransportSocket(name=RAW_SOCKET, typed_config=any_of(raw_buffer_pb2.RawBuffer()))


def inbound_mtls(mesh: MeshConfig, alpn: tuple[str, ...]) -> base_pb2.TransportSocket:
    """The server side of mutual TLS: any identity of the mesh's trust domains."""
    domains = (mesh.trust_domain, *mesh.trust_domain_aliases)
    names = [_san(_URI, string_pb2.StringMatcher(prefix=f"spiffe://{domain}/")) for domain in domains]
    context = tls_pb2.DownstreamTlsContext(
        common_tls_context=_mesh_context(names, alpn), require_client_certificate=true()
    )
    params = context.common_tls_context.tls_params
    params.tls_minimum_protocol_version = common_pb2.TlsParameters.TLSv1_2
    params.tls_maximum_protocol_version = common_pb2.TlsParameters.TLSv1_3
    params.cipher_suites.extend(_CIPHERS)
    return base_pb2.TransportSocket(name=TLS_SOCKET, typed_config=any_of(context))


def outbound_mtls(
    mesh: MeshConfig, identities: Iterable[str], sni: str, alpn: tuple[str, ...]
) -> base_pb2.TransportSocket:
    """The client side of mutual TLS: the server must be one of `identities`, or at least of the trust domain."""
    names = [_san(_URI, string_pb2.StringMatcher(exact=identity)) for identity in identities]
    if not names:
        domains = (mesh.trust_domain, *mesh.trust_domain_aliases)
        names = [_san(_URI, string_pb2.StringMatcher(prefix=f"spiffe://{domain}/")) for domain in domains]
    context = tls_pb2.UpstreamTlsContext(common_tls_context=_mesh_context(names, alpn), sni=sni)
    _client_versions(context.common_tls_context)
    return base_pb2.TransportSocket(name=TLS_SOCKET, typed_config=any_of(context))


def originated(
    tls: ClientTls, host: str, sans: tuple[str, ...], alpn: tuple[str, ...]
) -> base_pb2.TransportSocket:
    """SIMPLE and MUTUAL of a DestinationRule: certificates by file name on the proxy's host.

    Without caCertificates the system's roots are trusted (Istio: VERIFY_CERTIFICATE_AT_CLIENT), and without
    subjectAltNames the name that is called must be in the certificate: for a wildcard host, any name that it covers.
    """
    server = tls.sni or ("" if host.startswith("*") else host)
    common = tls_pb2.CommonTlsContext(alpn_protocols=alpn)
    if tls.mode == "MUTUAL":
        common.tls_certificates.add(
            certificate_chain=base_pb2.DataSource(filename=tls.client_certificate),
            private_key=base_pb2.DataSource(filename=tls.private_key),
        )
    if not tls.insecure_skip_verify:
        validation = common.validation_context
        validation.trusted_ca.filename = tls.ca_certificates or SYSTEM_ROOTS
        if tls.ca_crl:
            validation.crl.filename = tls.ca_crl
        for name in tls.subject_alt_names or sans or (server or host,):
            kind = _URI if "://" in name else _DNS
            matcher = string_pb2.StringMatcher(exact=name)
            if name.startswith("*") and kind == _DNS and not (tls.subject_alt_names or sans):
                matcher = string_pb2.StringMatcher(suffix=name[1:])
            validation.match_typed_subject_alt_names.append(_san(kind, matcher))
    _client_versions(common)
    context = tls_pb2.UpstreamTlsContext(common_tls_context=common, sni=server)
    return base_pb2.TransportSocket(name=TLS_SOCKET, typed_config=any_of(context))


def _client_versions(common: tls_pb2.CommonTlsContext) -> None:
    """Envoy's clients stop at TLS 1.2 unless they are told; Istio tells them, for mesh and originated TLS."""
    common.tls_params.tls_minimum_protocol_version = common_pb2.TlsParameters.TLSv1_2
    common.tls_params.tls_maximum_protocol_version = common_pb2.TlsParameters.TLSv1_3


def _mesh_context(
    names: list[common_pb2.SubjectAltNameMatcher], alpn: tuple[str, ...]
) -> tls_pb2.CommonTlsContext:
    context = tls_pb2.CommonTlsContext(alpn_protocols=alpn)
    context.tls_certificate_sds_secret_configs.append(_secret(CERTIFICATE_SECRET))
    validation = context.combined_validation_context
    validation.default_validation_context.match_typed_subject_alt_names.extend(names)
    validation.validation_context_sds_secret_config.CopyFrom(_secret(ROOT_SECRET))
    return context


def _secret(name: str) -> secret_pb2.SdsSecretConfig:
    source = config_source_pb2.ConfigSource(
        initial_fetch_timeout=duration(0), resource_api_version=config_source_pb2.V3
    )
    source.api_config_source.api_type = config_source_pb2.ApiConfigSource.GRPC
    source.api_config_source.transport_api_version = config_source_pb2.V3
    source.api_config_source.set_node_on_first_message_only = True
    service = grpc_service_pb2.GrpcService()
    service.envoy_grpc.cluster_name = SDS_CLUSTER
    source.api_config_source.grpc_services.append(service)
    return secret_pb2.SdsSecretConfig(name=name, sds_config=source)


def _san(kind: int, matcher: string_pb2.StringMatcher) -> common_pb2.SubjectAltNameMatcher:
    return common_pb2.SubjectAltNameMatcher(san_type=kind, matcher=matcher)
