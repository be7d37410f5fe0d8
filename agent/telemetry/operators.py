"""Which %OPERATORS% the substitution formatter knows (Envoy 1.40, HTTP/1.1 and TCP), and how each is written.

Rule: what can never be known here (QUIC's round trips, filter state, traces) is absent, as in an Envoy without them;
operators that count bytes of the wire are missing on purpose: a format that names one of them is refused.
Not for: reading values (fields.py, times.py), parsing formats (format.py).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple
from urllib.parse import quote

from agent.telemetry import fields, header_fields
from agent.telemetry.times import Factory, Getter, between, common_duration, emit_time, start_time


class Operator(NamedTuple):
    """How one operator may be written, and what makes its getter."""

    make: Factory
    argument: str = "none"
    """`none`, `optional` or `required`."""
    length: bool = False
    """May be followed by `:Z`, a maximum length."""
    tree: bool = False
    """Its value may be a number, list or object, which text formats print as JSON."""


_list = ",".join


def _timed(make: Callable[..., Getter], local: bool) -> Operator:
    return Operator(lambda argument, absent: make(argument, absent, local), "optional")


def _tree(make: Factory) -> Operator:
    return Operator(make, "required", length=True, tree=True)


OPERATORS: Final[dict[str, Operator]] = {
    "START_TIME": _timed(start_time, False),
    "START_TIME_LOCAL": _timed(start_time, True),
    "EMIT_TIME": _timed(emit_time, False),
    "EMIT_TIME_LOCAL": _timed(emit_time, True),
    "REQ": Operator(header_fields.request_header, "required", length=True),
    "REQ_WITHOUT_QUERY": Operator(header_fields.request_header_without_query, "required", length=True),
    "REQUEST_HEADER": Operator(header_fields.request_header, "required", length=True),
    "RESPONSE_HEADER": Operator(header_fields.response_header, "required", length=True),
    "RESP": Operator(header_fields.response_header, "required", length=True),
    "TRAILER": Operator(header_fields.headers_of("response_trailers"), "required", length=True),
    "GRPC_STATUS": Operator(header_fields.grpc_status_as, "optional"),
    "GRPC_STATUS_NUMBER": Operator(lambda _argument, absent: header_fields.grpc_status_as("NUMBER", absent)),
    "PATH": Operator(fields.path, "optional", length=True),
    "QUERY_PARAM": Operator(fields.query_parameter, "required", length=True),
    "QUERY_PARAMS": Operator(fields.query, "optional", length=True),
    "PROTOCOL": Operator(fields.field("protocol")),
    "RESPONSE_CODE": Operator(fields.count("response_code")),
    "RESPONSE_CODE_DETAILS": Operator(fields.field("details", underscores=True), "optional"),
    "CONNECTION_TERMINATION_DETAILS": Operator(fields.field("termination_details")),
    "RESPONSE_FLAGS": Operator(fields.flags(long=False)),
    "RESPONSE_FLAGS_LONG": Operator(fields.flags(long=True)),
    "BYTES_RECEIVED": Operator(fields.count("bytes_received")),
    "BYTES_SENT": Operator(fields.count("bytes_sent")),
    "REQUEST_HEADERS_BYTES": Operator(header_fields.request_headers_bytes),
    "RESPONSE_HEADERS_BYTES": Operator(header_fields.response_headers_bytes),
    "RESPONSE_TRAILERS_BYTES": Operator(header_fields.response_trailers_bytes),
    "DURATION": Operator(between("started_at", "finished_at")),
    "REQUEST_DURATION": Operator(between("started_at", "request_done_at")),
    "REQUEST_TX_DURATION": Operator(between("started_at", "upstream_sent_last_at")),
    "RESPONSE_DURATION": Operator(between("started_at", "upstream_first_at")),
    "RESPONSE_TX_DURATION": Operator(between("upstream_first_at", "downstream_last_at")),
    "UPSTREAM_CONNECTION_POOL_READY_DURATION": Operator(
        between("upstream_picked_at", "upstream_connected_at")
    ),
    "COMMON_DURATION": Operator(common_duration, "required"),
    "UPSTREAM_HOST": Operator(fields.field("upstream_address")),
    "UPSTREAM_HOST_NAME": Operator(fields.upstream_name(without_port=False)),
    "UPSTREAM_HOST_NAME_WITHOUT_PORT": Operator(fields.upstream_name(without_port=True)),
    "UPSTREAM_REMOTE_ADDRESS": Operator(fields.upstream_remote),
    "UPSTREAM_REMOTE_ADDRESS_WITHOUT_PORT": Operator(fields.upstream_part("upstream_address", "host")),
    "UPSTREAM_REMOTE_PORT": Operator(fields.upstream_part("upstream_address", "port")),
    "UPSTREAM_LOCAL_ADDRESS": Operator(fields.field("upstream_local")),
    "UPSTREAM_LOCAL_ADDRESS_WITHOUT_PORT": Operator(fields.upstream_part("upstream_local", "host")),
    "UPSTREAM_LOCAL_PORT": Operator(fields.upstream_part("upstream_local", "port")),
    "UPSTREAM_CLUSTER": Operator(fields.cluster),
    "UPSTREAM_CLUSTER_RAW": Operator(fields.through("cluster", "name")),
    "UPSTREAM_REQUEST_ATTEMPT_COUNT": Operator(fields.count("attempts")),
    "UPSTREAM_TRANSPORT_FAILURE_REASON": Operator(fields.field("upstream_failure", underscores=True)),
    "UPSTREAM_PEER_SUBJECT": Operator(fields.peer("upstream_peer", "subject")),
    "UPSTREAM_PEER_ISSUER": Operator(fields.peer("upstream_peer", "issuer")),
    "UPSTREAM_PEER_URI_SAN": Operator(fields.peer("upstream_peer", "uri_sans", _list)),
    "UPSTREAM_PEER_DNS_SAN": Operator(fields.peer("upstream_peer", "dns_sans", _list)),
    "UPSTREAM_PEER_CERT": Operator(fields.peer("upstream_peer", "pem", lambda pem: quote(pem, safe=""))),
    "DOWNSTREAM_PEER_SUBJECT": Operator(fields.peer("connection.peer", "subject")),
    "DOWNSTREAM_PEER_ISSUER": Operator(fields.peer("connection.peer", "issuer")),
    "DOWNSTREAM_PEER_URI_SAN": Operator(fields.peer("connection.peer", "uri_sans", _list)),
    "DOWNSTREAM_PEER_DNS_SAN": Operator(fields.peer("connection.peer", "dns_sans", _list)),
    "DOWNSTREAM_PEER_SERIAL": Operator(fields.peer("connection.peer", "serial")),
    "DOWNSTREAM_PEER_FINGERPRINT_256": Operator(fields.peer("connection.peer", "sha256")),
    "DOWNSTREAM_PEER_CERT": Operator(fields.peer("connection.peer", "pem", lambda pem: quote(pem, safe=""))),
    "DOWNSTREAM_LOCAL_URI_SAN": Operator(fields.local_uri_sans),
    "DOWNSTREAM_TLS_VERSION": Operator(fields.through("connection", "tls_version")),
    "DOWNSTREAM_TLS_CIPHER": Operator(fields.through("connection", "cipher")),
    "REQUESTED_SERVER_NAME": Operator(fields.server_name, "optional"),
    "ROUTE_NAME": Operator(fields.field("route_name")),
    "VIRTUAL_CLUSTER_NAME": Operator(fields.virtual_cluster),
    "ACCESS_LOG_TYPE": Operator(fields.log_type),
    "LOCAL_REPLY_BODY": Operator(fields.local_body),
    "UPSTREAM_PROTOCOL": Operator(fields.while_upstream("HTTP/1.1")),
    "UPSTREAM_HOSTS_ATTEMPTED": Operator(fields.attempted(0, False)),
    "UPSTREAM_HOSTS_ATTEMPTED_WITHOUT_PORT": Operator(fields.attempted(0, True)),
    "UPSTREAM_HOST_NAMES_ATTEMPTED": Operator(fields.attempted(1, False)),
    "UPSTREAM_HOST_NAMES_ATTEMPTED_WITHOUT_PORT": Operator(fields.attempted(1, True)),
    "CUSTOM_FLAGS": Operator(fields.always("")),
    "BYTES_RETRANSMITTED": Operator(fields.always(0)),
    "PACKETS_RETRANSMITTED": Operator(fields.always(0)),
    "ROUNDTRIP_DURATION": Operator(fields.nothing),
    "TRACE_ID": Operator(fields.nothing),
    "SPAN_ID": Operator(fields.nothing),
    "FILTER_STATE": Operator(fields.nothing, "required", length=True),
    "UPSTREAM_FILTER_STATE": Operator(fields.nothing, "required", length=True),
    "TLS_JA3_FINGERPRINT": Operator(fields.nothing),
    "TLS_JA4_FINGERPRINT": Operator(fields.nothing),
    "UNIQUE_ID": Operator(fields.unique_id),
    "DOWNSTREAM_LOCAL_ADDRESS_ENDPOINT_ID": Operator(fields.always("")),
    "DOWNSTREAM_DIRECT_LOCAL_ADDRESS_ENDPOINT_ID": Operator(fields.always("")),
    "UPSTREAM_REMOTE_ADDRESS_ENDPOINT_ID": Operator(fields.while_upstream("")),
    "FILTER_CHAIN_NAME": Operator(fields.through("connection", "filter_chain")),
    "METADATA": _tree(fields.metadata),
    "DYNAMIC_METADATA": _tree(fields.metadata_of("DYNAMIC")),
    "CLUSTER_METADATA": _tree(fields.metadata_of("CLUSTER")),
    "UPSTREAM_METADATA": _tree(fields.metadata_of("UPSTREAM_HOST")),
    "HOSTNAME": Operator(fields.hostname),
    "ENVIRONMENT": Operator(fields.environment, "required", length=True),
    "CONNECTION_ID": Operator(fields.connection_id),
    "STREAM_ID": Operator(fields.stream_id),
    **{
        f"DOWNSTREAM_{name}{suffix}": Operator(
            fields.address_of(owner, attribute, part), "optional" if part == "host" else "none"
        )
        for name, owner, attribute in (
            ("REMOTE", "request", "remote"),
            ("DIRECT_REMOTE", "connection", "peer_address"),
            ("LOCAL", "connection", "local"),
            ("DIRECT_LOCAL", "connection", "local"),
        )
        for suffix, part in (("_ADDRESS", "both"), ("_ADDRESS_WITHOUT_PORT", "host"), ("_PORT", "port"))
    },
}
