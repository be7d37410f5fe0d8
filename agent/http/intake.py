"""What happens to every request's headers before filters and routes see them.

Source: Envoy ConnectionManagerUtility::mutateRequestHeaders.

Rule: nothing that a client sends may pass for something that a proxy says: hop-by-hop fields go, `x-forwarded-*`,
`x-envoy-*` and XFCC are kept, made or dropped by what is known of the connection. Made once from a connection manager's
settings. Not for: path and host normalisation (agent/routing), changes that a route asks for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeAlias
from urllib.parse import quote

from agent.http.detection import compile_detection, from_the_end, is_internal
from agent.http.h1_message import RequestHead, connection_tokens
from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, LocalReply, RequestContext
from agent.table.listener import HttpManager

Intake: TypeAlias = Callable[[RequestContext, RequestHead, "bytes | None"], LocalReply | None]

INTERNAL_ONLY: Final = (
    b"x-envoy-internal",
    b"x-envoy-retriable-status-codes", b"x-envoy-retriable-header-names", b"x-envoy-retry-on", b"x-envoy-retry-grpc-on",
    b"x-envoy-max-retries", b"x-envoy-upstream-alt-stat-name", b"x-envoy-upstream-rq-timeout-ms",
    b"x-envoy-upstream-rq-per-try-timeout-ms", b"x-envoy-upstream-rq-timeout-alt-response",
    b"x-envoy-expected-rq-timeout-ms", b"x-envoy-force-trace", b"x-envoy-ip-tags", b"x-envoy-original-url",
    b"x-envoy-hedge-on-per-try-timeout",
)  # fmt: skip
"""Fields that only internal requests may carry."""
EDGE_ONLY: Final = (
    b"x-envoy-decorator-operation", b"x-envoy-downstream-service-cluster", b"x-envoy-downstream-service-node",
    b"x-envoy-original-path",
)  # fmt: skip
"""Fields that no client outside may send."""


def compile_intake(manager: HttpManager, host_address: str = "") -> Intake:
    """The function that cleans and completes a request. Its third argument is the connection's XFCC element, if any.
    `host_address` stands for loopback clients in X-Forwarded-For, as Envoy's local address does."""
    use_remote = manager.use_remote_address
    hops = manager.xff_trusted_hops
    append_xff = not manager.skip_xff_append
    forward = manager.forward_client_cert
    networks = manager.internal_networks
    generate = manager.generate_request_id
    preserve = manager.preserve_external_request_id
    via = manager.via
    port = manager.append_x_forwarded_port
    user_agent, user_node = manager.user_agent, manager.user_node
    scheme_overwrite = manager.scheme_overwrite
    detect = compile_detection(manager)

    def intake(ctx: RequestContext, head: RequestHead, xfcc: bytes | None) -> LocalReply | None:
        headers = ctx.headers
        connection = ctx.connection
        if b"connection" in headers:
            _drop_nominated(headers, head)
        elif b"upgrade" in headers:
            headers.remove(b"upgrade")
        if special := not _SPECIAL.isdisjoint(headers.first):
            headers.pop(b"transfer-encoding", None)
            for name in _HOP_BY_HOP:
                if name in headers:
                    headers.remove(name)
            if b"te" in headers:
                _keep_trailers(headers)
        proto = headers.get(b"x-forwarded-proto")
        scheme = b"https" if connection.tls else b"http"
        forwarded = headers.joined(b"x-forwarded-for") if b"x-forwarded-for" in headers else None
        internal = False
        client = connection.remote[0]
        if use_remote:
            if hops and forwarded is not None:
                client = from_the_end(forwarded, hops - 1) or client
            internal = forwarded is None and is_internal(client, networks)
            if append_xff:
                headers.set(b"x-forwarded-for", _with_own(forwarded, connection, host_address))
            if not hops or proto is None:
                proto = scheme
                headers.set(b"x-forwarded-proto", proto)
            if port and (not hops or b"x-forwarded-port" not in headers):
                headers.set(b"x-forwarded-port", b"%d" % connection.local[1])
        elif detect is not None:
            found = detect(ctx, forwarded)
            if found.refused is not None:
                return found.refused
            if found.address is not None:
                client = found.address
                internal = found.trusted and is_internal(client, networks)
            if found.append:
                headers.set(b"x-forwarded-for", _with_own(forwarded, connection, host_address))
        elif forwarded is not None:
            if headers.repeated is not None:
                headers.set(b"x-forwarded-for", forwarded)
            told = from_the_end(forwarded, hops)
            if told is not None:
                client = told
                internal = b"," not in forwarded and is_internal(told, networks)
        if client is not connection.remote[0]:
            ctx.client = (client, 0)
        if proto is None:
            headers[b"x-forwarded-proto"] = proto = scheme
        if scheme_overwrite:
            proto = scheme_overwrite
            headers.set(b"x-forwarded-proto", proto)
        ctx.scheme = proto if proto == b"http" or proto == b"https" else scheme
        edge = use_remote and not internal
        if internal:
            headers.set(b"x-envoy-internal", b"true")
        else:
            if special:
                for name in INTERNAL_ONLY:
                    if name in headers:
                        headers.remove(name)
                if edge:
                    for name in EDGE_ONLY:
                        headers.remove(name)
            if edge:
                headers.set(b"x-envoy-external-address", client.encode())
        if user_agent is not None:
            headers.set(b"x-envoy-downstream-service-cluster", user_agent)
            if not headers.get(b"user-agent"):
                headers[b"user-agent"] = user_agent
            if user_node:
                headers.set(b"x-envoy-downstream-service-node", user_node)
        if b"x-forwarded-client-cert" in headers or xfcc is not None:
            _client_certificate(headers, forward, xfcc, connection)
        request_id = headers.get(b"x-request-id")
        if generate and (request_id is None or (edge and not preserve)):
            request_id = headers[b"x-request-id"] = make_request_id(ctx.random)
        ctx.request_id = request_id or b""
        if via:
            headers.set(b"via", headers[b"via"] + b", " + via if b"via" in headers else via)
        return None

    return intake


def _with_own(forwarded: bytes | None, connection: ConnectionInfo, host_address: str) -> bytes:
    """X-Forwarded-For with the connection's own address at the end."""
    own = connection.remote[0]
    if own in _LOOPBACK and host_address:
        own = host_address
    return own.encode() if not forwarded else forwarded + b"," + own.encode()


_LOOPBACK: Final = frozenset(("127.0.0.1", "::1"))
_HOP_BY_HOP: Final = (b"keep-alive", b"proxy-connection")
_SPECIAL: Final = frozenset((b"transfer-encoding", b"te", *_HOP_BY_HOP, *INTERNAL_ONLY, *EDGE_ONLY))
"""None of these: nothing to take away."""


def make_request_id(random: int) -> bytes:
    """A version 4 UUID of the random bits, which are also those of the request's other decisions, mixed to 122."""
    mixed = (random * 0x9E3779B97F4A7C15F39CC0605CEDC835 + 0x2545F4914F6CDD1D) & (1 << 128) - 1
    text = b"%032x" % (mixed ^ (random << 64))
    return b"%b-%b-4%b-%x%b-%b" % (
        text[:8], text[8:12], text[13:16], 8 | (random & 3), text[17:20], text[20:],
    )  # fmt: skip


def _drop_nominated(headers: Headers, head: RequestHead) -> None:
    """Remove what Connection names, and Connection itself; an upgrade keeps its two fields (RFC 9110 section 7.6.1)."""
    for name in connection_tokens(headers):
        if name and name not in _NEVER_NOMINATED:
            headers.remove(name)
    if not head.upgrade:
        headers.remove(b"connection")
        headers.remove(b"upgrade")


_NEVER_NOMINATED: Final = frozenset((
    b"close", b"keep-alive", b"upgrade", b"te", b"connection", b"host", b"content-length", b"transfer-encoding",
    b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto",
))  # fmt: skip


def _keep_trailers(headers: Headers) -> None:
    """Of TE only `trailers` may pass (RFC 9110 section 10.1.4), as it is and without a weight (Envoy)."""
    value = headers.joined(b"te") or b""
    if any(token.strip() == b"trailers" for token in value.split(b",")):
        headers.set(b"te", b"trailers")
    else:
        headers.remove(b"te")


def _client_certificate(
    headers: Headers, forward: str, element: bytes | None, connection: ConnectionInfo
) -> None:
    """X-Forwarded-Client-Cert by Envoy's forward_client_cert_details."""
    mutual = connection.tls and connection.peer is not None
    if forward == "always_forward_only":
        return
    if not mutual or forward == "sanitize":
        headers.remove(b"x-forwarded-client-cert")
    elif element is not None and forward == "append_forward":
        earlier = headers.joined(b"x-forwarded-client-cert")
        headers.set(b"x-forwarded-client-cert", element if earlier is None else earlier + b"," + element)
    elif element is not None and forward == "sanitize_set":
        headers.set(b"x-forwarded-client-cert", element)


def client_certificate_element(manager: HttpManager, connection: ConnectionInfo) -> bytes | None:
    """What this proxy says about its client's certificate; None where it says nothing. The same for all requests."""
    peer = connection.peer
    if peer is None or manager.forward_client_cert not in ("append_forward", "sanitize_set"):
        return None
    details = manager.client_cert_details
    parts = [f"By={uri}" for uri in connection.local_uri_sans[:1]]
    parts.append(f"Hash={peer.sha256}")
    if "cert" in details:
        parts.append(f'Cert="{quote(peer.pem, safe="")}"')
    if "chain" in details:
        parts.append(f'Chain="{quote(peer.chain_pem, safe="")}"')
    if "subject" in details:
        subject = peer.subject.replace("\\", "\\\\").replace('"', '\\"')
        parts.append(f'Subject="{subject}"')
    if "uri" in details:
        parts.extend(f"URI={uri}" for uri in peer.uri_sans or ("",))
    if "dns" in details:
        parts.extend(f"DNS={name}" for name in peer.dns_sans)
    return ";".join(parts).encode()
