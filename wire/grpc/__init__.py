"""gRPC on trio: server (`serve`) and client (`open_channel`), messages as raw bytes.

Modules: `server`, `client`, `messages` (framing), `metadata`, `status`, `backoff`; below them wire.http2.
"""

from wire.grpc.admission import ConnectionLimits
from wire.grpc.backoff import Backoff
from wire.grpc.client import Channel, ChannelLimits, ClientCall, open_channel
from wire.grpc.metadata import Metadata
from wire.grpc.server import Handler, Limits, Listener, Peer, ServerCall, host_of, listen, port_of, serve
from wire.grpc.status import GrpcError, GrpcStatus
from wire.http2 import Http2Limits

ADS_SOTW = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources"
ADS_DELTA = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources"
CREATE_CERTIFICATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
DEBUG_ATTACH = "/hostmesh.v1.Debug/Attach"

__all__ = [
    "ADS_DELTA",
    "ADS_SOTW",
    "CREATE_CERTIFICATE",
    "DEBUG_ATTACH",
    "Backoff",
    "Channel",
    "ChannelLimits",
    "ClientCall",
    "ConnectionLimits",
    "GrpcError",
    "GrpcStatus",
    "Handler",
    "Http2Limits",
    "Limits",
    "Listener",
    "Metadata",
    "Peer",
    "ServerCall",
    "host_of",
    "listen",
    "open_channel",
    "port_of",
    "serve",
]
