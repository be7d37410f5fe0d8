"""Envoy's configuration dump as the rows of istioctl's proxy-config tables.

Job: pure functions from the JSON of /config_dump (admin.v3.ConfigDump) and /clusters?format=json
(admin.v3.Clusters) to rows.
Rule: a dump may come from our agent, from a real Envoy or from istiod itself, so every field may be absent.
Not for: fetching or printing (`istiod.ctl.proxy_config`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Json = Mapping[str, Any]

LISTENER_COLUMNS = ("ADDRESSES", "PORT", "MATCH", "DESTINATION")
ROUTE_COLUMNS = ("NAME", "VHOST NAME", "DOMAINS", "MATCH", "VIRTUAL SERVICE")
CLUSTER_COLUMNS = ("SERVICE FQDN", "PORT", "SUBSET", "DIRECTION", "TYPE", "DESTINATION RULE")
ENDPOINT_COLUMNS = ("ENDPOINT", "STATUS", "OUTLIER CHECK", "CLUSTER")
SECRET_COLUMNS = ("RESOURCE NAME", "TYPE", "STATUS", "VALID CERT", "SERIAL NUMBER", "NOT AFTER", "NOT BEFORE")

Row = tuple[str, ...]


def section(dump: Json, suffix: str) -> Json:
    """One part of the dump, `ListenersConfigDump` and so on; empty when it is missing."""
    for part in dump.get("configs", ()):
        if str(part.get("@type", "")).endswith("." + suffix):
            return part  # type: ignore[no-any-return]
    return {}


def _dynamic(part: Json, statics: str, dynamics: str, key: str) -> Iterator[Json]:
    for entry in part.get(statics, ()):
        yield entry.get(key, {})
    for entry in part.get(dynamics, ()):
        state = entry.get("active_state", entry)
        if key in state:
            yield state[key]


def listeners(dump: Json) -> list[Json]:
    """All active listeners."""
    return list(
        _dynamic(section(dump, "ListenersConfigDump"), "static_listeners", "dynamic_listeners", "listener")
    )


def clusters(dump: Json) -> list[Json]:
    """All active clusters."""
    part = section(dump, "ClustersConfigDump")
    return list(_dynamic(part, "static_clusters", "dynamic_active_clusters", "cluster"))


def routes(dump: Json) -> list[Json]:
    """All route configurations that came by RDS."""
    part = section(dump, "RoutesConfigDump")
    return list(_dynamic(part, "static_route_configs", "dynamic_route_configs", "route_config"))


def assignments(dump: Json) -> list[Json]:
    """All endpoint assignments (the dump must have been asked for with include_eds)."""
    part = section(dump, "EndpointsConfigDump")
    return list(_dynamic(part, "static_endpoint_configs", "dynamic_endpoint_configs", "endpoint_config"))


def address_of(address: Json) -> tuple[str, int]:
    """A core.v3.Address as (host, port)."""
    sock = address.get("socket_address", {})
    return str(sock.get("address", "")), int(sock.get("port_value", 0))


def listener_rows(found: Sequence[Json]) -> list[Row]:
    """One row for each filter chain, as `istioctl proxy-config listeners`."""
    rows: list[Row] = []
    for listener in found:
        host, port = address_of(listener.get("address", {}))
        more = [address_of(extra.get("address", {}))[0] for extra in listener.get("additional_addresses", ())]
        addresses = ",".join([host, *more])
        chains = list(listener.get("filter_chains", ()))
        if "default_filter_chain" in listener:
            chains.append(listener["default_filter_chain"])
        rows += [(addresses, str(port), _chain_match(chain), _destination(chain)) for chain in chains]
    return sorted(rows, key=lambda row: (int(row[1]), row[0]))


def _chain_match(chain: Json) -> str:
    match = chain.get("filter_chain_match", {})
    parts = []
    if match.get("transport_protocol"):
        parts.append(f"Trans: {match['transport_protocol']}")
    if match.get("application_protocols"):
        parts.append(f"App: {','.join(match['application_protocols'])}")
    if match.get("server_names"):
        parts.append(f"SNI: {','.join(match['server_names'])}")
    if match.get("prefix_ranges"):
        parts.append("Addr: " + ",".join(_range(prefix) for prefix in match["prefix_ranges"]))
    if match.get("destination_port"):
        parts.append(f"Port: {match['destination_port']}")
    return "; ".join(parts) or "ALL"


def _range(prefix: Json) -> str:
    return f"{prefix.get('address_prefix', '')}/{prefix.get('prefix_len', 0)}"


def _destination(chain: Json) -> str:
    for entry in chain.get("filters", ()):
        config = entry.get("typed_config", {})
        kind = str(config.get("@type", ""))
        if kind.endswith(".HttpConnectionManager"):
            if "rds" in config:
                return f"Route: {config['rds'].get('route_config_name', '')}"
            hosts = config.get("route_config", {}).get("virtual_hosts", [])
            targets = sorted(
                {target for host in hosts for r in host.get("routes", ()) for target in _targets(r)}
            )
            return f"Inline Route: {', '.join(targets)}"
        if kind.endswith(".TcpProxy"):
            if "cluster" in config:
                return f"Cluster: {config['cluster']}"
            weighted = config.get("weighted_clusters", {}).get("clusters", [])
            return "Cluster: " + ", ".join(f"{w.get('name')} ({w.get('weight')})" for w in weighted)
    return "Non-HTTP/Non-TCP"


def _targets(route: Json) -> list[str]:
    action = route.get("route", {})
    if "cluster" in action:
        return [str(action["cluster"])]
    if "weighted_clusters" in action:
        return [str(entry.get("name")) for entry in action["weighted_clusters"].get("clusters", ())]
    return []


def route_rows(found: Sequence[Json]) -> list[Row]:
    """One row for each route, as `istioctl proxy-config routes`."""
    rows: list[Row] = []
    for config in found:
        for host in config.get("virtual_hosts", ()):
            domains = host.get("domains", [])
            shown = ", ".join(domains[:2]) + (f" + {len(domains) - 2} more..." if len(domains) > 2 else "")
            rows += [
                (
                    str(config.get("name", "")),
                    str(host.get("name", "")),
                    shown,
                    route_match(route.get("match", {})),
                    _origin(route.get("metadata", {})) or _answer(route),
                )
                for route in host.get("routes", ())
            ]
    return sorted(
        rows, key=lambda row: (not row[0].isdigit(), int(row[0]) if row[0].isdigit() else 0, row[0])
    )


def route_match(match: Json) -> str:
    """A RouteMatch as one text; headers and query parameters by name."""
    text = ""
    for key, sign in (("prefix", "*"), ("path", ""), ("path_separated_prefix", "*")):
        if key in match:
            text = f"{match[key]}{sign}"
    if "safe_regex" in match:
        text = f"regex {match['safe_regex'].get('regex', '')}"
    extra = [str(header.get("name")) for header in match.get("headers", ())]
    if extra:
        text += f" [{', '.join(extra)}]"
    return text


def _answer(route: Json) -> str:
    if "direct_response" in route:
        return str(route["direct_response"].get("status", ""))
    return "redirect" if "redirect" in route else ""


def _origin(metadata: Json) -> str:
    """The Istio resource a thing was made from: metadata filter `istio`, key `config`, as NAME.NAMESPACE."""
    path = str(metadata.get("filter_metadata", {}).get("istio", {}).get("config", ""))
    parts = path.strip("/").split("/")
    return f"{parts[-1]}.{parts[-3]}" if len(parts) >= 4 and "namespaces" in parts else ""


def cluster_rows(found: Sequence[Json]) -> list[Row]:
    """One row for each cluster, as `istioctl proxy-config clusters`."""
    rows: list[Row] = []
    for cluster in found:
        name = str(cluster.get("name", ""))
        kind = str(cluster.get("type") or cluster.get("cluster_type", {}).get("name", "STATIC"))
        direction, port, subset, host = split_cluster(name)
        rows.append((host, port, subset, direction, kind, _origin(cluster.get("metadata", {}))))
    return sorted(rows)


def split_cluster(name: str) -> tuple[str, str, str, str]:
    """`outbound|9080|v1|host` as (direction, port, subset, host); "-" where a plain name has none."""
    parts = name.split("|")
    if len(parts) != 4:
        return "-", "-", "-", name
    return parts[0], parts[1], parts[2] or "-", parts[3]


def endpoint_rows_from_clusters(found: Json) -> list[Row]:
    """Rows of /clusters?format=json: health and outlier state as the proxy sees them."""
    rows: list[Row] = []
    for cluster in found.get("cluster_statuses", ()):
        for host in cluster.get("host_statuses", ()):
            address, port = address_of(host.get("address", {}))
            health = host.get("health_status", {})
            outlier = "FAILED" if health.get("failed_outlier_check") else "OK"
            rows.append((_endpoint(address, port), _health(health), outlier, str(cluster.get("name", ""))))
    return sorted(rows)


def endpoint_rows(found: Sequence[Json]) -> list[Row]:
    """Rows of endpoint assignments: what the control plane said."""
    rows: list[Row] = []
    for assignment in found:
        for group in assignment.get("endpoints", ()):
            for entry in group.get("lb_endpoints", ()):
                address, port = address_of(entry.get("endpoint", {}).get("address", {}))
                health = str(entry.get("health_status", "HEALTHY"))
                status = "HEALTHY" if health in ("UNKNOWN", "HEALTHY") else health
                rows.append((_endpoint(address, port), status, "-", str(assignment.get("cluster_name", ""))))
    return sorted(rows)


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _health(health: Json) -> str:
    if health.get("failed_active_health_check") or health.get("eds_health_status") == "UNHEALTHY":
        return "UNHEALTHY"
    return "DRAINING" if health.get("eds_health_status") == "DRAINING" else "HEALTHY"


def secret_rows(certificates: Json, now: datetime) -> list[Row]:
    """Rows of /certs (admin.v3.Certificates): the workload's chain and its roots."""
    rows: list[Row] = []
    for group in certificates.get("certificates", ()):
        for name, kind, key in (("default", "Cert Chain", "cert_chain"), ("ROOTCA", "CA", "ca_cert")):
            for entry in group.get(key, ()):
                valid = _moment(entry.get("valid_from")) <= now < _moment(entry.get("expiration_time"))
                rows.append(
                    (
                        name,
                        kind,
                        "ACTIVE",
                        "true" if valid else "false",
                        str(entry.get("serial_number", "")),
                        str(entry.get("expiration_time", "")),
                        str(entry.get("valid_from", "")),
                    )
                )
    return sorted(set(rows))


def _moment(text: Any) -> datetime:
    """A time of the dump; a missing one is long past."""
    return (
        datetime.fromisoformat(str(text).replace("Z", "+00:00")) if text else datetime.min.replace(tzinfo=UTC)
    )
