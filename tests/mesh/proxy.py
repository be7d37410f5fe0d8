"""One proxy of a simulated mesh: its compiled resources, built to a table and run by the data plane's own parts.

Rule: listener, filter chain, route, filters, cluster, endpoint, TLS and retries are chosen by agent/*; this module only
puts the parts together as a worker does, and connects exchanges by values instead of sockets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from agent.exchange import local_reply
from agent.exchange.exchange import Exchange
from agent.exchange.setting import Setting
from agent.exchange.target import host_for
from agent.filters.chain import FilterState, compile_steps
from agent.filters.network import compile_network
from agent.http.h1_message import Limits, judge_request
from agent.http.headers import Headers
from agent.http.intake import client_certificate_element, compile_intake
from agent.http.outgoing import compile_outgoing
from agent.http.request import ConnectionInfo, PeerIdentity, RequestContext
from agent.routing.compile import Router, compile_routes
from agent.routing.normalise import compile_normaliser
from agent.routing.plan import RoutePlan
from agent.table.cluster import Cluster, Endpoint
from agent.table.listener import FilterChain, HttpManager, Listener, TcpProxy
from agent.table.snapshot import Table
from agent.table.tls import UpstreamTls
from agent.telemetry.outcome import Outcome
from agent.telemetry.scopes import ClusterStats, HttpStats
from agent.telemetry.stats import StatsRegion
from agent.upstream import reset
from agent.upstream.cluster import ClusterRuntime
from agent.upstream.pool import Pool
from agent.worker.certificates import compile_judge
from agent.worker.chain_match import ChainIndex, Seen, inspected, owner
from tests.mesh.loop import Answered, Caller, Far, Loop, Response, Sent, Wire

Address = tuple[str, int]


@lru_cache(maxsize=1)
def _region() -> StatsRegion:
    return StatsRegion.create(slots=1 << 16, index_bytes=1 << 20)


@dataclass(frozen=True, slots=True)
class Opening:
    """How a client begins: plain HTTP, other plain bytes, or a ClientHello with its names and certificate."""

    tls: bool = False
    http: bool = False
    server_name: str = ""
    alpn: tuple[str, ...] = ()
    identity: str = ""
    """The client certificate's URI."""
    expects: Callable[[PeerIdentity], bool] | None = None
    """What the client demands of the server's certificate."""


@dataclass(slots=True)
class Hop:
    """What one proxy decided about one call."""

    listener: str = ""
    chain: str = ""
    tls: bool = False
    """The proxy ended TLS of its client."""
    virtual_host: str = ""
    route: str = ""
    cluster: str = ""
    endpoint: str = ""
    timeout: float = 0.0
    per_try_timeout: float = 0.0
    tries: int = 1
    retry_on: frozenset[str] = frozenset()
    upstream_tls: UpstreamTls | None = None
    flags: tuple[str, ...] = ()
    details: str = ""
    attempts: int = 0
    endpoints_tried: list[str] = field(default_factory=list)
    metadata: Mapping[str, Mapping[str, object]] | None = None
    """What the filters noted (dry-run verdicts)."""


@dataclass(slots=True)
class Accepted:
    """A connection that a proxy took: the far end of a wire, and who the server is."""

    far: Far | None
    """None: opaque bytes."""
    server: PeerIdentity | None = None
    tcp: str = ""
    """Where the opaque bytes end: a workload or an address."""


Connect = Callable[["Proxy", Pool, Hop], "Accepted | str"]
"""Open a connection to a pool's host for a hop; a text says why it failed."""


class Proxy:
    """A worker's table at work for one workload."""

    def __init__(self, name: str, identity: str, table: Table, loop: Loop, connect: Connect) -> None:
        self.name = name
        self.identity = identity
        self.table = table
        self._loop = loop
        self._connect = connect
        self._state = FilterState()
        self._settings: dict[int, tuple[Setting, HttpManager]] = {}
        self._indexes: dict[str, ChainIndex[FilterChain]] = {}
        self._random = 0
        self._hops: dict[int, Hop] = {}
        self.clusters = {name: self._cluster(config) for name, config in table.clusters.items()}

    def listener(self, local: Address) -> Listener:
        """Who takes a captured outbound connection to this address (Envoy ConnectionHandlerImpl)."""
        outbound = self.table.listeners["virtualOutbound"]
        assert outbound.use_original_dst
        by_address = {
            (one.host, one.port): listener
            for listener in self.table.listeners.values()
            for one in (listener.address, *listener.additional_addresses)
        }
        return owner(by_address, local) or outbound

    def chain(
        self, listener: Listener, local: Address, remote: Address, opening: Opening
    ) -> FilterChain | None:
        """The filter chain for what the listener's inspectors can see of the client's first bytes."""
        index = self._indexes.get(listener.name)
        if index is None:
            pairs = [(chain.match, chain) for chain in listener.chains]
            index = self._indexes[listener.name] = ChainIndex(pairs, listener.default_chain)
        sees_tls, sees_http = inspected(listener, local[1])
        seen = Seen(local, remote)
        if opening.tls and sees_tls:
            seen.transport, seen.protocols = "tls", opening.alpn
            seen.server_name = opening.server_name.lower()
        elif opening.http and not opening.tls and sees_http:
            seen.protocols = ("http/1.1",)
        return index.find(seen)

    def accept(
        self, listener: Listener, local: Address, remote: Address, opening: Opening, random: int, hop: Hop
    ) -> Accepted | str:
        """Take a connection: chain, handshake, network filters; then requests or bytes."""
        chain = self.chain(listener, local, remote, opening)
        hop.listener = listener.name
        if chain is None:
            return "no filter chain matches"
        hop.chain = chain.name
        peer: PeerIdentity | None = None
        if chain.tls is not None:
            if not opening.tls:
                return "plain text where TLS is spoken"
            hop.tls = True
            if opening.identity:
                peer = PeerIdentity(uri_sans=(opening.identity,), subject="", sha256="0" * 64)
                judge = compile_judge(chain.tls.validation.sans) if chain.tls.validation else None
                if judge is not None and not judge(peer):
                    return "the server refuses the client's certificate"
            elif chain.tls.require_client_certificate:
                return "the server asks for a client certificate"
            if opening.expects is not None and not opening.expects(PeerIdentity(uri_sans=(self.identity,))):
                return "the client refuses the server's certificate"
        connection = ConnectionInfo(
            1, remote, local, tls=chain.tls is not None, peer=peer, sni=opening.server_name,
            local_uri_sans=(self.identity,), listener=listener.name, filter_chain=chain.name,
            filter_state=chain.filter_state,
        )  # fmt: skip
        gate = compile_network(chain.network_filters, self._state)
        refusal = gate.enter(connection) if gate is not None else None
        if refusal is not None:
            hop.details = refusal.details
            return "a network filter refuses"
        server = PeerIdentity(uri_sans=(self.identity,)) if chain.tls is not None else None
        if isinstance(chain.terminal, TcpProxy):
            return self._tcp(chain.terminal, connection, random, hop, server)
        assert opening.http, "bytes that are not HTTP reached a connection manager"
        setting = self._setting(listener, chain.terminal)
        element = client_certificate_element(chain.terminal, connection)

        def far(sent: Sent, answered: Answered) -> None:
            self._serve(setting, connection, element, random, hop, sent, answered)

        return Accepted(far, server)

    def _serve(
        self, setting: Setting, connection: ConnectionInfo, element: bytes | None, random: int, hop: Hop, sent: Sent,
        answered: Answered,
    ) -> None:  # fmt: skip
        """One request through the shipped exchange."""

        def finished(response: Response) -> None:
            self._describe(exchange, hop)
            answered(response)

        caller = Caller(self._loop, connection, element, finished)
        exchange = caller.exchange = Exchange(setting, caller)
        body = sent.body
        fields = [(b"host", sent.authority), *sent.headers.every()]
        if body and b"content-length" not in sent.headers:
            fields.append((b"content-length", b"%d" % len(body)))
        head = judge_request(sent.method, sent.path, Headers.of_wire(fields), False, Limits())
        self._random = random
        self._hops[id(exchange)] = hop
        exchange.begin(head)
        if not head.ended:
            exchange.request_data(body)
            exchange.request_end(None)

    def _describe(self, exchange: Exchange, hop: Hop) -> None:
        outcome = exchange.outcome
        plan = exchange.plan
        del self._hops[id(exchange)]
        if plan is not None:
            describe_plan(plan, hop)
        hop.timeout, hop.per_try_timeout = exchange.total_timeout, exchange.try_timeout
        hop.cluster = outcome.cluster.name if outcome.cluster is not None else ""
        hop.endpoint = outcome.upstream_address
        hop.flags, hop.details, hop.attempts = tuple(outcome.flags), outcome.details, outcome.attempts
        hop.metadata = exchange.ctx.dynamic_metadata

    def _tcp(
        self,
        terminal: TcpProxy,
        connection: ConnectionInfo,
        random: int,
        hop: Hop,
        server: PeerIdentity | None,
    ) -> Accepted | str:
        """Opaque bytes: a weighted cluster, a host, and on."""
        die = random % sum(one.weight for one in terminal.clusters)
        for one in terminal.clusters:
            if die < one.weight:
                break
            die -= one.weight
        hop.cluster = one.cluster
        cluster = self.clusters.get(one.cluster)
        if cluster is None:
            return f"no cluster {one.cluster}"
        ctx = RequestContext(b"", b"", b"", Headers(), connection, random=random)
        host = host_for(cluster, ctx, RoutePlan(name="", virtual_host=""), (), None)
        if host is None:
            return f"nobody serves {one.cluster}"
        hop.endpoint = host.name
        onward = self._connect(self, host.pool, hop)
        return onward if isinstance(onward, str) else Accepted(None, server, onward.tcp)

    def _setting(self, listener: Listener, manager: HttpManager) -> Setting:
        known = self._settings.get(id(manager))
        if known is not None:
            return known[0]
        routes = self.table.routes.get(manager.route) if isinstance(manager.route, str) else manager.route
        assert routes is not None, f"no route configuration {manager.route}"
        region = _region()
        setting = Setting(
            manager, listener, self.router(manager), self.clusters,
            intake=compile_intake(manager), normalise=compile_normaliser(manager), outgoing=compile_outgoing(manager),
            rewrite=local_reply.compile_rewrite(manager.local_reply), logs=(), record=_nothing,
            stats=HttpStats(region, manager.stat_prefix), slots=region.counts, clock=self._loop,
            random=lambda: self._random, raw_pool=lambda host: host.pool,
        )  # fmt: skip
        self._settings[id(manager)] = (setting, manager)
        return setting

    def router(self, manager: HttpManager) -> Router:
        """The compiled routes of a connection manager."""
        routes = self.table.routes[manager.route] if isinstance(manager.route, str) else manager.route
        return compile_routes(routes, lambda scope: compile_steps(manager.filters, scope, self._state))

    def _cluster(self, config: Cluster) -> ClusterRuntime:
        region = _region()
        runtime = ClusterRuntime(config, self._open, ClusterStats(region, config.name), region.counts, seed=0)
        runtime.reconfigure(config, lambda endpoint: tls_of(config, endpoint))
        assignment = (
            self.table.assignments.get(config.eds_name) if config.discovery == "eds" else config.assignment
        )
        if assignment is not None:
            runtime.update_hosts(assignment.endpoints, assignment.overprovisioning)
        return runtime

    def _open(self, pool: Pool) -> None:
        self._loop.soon(lambda: self._opened(pool))

    def _opened(self, pool: Pool) -> None:
        waiter = pool.waiting[0] if pool.waiting else None
        hop = self._hops[id(waiter)]
        hop.endpoints_tried.append(pool.host.name)
        accepted = self._connect(self, pool, hop)
        if isinstance(accepted, str):
            pool.failed(reset.CONNECT_FAILURE, accepted)
            return
        assert accepted.far is not None
        pool.connected(Wire(self._loop, pool, accepted.far, "", accepted.server))


def describe_plan(plan: RoutePlan, hop: Hop) -> None:
    """The parts of a plan that users ask about."""
    hop.virtual_host, hop.route = plan.virtual_host, plan.name
    if plan.retry is not None:
        hop.tries, hop.retry_on = plan.retry.attempts + 1, plan.retry.on


@dataclass(frozen=True)
class Secured:
    """What a worker makes of an endpoint's TLS, without OpenSSL."""

    context: UpstreamTls


def tls_of(cluster: Cluster, endpoint: Endpoint) -> Secured | None:
    """The TLS of an endpoint: the first transport_socket_match that its metadata has, else the cluster's."""
    wanted = endpoint.metadata.get("envoy.transport_socket_match", {})
    tls = cluster.tls
    for one in cluster.transport_matches:
        if all(wanted.get(key) == value for key, value in one.match.items()):
            tls = one.tls
            break
    return Secured(tls) if tls is not None else None


def _nothing(outcome: Outcome) -> None:
    """Metrics are not simulated."""
