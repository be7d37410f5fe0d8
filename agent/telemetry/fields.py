"""How the operators of the substitution formatter read an Outcome.

Rule: a factory `(argument, absent) -> getter` is called once when the format is compiled; the getter returns
text, a number or a JSON-like tree, and `absent` where there is nothing to tell. Header values become text as
UTF-8 with surrogate escapes, so that a file sink writes the very bytes of the wire.
Not for: which operators there are (operators.py), time (times.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from ipaddress import ip_network
from operator import attrgetter
from typing import Any, Final
from uuid import uuid4

from agent.telemetry.flags import LONG_NAMES
from agent.telemetry.outcome import Outcome
from agent.telemetry.times import Factory, Getter


def text(value: bytes) -> str:
    """Wire bytes as text; bytes that are not UTF-8 survive as surrogates."""
    return value.decode("utf-8", "surrogateescape")


# Path and query


def path(argument: str, absent: Any) -> Getter:
    query, _, which = (argument or "WQ").partition(":")
    which = which or "ORIG_OR_PATH"
    if query not in ("WQ", "NQ") or which not in ("ORIG", "PATH", "ORIG_OR_PATH"):
        raise ValueError(f"PATH takes WQ or NQ, then ORIG, PATH or ORIG_OR_PATH, got {argument!r}")
    keep = query == "WQ"

    def get(outcome: Outcome) -> Any:
        request = outcome.request
        if request is None:
            return absent
        original = request.headers.get(b"x-envoy-original-path") if which != "PATH" else None
        path = original if which == "ORIG" else original or request.path
        if not path:
            return absent
        return text(path if keep else path.split(b"?", 1)[0])

    return get


def query_parameter(argument: str, absent: Any) -> Getter:
    wanted = argument.encode()

    def get(outcome: Outcome) -> Any:
        if outcome.request is None:
            return absent
        for pair in outcome.request.path.partition(b"?")[2].split(b"&"):
            name, _, value = pair.partition(b"=")
            if name == wanted:
                return text(value)
        return absent

    return get


def query(argument: str, absent: Any) -> Getter:
    if argument not in ("", "ORIG", "DECODED"):
        raise ValueError(f"QUERY_PARAMS takes ORIG or DECODED, got {argument!r}")

    def get(outcome: Outcome) -> Any:
        query = outcome.request.path.partition(b"?")[2] if outcome.request is not None else b""
        return text(query) or absent

    return get


# Plain fields of the outcome


def field(attribute: str, underscores: bool = False) -> Factory:
    """A text, empty where there is nothing to tell; `underscores` replaces blanks, as in Envoy's details."""
    read = attrgetter(attribute)

    def make(argument: str, absent: Any) -> Getter:
        if underscores and argument != "ALLOW_WHITESPACES":
            return lambda outcome: "_".join(read(outcome).split()) or absent
        return lambda outcome: read(outcome) or absent

    return make


def count(attribute: str) -> Factory:
    read: Getter = attrgetter(attribute)
    return lambda _argument, _absent: read


def through(first: str, then: str) -> Factory:
    """A text of an object that may be missing: `outcome.first.then`."""
    outer, inner = attrgetter(first), attrgetter(then)

    def make(_argument: str, absent: Any) -> Getter:
        def get(outcome: Outcome) -> Any:
            found = outer(outcome)
            return absent if found is None else inner(found) or absent

        return get

    return make


def peer(side: str, attribute: str, convert: Callable[[Any], str] = str) -> Factory:
    """A field of a TLS peer's identity: `side` is `connection.peer` or `upstream_peer`."""
    read = attrgetter(attribute)

    def make(_argument: str, absent: Any) -> Getter:
        def get(outcome: Outcome) -> Any:
            connection = outcome.connection
            peer = outcome.upstream_peer if side == "upstream_peer" else connection and connection.peer
            return absent if peer is None else convert(read(peer)) or absent

        return get

    return make


def flags(long: bool) -> Factory:
    def make(_argument: str, _absent: Any) -> Getter:
        if long:
            return lambda outcome: ",".join([LONG_NAMES.get(flag, flag) for flag in outcome.flags]) or "-"
        return lambda outcome: ",".join(outcome.flags) or "-"

    return make


def hostname(_argument: str, absent: Any) -> Getter:
    name = os.uname().nodename or absent
    return lambda _outcome: name


def environment(argument: str, _absent: Any) -> Getter:
    value = os.environ.get(argument, "-")
    return lambda _outcome: value


def cluster(_argument: str, absent: Any) -> Getter:
    def get(outcome: Outcome) -> Any:
        cluster = outcome.cluster
        return absent if cluster is None else cluster.alt_stat_name or cluster.name

    return get


def local_uri_sans(_argument: str, absent: Any) -> Getter:
    """The URI SANs of the certificate shown to the client."""

    def get(outcome: Outcome) -> Any:
        connection = outcome.connection
        return absent if connection is None else ",".join(connection.local_uri_sans) or absent

    return get


def connection_id(_argument: str, _absent: Any) -> Getter:
    """The downstream connection's number, 0 without one (as Envoy)."""
    return lambda outcome: 0 if outcome.connection is None else outcome.connection.id


def unique_id(_argument: str, _absent: Any) -> Getter:
    """A new identifier for every line."""
    return lambda _outcome: str(uuid4())


def stream_id(_argument: str, absent: Any) -> Getter:
    """The request id."""

    def get(outcome: Outcome) -> Any:
        request = outcome.request
        return absent if request is None else text(request.request_id) or absent

    return get


def nothing(_argument: str, absent: Any) -> Getter:
    return lambda _outcome: absent


def always(value: Any) -> Factory:
    """The same for every outcome."""
    return lambda _argument, _absent: lambda _outcome: value


def while_upstream(value: Any) -> Factory:
    """A value that goes with a connection to an upstream."""
    return lambda _argument, absent: lambda outcome: value if outcome.upstream_local else absent


def virtual_cluster(_argument: str, absent: Any) -> Getter:
    """The first virtual cluster of the virtual host that the request matches."""

    def get(outcome: Outcome) -> Any:
        request = outcome.request
        find = request.route.virtual_cluster if request is not None and request.route is not None else None
        return absent if find is None else find(request) or absent

    return get


def log_type(_argument: str, _absent: Any) -> Getter:
    """Lines are written when a request or an opaque connection is over."""
    return lambda outcome: "DownstreamEnd" if outcome.protocol else "TcpConnectionEnd"


def local_body(_argument: str, _absent: Any) -> Getter:
    return lambda outcome: text(outcome.local_body)


def server_name(argument: str, absent: Any) -> Getter:
    """REQUESTED_SERVER_NAME: the SNI, or the request's host where there is none (SNI_FIRST), or before it (HOST_FIRST)."""
    if argument not in ("", "SNI_ONLY", "SNI_FIRST", "HOST_FIRST"):
        raise ValueError(f"takes SNI_ONLY, SNI_FIRST or HOST_FIRST, got {argument!r}")

    def get(outcome: Outcome) -> Any:
        sni = outcome.connection.sni if outcome.connection is not None else ""
        if argument in ("", "SNI_ONLY"):
            return sni or absent
        host = text(outcome.request.authority) if outcome.request is not None else ""
        return (sni or host if argument == "SNI_FIRST" else host or sni) or absent

    return get


def attempted(which: int, without_port: bool) -> Factory:
    """UPSTREAM_HOSTS_ATTEMPTED and its kin: every host that took the request, by address (0) or by name (1)."""

    def make(_argument: str, absent: Any) -> Getter:
        def get(outcome: Outcome) -> Any:
            hosts = list(outcome.attempted or ())
            if outcome.upstream_local:
                hosts.append((outcome.upstream_address, outcome.upstream_host or outcome.upstream_address))
            found = dict.fromkeys([host[which] for host in hosts])
            return ",".join([_bare(host) if without_port else host for host in found]) or absent

        return get

    return make


def _bare(name: str) -> str:
    host, colon, port = name.rpartition(":")
    return host.strip("[]") if colon and port.isdigit() else name


# Addresses


def joined(address: tuple[str, int]) -> str:
    """`ip:port`, v6 in brackets; a path (Unix socket) or a name without a port as it is."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else host if host.startswith("/") else f"{host}:{port}"


def address_of(owner: str, attribute: str, part: str) -> Factory:
    """`part` is `both`, `host` or `port`; the owner is `connection`, or `request` (else the connection)."""
    read = attrgetter(attribute)

    def make(_argument: str, absent: Any) -> Getter:
        def get(outcome: Outcome) -> Any:
            if owner == "request" and outcome.request is not None:
                address = outcome.request.client
            elif outcome.connection is not None:
                address = read(outcome.connection)
            else:
                return absent
            return joined(address) if part == "both" else address[0] if part == "host" else address[1]

        return _masked(get, _argument, absent) if _argument else get

    return make


def _masked(get: Getter, argument: str, absent: Any) -> Getter:
    """`127.0.0.0/8`: the network of this prefix length that an address is in."""
    if not argument.isdigit() or int(argument) > 128:
        raise ValueError(f"takes a prefix length, got {argument!r}")

    def mask(outcome: Outcome) -> Any:
        try:
            return str(ip_network(f"{get(outcome)}/{argument}", strict=False))
        except ValueError:
            return absent

    return mask


def upstream_remote(_argument: str, absent: Any) -> Getter:
    """The endpoint's address, once a connection to it stood (UPSTREAM_HOST tells it before that, too)."""
    return lambda outcome: (outcome.upstream_address if outcome.upstream_local else "") or absent


def upstream_part(attribute: str, part: str) -> Factory:
    read = attrgetter(attribute)

    def make(_argument: str, absent: Any) -> Getter:
        def get(outcome: Outcome) -> Any:
            host, colon, port = read(outcome).rpartition(":") if outcome.upstream_local else ("", "", "")
            if part == "port":
                return int(port) if colon and port.isdigit() else absent
            return (host.strip("[]") if colon else port) or absent

        return get

    return make


def upstream_name(without_port: bool) -> Factory:
    def make(_argument: str, absent: Any) -> Getter:
        def get(outcome: Outcome) -> Any:
            name = outcome.upstream_host or outcome.upstream_address
            if without_port:
                host, colon, port = name.rpartition(":")
                name = host if colon and port.isdigit() else name
            return name or absent

        return get

    return make


# Metadata


def metadata_at(read: Callable[[Outcome], Any], argument: str, absent: Any) -> Getter:
    namespace, *path = argument.split(":")

    def get(outcome: Outcome) -> Any:
        node = read(outcome)
        for key in (namespace, *path):
            node = node.get(key) if isinstance(node, Mapping) else None
        return absent if node is None else _whole(node)

    return get


def _whole(node: Any) -> Any:
    """Numbers of a protobuf Struct are floats; whole ones print without a fraction."""
    if isinstance(node, float):
        return int(node) if node.is_integer() else node
    if isinstance(node, Mapping):
        return {key: _whole(value) for key, value in node.items()}
    return [_whole(value) for value in node] if isinstance(node, list | tuple) else node


def _dynamic(outcome: Outcome) -> Any:
    return outcome.request.dynamic_metadata if outcome.request is not None else None


METADATA: Final[dict[str, Callable[[Outcome], Any]]] = {
    "DYNAMIC": _dynamic,
    "ROUTE": lambda outcome: outcome.route_metadata,
    "CLUSTER": lambda outcome: outcome.cluster.metadata if outcome.cluster is not None else None,
    "UPSTREAM_HOST": lambda outcome: outcome.upstream_metadata,
    "LISTENER": lambda outcome: outcome.listener.metadata if outcome.listener is not None else None,
    "LISTENER_FILTER_CHAIN": lambda outcome: (
        outcome.connection.chain_metadata if outcome.connection is not None else None
    ),
    "VIRTUAL_HOST": lambda outcome: outcome.virtual_host_metadata,
}


def metadata_of(kind: str) -> Factory:
    """An operator for one kind of metadata: `NAMESPACE[:KEY…]`."""
    return lambda argument, absent: metadata_at(METADATA[kind], argument, absent)


def metadata(argument: str, absent: Any) -> Getter:
    kind, _, rest = argument.partition(":")
    if kind not in METADATA or not rest:
        raise ValueError(f"METADATA takes TYPE:NAMESPACE[:KEY…] with TYPE one of {', '.join(METADATA)}")
    return metadata_at(METADATA[kind], rest, absent)
