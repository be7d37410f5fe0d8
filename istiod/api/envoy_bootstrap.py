"""The bootstrap with which a real Envoy takes a workload's place.

Job: one document: node with Istio's metadata, ADS over mTLS with the workload's certificate files.
Rule: pure; the same node id and metadata that the workload's agent uses, without HOSTMESH_WORKLOAD: the Envoy
gets the workload's configuration, but registration stays the agent's.
Not for: what Envoy then receives (`istiod.compile`).
"""

from __future__ import annotations

from typing import Any

from istiod.compile.tls import SDS_CLUSTER
from istiod.resources.schema import MAX_PROGRAM
from registry.model import Instance

ADMIN_PORT = 15000
SDS_SOCKET = "/run/hostmesh/sds.sock"
_EXTENSIONS = "type.googleapis.com/envoy.extensions."
RUNTIME = {"re2.max_program_size.error_level": MAX_PROGRAM}
"""As Istio's: Envoy's own limit of 100 instructions refuses patterns that documents may have."""


def bootstrap(
    instance: Instance, domain: str, istiod: str, directory: str, sds_socket: str
) -> dict[str, Any]:
    """Envoy's Bootstrap (config.bootstrap.v3); `directory` holds cert-chain.pem, key.pem, root-cert.pem.

    With these Envoy talks to istiod; for the mesh's traffic it asks for the secrets `default` and `ROOTCA` by SDS
    at `sds_socket`, as Istio's Envoys do.
    """
    host, _, port = istiod.rpartition(":")
    name = instance.id.partition("/")[2] or instance.id
    address = instance.addresses[0] if instance.addresses else "127.0.0.1"
    return {
        "node": {
            "id": f"sidecar~{address}~{name}.{instance.namespace}~{instance.namespace}.svc.{domain}",
            "cluster": f"{instance.service}.{instance.namespace}",
            "metadata": {
                "NAMESPACE": instance.namespace,
                "LABELS": dict(instance.labels),
                "SERVICE_ACCOUNT": instance.service_account,
                "INSTANCE_IPS": ",".join(instance.addresses),
                "WORKLOAD_NAME": instance.workload,
                "NODE_NAME": instance.node,
            },
        },
        "layered_runtime": {"layers": [{"name": "static", "static_layer": RUNTIME}]},
        "admin": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN_PORT}}},
        "dynamic_resources": {
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "ads_config": {
                "api_type": "DELTA_GRPC",
                "transport_api_version": "V3",
                "set_node_on_first_message_only": True,
                "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}],
            },
        },
        "static_resources": {
            "clusters": [
                {
                    "name": SDS_CLUSTER,
                    "type": "STATIC",
                    "connect_timeout": "1s",
                    "load_assignment": {
                        "cluster_name": SDS_CLUSTER,
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": sds_socket}}}}]}
                        ],
                    },
                    "typed_extension_protocol_options": _http2(),
                },
                {
                    "name": "xds-grpc",
                    "type": "STRICT_DNS",
                    "connect_timeout": "1s",
                    "load_assignment": {
                        "cluster_name": "xds-grpc",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": _address(host, int(port))}}]}
                        ],
                    },
                    "typed_extension_protocol_options": _http2(),
                    "transport_socket": {
                        "name": "envoy.transport_sockets.tls",
                        "typed_config": {
                            "@type": _EXTENSIONS + "transport_sockets.tls.v3.UpstreamTlsContext",
                            "common_tls_context": {
                                "alpn_protocols": ["h2"],
                                "tls_certificates": [
                                    {
                                        "certificate_chain": {"filename": f"{directory}/cert-chain.pem"},
                                        "private_key": {"filename": f"{directory}/key.pem"},
                                    }
                                ],
                                "validation_context": {
                                    "trusted_ca": {"filename": f"{directory}/root-cert.pem"},
                                    "match_typed_subject_alt_names": [
                                        {
                                            "san_type": "URI",
                                            "matcher": {"suffix": "/ns/hostmesh-system/sa/istiod"},
                                        }
                                    ],
                                },
                            },
                        },
                    },
                },
            ]
        },
    }


def _http2() -> dict[str, Any]:
    keepalive = {"connection_keepalive": {"interval": "30s", "timeout": "10s"}}
    return {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": _EXTENSIONS + "upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": keepalive},
        }
    }


def _address(host: str, port: int) -> dict[str, Any]:
    return {"socket_address": {"address": host.strip("[]"), "port_value": port}}
