"""A mesh without I/O: "where does this call go, and who lets it in?", asked of what istiod compiles.

A World is workloads and YAML. `call` resolves the name with the name table, finds listener, chain and route
with the data plane's own interpreter (agent/table, agent/worker/chain_match, agent/routing, agent/filters),
takes an endpoint, and enters the callee's inbound listener the same way. Nothing is imitated but the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address

from agent.filters.chain import FilterState, compile_steps
from agent.filters.network import compile_network
from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, Delay, LocalReply, PeerIdentity, RequestContext
from agent.routing.compile import compile_routes
from agent.routing.plan import RoutePlan
from agent.table import build as table_build
from agent.table.cluster import Cluster, Endpoint
from agent.table.listener import FilterChain, HttpManager, Listener, TcpProxy
from agent.table.snapshot import Table
from agent.table.tls import UpstreamTls
from agent.worker.chain_match import ChainIndex, Seen
from istiod.compile import Cache, ProxyInfo, compile_proxy
from istiod.resources.document import parse
from istiod.resources.mesh_config import mesh_config
from istiod.snapshot import Snapshot, build
from registry.model import Health, Instance, Port, Resource, Service
from wire.proto import name_table_pb2
from wire.xds import NAME_TABLE

HTTP = (Port("http", 9080),)


@dataclass(frozen=True)
class Workload:
    """One host with one workload."""

    service: str
    version: str
    address: str
    ports: tuple[Port, ...] = HTTP
    namespace: str = "default"
    healthy: bool = True
    mtls: bool = True
    labels: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.service}-{self.version}"

    @property
    def identity(self) -> str:
        return f"spiffe://cluster.local/ns/{self.namespace}/sa/bookinfo-{self.service}"

    @property
    def all_labels(self) -> dict[str, str]:
        return {"app": self.service, "version": self.version, **self.labels}


BOOKINFO = (
    Workload("productpage", "v1", "10.0.0.1"),
    Workload("reviews", "v1", "10.0.0.11"),
    Workload("reviews", "v2", "10.0.0.12"),
    Workload("reviews", "v3", "10.0.0.13"),
    Workload("ratings", "v1", "10.0.0.21"),
    Workload("details", "v1", "10.0.0.31"),
    Workload("mysqldb", "v1", "10.0.0.41", (Port("mysql", 3306),)),
    Workload("web", "v1", "10.0.0.51", (Port("web", 8080),)),
)


@dataclass
class Outcome:
    """What became of a call. `status` is set where a proxy answered itself; `workload` where it arrived."""

    listener: str = ""
    chain: str = ""
    cluster: str = ""
    endpoint: str = ""
    workload: str = ""
    tls: str = ""
    """`mtls` (of the mesh), `tls` (originated), `plain`."""
    sni: str = ""
    status: int | None = None
    details: str = ""
    closed: str = ""
    """Which side closed the connection without an answer, and why."""
    delay: float = 0.0
    path: str = ""
    authority: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    plan: RoutePlan | None = None
    inbound_chain: str = ""
    inbound_cluster: str = ""

    @property
    def timeout(self) -> float:
        assert self.plan is not None
        return self.plan.timeout

    @property
    def tries(self) -> int:
        assert self.plan is not None
        return 1 + (self.plan.retry.attempts if self.plan.retry else 0)


class World:
    """Workloads and the resources applied to them."""

    def __init__(
        self, *yaml: str, workloads: tuple[Workload, ...] = BOOKINFO, mesh: dict[str, object] | None = None
    ) -> None:
        self.workloads = {workload.name: workload for workload in workloads}
        self.mesh = mesh_config(mesh or {})
        self.cache = Cache()
        self._resources: dict[object, Resource] = {}
        self._tables: dict[str, Table] = {}
        self.snapshot: Snapshot = self._build()
        self.apply(*yaml)

    def apply(self, *yaml: str) -> None:
        """Add or change resources, as meshctl apply does; refused ones fail the test."""
        for text in yaml:
            parsed = parse(text)
            assert not parsed.blocking(), [str(problem) for problem in parsed.blocking()]
            for document in parsed.documents:
                self._resources[document.resource.key] = document.resource
        self.snapshot = self._build(self.snapshot)
        self._tables.clear()

    def table(self, name: str) -> Table:
        """The data plane's table of a workload."""
        if name not in self._tables:
            compiled = compile_proxy(self.snapshot, self.proxy(name), self.cache)
            bodies = {url: {n: one.body for n, one in found.items()} for url, found in compiled.types.items()}
            self._tables[name] = table_build.build(bodies)
        return self._tables[name]

    def proxy(self, name: str) -> ProxyInfo:
        """The proxy of a workload."""
        one = self.workloads[name]
        return ProxyInfo(
            one.namespace, f"bookinfo-{one.service}", one.all_labels, (one.address,), one.service, one.name, one.ports
        )  # fmt: skip

    def resolve(self, source: str, host: str) -> str:
        """The address that the source's DNS answers, or the host itself if it is one."""
        try:
            return str(ip_address(host))
        except ValueError:
            pass
        compiled = compile_proxy(self.snapshot, self.proxy(source), self.cache)
        names = compiled.message(NAME_TABLE, "", name_table_pb2.NameTable)
        assert isinstance(names, name_table_pb2.NameTable)
        for full, info in names.table.items():
            if host == full or host in info.alt_hosts:
                return info.ips[0]
        return "203.0.113.80"  # what the host's own resolver says of the world outside

    def http(
        self,
        source: str,
        url: str,
        method: str = "GET",
        headers: dict[str, str] | None = None,
        random: int = 0,
    ) -> Outcome:
        """An HTTP/1.1 call by the application of `source`."""
        authority, _, path = url.removeprefix("http://").partition("/")
        host, _, port = authority.partition(":")
        local = (self.resolve(source, host), int(port or 80))
        outcome = Outcome()
        found = self._outbound(
            source, Seen(local, (self.workloads[source].address, 40000), protocols=("http/1.1",)), outcome
        )
        if found is None:
            return outcome
        if isinstance(found.terminal, TcpProxy):
            outcome.cluster = found.terminal.clusters[0].cluster
            return self._opaque(source, outcome, local, "raw_buffer", ("http/1.1",), "")
        ctx = _request(method, f"/{path}", authority, headers or {}, random, _connection(source, local))
        if not self._decide(self.table(source), found.terminal, ctx, outcome):
            return outcome
        return self._enter(source, outcome, ctx, local)

    def tcp(self, source: str, host: str, port: int, sni: str = "", random: int = 0) -> Outcome:
        """Opaque bytes, or with `sni` a TLS connection of the application's own."""
        local = (self.resolve(source, host), port)
        transport = "tls" if sni else "raw_buffer"
        seen = Seen(local, (self.workloads[source].address, 40000), sni, transport)
        outcome = Outcome()
        chain = self._outbound(source, seen, outcome)
        if chain is None:
            return outcome
        assert isinstance(chain.terminal, TcpProxy)
        total = sum(one.weight for one in chain.terminal.clusters)
        draw = random % total if len(chain.terminal.clusters) > 1 else 0
        for one in chain.terminal.clusters:
            outcome.cluster = one.cluster
            draw -= one.weight
            if draw < 0:
                break
        return self._opaque(source, outcome, local, transport, (), sni)

    def stranger(
        self,
        target: str,
        port: int = 9080,
        path: str = "/",
        tls: tuple[str, ...] | None = None,
        identity: str = "",
    ) -> Outcome:
        """A call by a host outside the mesh, straight to a workload's address. `tls` is the ALPN it offers."""
        one = self.workloads[target]
        outcome = Outcome(workload=target)
        ctx = _request("GET", path, f"{one.address}:{port}", {}, 0, _connection("", (one.address, port)))
        transport, protocols = ("raw_buffer", ("http/1.1",)) if tls is None else ("tls", tls)
        seen = Seen((one.address, port), ("198.51.100.7", 50000), "", transport, protocols)
        self._inbound(target, seen, outcome, ctx, identity)
        return outcome

    def _build(self, previous: Snapshot | None = None) -> Snapshot:
        services: dict[tuple[str, str], Service] = {}
        instances = []
        for one in self.workloads.values():
            number = len(services) + 1
            key = (one.namespace, one.service)
            services.setdefault(
                key,
                Service(one.service, one.namespace, one.ports, f"240.240.0.{number}", f"2001:2::{number}"),
            )
            instances.append(
                Instance(
                    f"{one.namespace}/{one.name}",
                    one.service,
                    one.namespace,
                    (one.address,),
                    one.ports,
                    one.all_labels,
                    f"bookinfo-{one.service}",
                    "",
                    0,
                    Health.HEALTHY if one.healthy else Health.UNHEALTHY,
                    one.name,
                    one.name,
                    "",
                    one.mtls,
                )
            )
        return build(services.values(), instances, self._resources.values(), self.mesh, previous)

    def _outbound(self, source: str, seen: Seen, outcome: Outcome) -> FilterChain | None:
        table = self.table(source)
        listener = _listener(table, seen.local)
        outcome.listener = listener.name
        chain = _chain(listener, seen)
        if chain is None:
            outcome.closed = f"{source}: no filter chain"
            return None
        outcome.chain = chain.name
        return chain

    def _decide(self, table: Table, manager: HttpManager, ctx: RequestContext, outcome: Outcome) -> bool:
        """Route and filters; False when the proxy answers itself."""
        route = table.routes[manager.route] if isinstance(manager.route, str) else manager.route
        state = FilterState()
        router = compile_routes(route, lambda scope: compile_steps(manager.filters, scope, state))
        plan = router.route(ctx)
        if plan is None:
            outcome.status, outcome.details = 404, "route_not_found"
            return False
        outcome.plan = ctx.route = plan
        for step in plan.request_steps:
            verdict = step(ctx)
            if isinstance(verdict, Delay):
                outcome.delay += verdict.seconds
            elif isinstance(verdict, LocalReply):
                return _answered(verdict, outcome)
        if plan.respond is not None:
            return _answered(plan.respond(ctx), outcome)
        if plan.finish_request is not None:
            plan.finish_request(ctx)
        outcome.cluster = plan.cluster
        outcome.path, outcome.authority = ctx.path.decode(), ctx.authority.decode()
        outcome.headers = {name.decode(): value.decode() for name, value in ctx.headers.fields()}
        return True

    def _enter(self, source: str, outcome: Outcome, ctx: RequestContext, local: tuple[str, int]) -> Outcome:
        """From the chosen cluster to an endpoint, and into its workload."""
        table = self.table(source)
        cluster = table.clusters.get(outcome.cluster)
        if cluster is None:
            outcome.status, outcome.details = 503, "cluster_not_found"
            return outcome
        endpoint = _pick(table, cluster, local)
        if endpoint is None:
            outcome.status, outcome.details = 503, "no_healthy_upstream"
            return outcome
        tls = _tls(cluster, endpoint)
        self._note(outcome, endpoint, tls)
        target = next((one for one in self.workloads.values() if one.address == endpoint.address.host), None)
        if target is None:
            return outcome
        outcome.workload = target.name
        transport, protocols = ("raw_buffer", ("http/1.1",)) if tls is None else ("tls", tls.alpn)
        seen = Seen(
            (endpoint.address.host, endpoint.address.port),
            (self.workloads[source].address, 41000),
            "",
            transport,
            protocols,
        )
        inner = _request(
            ctx.method.decode(), outcome.path, outcome.authority, outcome.headers, 0, ctx.connection
        )
        identity = self.workloads[source].identity if outcome.tls == "mtls" else ""
        self._inbound(target.name, seen, outcome, inner, identity)
        return outcome

    def _opaque(
        self,
        source: str,
        outcome: Outcome,
        local: tuple[str, int],
        transport: str,
        protocols: tuple[str, ...],
        sni: str,
    ) -> Outcome:
        table = self.table(source)
        cluster = table.clusters.get(outcome.cluster)
        endpoint = _pick(table, cluster, local) if cluster is not None else None
        if cluster is None or endpoint is None:
            outcome.closed = f"{source}: no upstream"
            return outcome
        tls = _tls(cluster, endpoint)
        self._note(outcome, endpoint, tls)
        target = next((one for one in self.workloads.values() if one.address == endpoint.address.host), None)
        if target is None:
            return outcome
        outcome.workload = target.name
        if tls is not None:
            transport, protocols = "tls", tls.alpn
        seen = Seen(
            (endpoint.address.host, endpoint.address.port),
            (self.workloads[source].address, 41000),
            sni,
            transport,
            protocols,
        )
        ctx = _request("GET", "/", "", {}, 0, _connection(source, local))
        self._inbound(
            target.name, seen, outcome, ctx, self.workloads[source].identity if outcome.tls == "mtls" else ""
        )
        return outcome

    def _inbound(self, name: str, seen: Seen, outcome: Outcome, ctx: RequestContext, identity: str) -> None:
        table = self.table(name)
        chain = _chain(table.listeners["virtualInbound"], seen)
        if chain is None:
            outcome.closed = f"{name}: no filter chain"
            return
        if chain.tls is not None and not identity:
            outcome.closed = f"{name}: client certificate required"
            return
        outcome.inbound_chain = chain.name
        peer = PeerIdentity((identity,)) if chain.tls is not None else None
        ctx.connection = ConnectionInfo(
            2, seen.remote, seen.local, tls=chain.tls is not None, peer=peer, sni=seen.server_name
        )
        ctx.client = seen.remote
        if isinstance(chain.terminal, TcpProxy):
            gate = compile_network(chain.network_filters, FilterState())
            if gate is not None and gate.enter(ctx.connection) is not None:
                outcome.closed = f"{name}: refused by policy"
                return
            outcome.inbound_cluster = chain.terminal.clusters[0].cluster
            return
        inner = Outcome()
        if self._decide(table, chain.terminal, ctx, inner):
            outcome.inbound_cluster = inner.cluster
        else:
            outcome.status, outcome.details = inner.status, inner.details

    def _note(self, outcome: Outcome, endpoint: Endpoint, tls: UpstreamTls | None) -> None:
        outcome.endpoint = f"{endpoint.address.host}:{endpoint.address.port}"
        if tls is None:
            outcome.tls = "plain"
        else:
            outcome.tls, outcome.sni = "mtls" if "default" in tls.certificates else "tls", tls.sni


def _request(
    method: str, path: str, authority: str, headers: dict[str, str], random: int, connection: ConnectionInfo
) -> RequestContext:
    fields = Headers((name.lower().encode(), value.encode()) for name, value in headers.items())
    return RequestContext(
        method.encode(), path.encode(), authority.encode(), fields, connection, random=random
    )


def _connection(source: str, local: tuple[str, int]) -> ConnectionInfo:
    return ConnectionInfo(1, ("10.9.9.9", 40000), local)


def _answered(reply: LocalReply, outcome: Outcome) -> bool:
    outcome.status, outcome.details = reply.status, reply.details
    outcome.headers = {name.decode(): value.decode() for name, value in reply.headers}
    return False


def _listener(table: Table, local: tuple[str, int]) -> Listener:
    """What virtualOutbound does with use_original_dst."""
    wildcard = "::" if ":" in local[0] else "0.0.0.0"
    for host in (local[0], wildcard):
        for listener in table.listeners.values():
            addresses = (listener.address, *listener.additional_addresses)
            if not listener.bind and any((one.host, one.port) == (host, local[1]) for one in addresses):
                return listener
    return table.listeners["virtualOutbound"]


def _chain(listener: Listener, seen: Seen) -> FilterChain | None:
    """The chain, with only what the listener's inspectors can see."""
    looked = Seen(seen.local, seen.remote, seen.server_name, seen.transport, seen.protocols)
    if not listener.tls_inspector:
        looked.server_name, looked.transport = "", "raw_buffer"
    if seen.transport == "raw_buffer" and not listener.http_inspector:
        looked.protocols = ()
    return ChainIndex([(chain.match, chain) for chain in listener.chains], listener.default_chain).find(
        looked
    )


def _pick(table: Table, cluster: Cluster, local: tuple[str, int]) -> Endpoint | None:
    from agent.table.listener import Address

    if cluster.discovery == "original_dst":
        return Endpoint(Address(local[0], local[1]))
    assignment = table.assignments.get(cluster.eds_name) if cluster.discovery == "eds" else cluster.assignment
    healthy = [one for one in assignment.endpoints if one.healthy] if assignment else []
    return healthy[0] if healthy else None


def _tls(cluster: Cluster, endpoint: Endpoint) -> UpstreamTls | None:
    """transport_socket_matches by the endpoint's metadata, else the cluster's own."""
    wanted = endpoint.metadata.get("envoy.transport_socket_match", {})
    for match in cluster.transport_matches:
        if all(wanted.get(key) == value for key, value in match.match.items()):
            return match.tls
    return cluster.tls
