"""A mesh without I/O: "where would this call go, and may it?", answered by the shipped control and data plane.

    mesh = Mesh()
    mesh.add("reviews-v1", service="reviews", labels={"app": "reviews", "version": "v1"}, port=9080)
    mesh.apply(yaml)
    decision = mesh.call("productpage-v1", "http://reviews:9080/reviews/0", headers={"end-user": "jason"})
    assert decision.workload == "reviews-v2"

Rule: resources are read by istiod.resources, compiled by istiod.compile, encoded, built by agent.table and run by the
agent's own exchange on both sides; here stand only the applications, the addresses and the clock.
Not for: bytes, sockets, certificates (tests/differential, tests/hosts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from agent.host.dns.names import Names
from agent.host.workload import names_of
from agent.http.headers import Headers
from agent.table.build import TableBuilder
from agent.table.tls import UpstreamTls
from agent.upstream.pool import Pool
from agent.worker.certificates import compile_judge
from istiod.compile import Cache, ProxyInfo, ProxyResources, compile_proxy
from istiod.resources.document import Document, Parsed, parse
from istiod.resources.mesh_config import mesh_config
from istiod.resources.problem import Severity
from istiod.snapshot import Snapshot, build
from registry.model import Health, Instance, Port, Resource, ResourceKey, Service, merge_ports
from tests.mesh.loop import Answered, Loop, Response, Sent
from tests.mesh.proxy import Accepted, Address, Hop, Opening, Proxy
from wire.xds import CLUSTER, ENDPOINT, LISTENER, NAME_TABLE, ROUTE

CASES = Path(__file__).parents[3] / "shared" / "cases"
DATA_PLANE = (LISTENER, ROUTE, CLUSTER, ENDPOINT)
_BUILDER = TableBuilder()
"""One for all: what two proxies have in common is decoded once, as between two configurations of one agent."""
DEFAULT_RANDOM = 0x5DEECE66D1234567


@dataclass(slots=True)
class Workload:
    """One application on a host of its own; `mtls` false: no proxy stands in front of it."""

    name: str
    service: str
    namespace: str
    address: str
    ports: tuple[Port, ...]
    labels: Mapping[str, str]
    service_account: str
    mtls: bool = True
    locality: str = ""
    weight: int = 0
    healthy: bool = True
    status: int = 200
    """What it answers to every request."""
    takes: float = 0.0
    """Seconds until it answers."""
    down: bool = False
    """Refuses connections."""
    received: list[Sent] = field(default_factory=list)

    @property
    def key(self) -> str:
        """`NAMESPACE/NAME`."""
        return f"{self.namespace}/{self.name}"

    def instance(self) -> Instance:
        """As the catalog has it."""
        return Instance(
            id=self.key, service=self.service, namespace=self.namespace, addresses=(self.address,), ports=self.ports,
            labels=self.labels, service_account=self.service_account, locality=self.locality, weight=self.weight,
            health=Health.HEALTHY if self.healthy else Health.UNHEALTHY, node=self.name, workload=self.name,
            mtls=self.mtls,
        )  # fmt: skip


@dataclass(slots=True)
class Decision:
    """What became of one call. `status` 0: the caller's connection was closed without an answer."""

    status: int = 0
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    workload: str = ""
    """The application that answered, or `address:port` for one outside the mesh; empty: none did."""
    received: Sent | None = None
    """The request as that application got it."""
    outbound: Hop = field(default_factory=Hop)
    inbound: Hop = field(default_factory=Hop)
    """Of the last endpoint that was tried."""
    refused: str = ""
    """Why a connection was not taken."""
    seconds: float = 0.0

    @property
    def mtls(self) -> bool:
        """The two proxies spoke mutual TLS."""
        return self.inbound.tls

    def got(self, name: str) -> str | None:
        """A header field as the application received it."""
        value = self.received.headers.joined(name.encode()) if self.received is not None else None
        return None if value is None else value.decode()

    def __str__(self) -> str:
        """`reviews-v2 at 10.0.0.2:9080, timeout 2 s, 3 tries, mTLS with spiffe://…`."""
        out = self.outbound
        if not self.workload:
            return f"{self.status or 'closed'} {','.join(out.flags)} {out.details or self.refused}".strip()
        parts = [f"{self.workload} at {out.endpoint}"]
        parts.append(f"timeout {out.timeout:g} s" if out.timeout else "no timeout")
        parts.append(f"{out.tries} tries" if out.tries > 1 else "1 try")
        parts.append(
            f"mTLS with {', '.join(expected_names(out.upstream_tls))}" if self.mtls else "plain text"
        )
        return ", ".join(parts)


class Mesh:
    """See the module. Every change makes a new snapshot at the next call."""

    def __init__(self, **mesh: Any) -> None:
        """`mesh`: Istio's meshConfig, its names."""
        self.config = mesh_config(mesh)
        self.workloads: dict[str, Workload] = {}
        self.resources: dict[object, Resource] = {}
        self.internet: dict[str, str] = {}
        """Names that only the outside world's DNS knows."""
        self.outside_answers: Callable[[Sent], Response] | None = None
        self.problems: list[Any] = []
        self.damaged: tuple[ResourceKey, ...] = ()
        """Rows of which the registry can read the key alone."""
        self._vips: dict[tuple[str, str], int] = {}
        self._extra_services: dict[tuple[str, str], Service] = {}
        self._created = 0.0
        self._held = False
        self._loop = Loop()
        self._cache = Cache()
        self._snapshot: Snapshot | None = None
        self._stale = True
        self._proxies: dict[str, Proxy] = {}
        self._compiled: dict[str, ProxyResources] = {}
        self._names: dict[str, Names] = {}
        self._call: Decision
        self._die = 0
        self._started = 0.0

    # What is there

    def add(
        self, name: str, *, service: str = "", namespace: str = "default", port: int | Port | tuple[Port, ...] = 9080,
        labels: Mapping[str, str] | None = None, service_account: str = "", address: str = "", **more: Any,
    ) -> Workload:  # fmt: skip
        """A workload with its host, and its service when that is new."""
        service = service or name
        if isinstance(port, int):
            port = Port("http", port)
        ports = port if isinstance(port, tuple) else (port,)
        workload = Workload(
            name, service, namespace, address or f"10.0.0.{len(self.workloads) + 1}", ports,
            labels if labels is not None else {"app": service}, service_account or service, **more,
        )  # fmt: skip
        self.workloads[name] = workload
        self.service(service, namespace)
        self.changed()
        return workload

    def service(self, name: str, namespace: str = "default", ports: tuple[Port, ...] = ()) -> None:
        """A service, also one without instances."""
        number = self._vips.setdefault((namespace, name), len(self._vips) + 1)
        if ports:
            vip = (f"240.240.0.{number}", f"2001:2::{number:x}")
            self._extra_services[namespace, name] = Service(name, namespace, ports, *vip)
        self.changed()

    def apply(self, text: str | Path, namespace: str = "default") -> Parsed:
        """Resources, as `meshctl apply` takes them; what would make it fail is an AssertionError."""
        source = text.name if isinstance(text, Path) else ""
        parsed = parse(text.read_text() if isinstance(text, Path) else text, source, namespace)
        assert not parsed.blocking(), [str(problem) for problem in parsed.blocking()]
        self.store(parsed.documents)
        self.problems += parsed.problems
        return parsed

    def store(self, documents: tuple[Document[Any], ...]) -> None:
        """Put documents into the mesh; an older one of the same name is replaced."""
        for document in documents:
            self._created += 1
            values = {slot: getattr(document.resource, slot) for slot in Resource.__slots__}
            values |= {"created": self._created, "version": str(self._created)}
            self.resources[document.resource.key] = Resource(**values)
        self.changed()

    def hold(self, *resources: Resource) -> None:
        """Resources as an older version stored them, whatever this one would say."""
        for resource in resources:
            self._created += 1
            self.resources[resource.key] = replace(
                resource, created=self._created, version=str(self._created)
            )
        self._held = True
        self.changed()

    def sample(self, *names: str) -> None:
        """Files of Istio's samples, unchanged."""
        for name in names:
            self.apply(CASES / "istio-samples" / f"{name}.yaml")

    def delete_all(self) -> None:
        """No resources any more."""
        self.resources.clear()
        self.changed()

    def changed(self) -> None:
        """Something of the mesh has changed."""
        self._proxies.clear()
        self._compiled.clear()
        self._names.clear()
        self._stale = True

    # What is made of it

    @property
    def snapshot(self) -> Snapshot:
        """The mesh as it is now."""
        if self._snapshot is None or self._stale:
            self._snapshot = build(
                self._services(),
                [workload.instance() for workload in self.workloads.values()],
                self.resources.values(),
                self.config,
                self._snapshot,
                damaged_rows=self.damaged,
            )
            unusable = [str(one) for one in self._snapshot.problems if one.severity is not Severity.WARNING]
            assert not unusable or self._held or self.damaged, unusable
            self._stale = False
        return self._snapshot

    def _services(self) -> list[Service]:
        found = dict(self._extra_services)
        for workload in self.workloads.values():
            key = (workload.namespace, workload.service)
            number = self._vips[key]
            known = found[key].ports if key in found else ()
            vips = (f"240.240.0.{number}", f"2001:2::{number:x}")
            found[key] = Service(
                workload.service, workload.namespace, merge_ports(known, workload.ports), *vips
            )
        return list(found.values())

    def info(self, name: str) -> ProxyInfo:
        """What istiod knows of a workload's proxy."""
        one = self.workloads[name]
        return ProxyInfo(
            namespace=one.namespace, service_account=one.service_account, labels=one.labels, addresses=(one.address,),
            service=one.service, workload=one.name, ports=one.ports, locality=one.locality, node=one.name,
        )  # fmt: skip

    def compiled(self, name: str) -> ProxyResources:
        """What istiod sends to a workload's proxy."""
        snapshot = self.snapshot
        found = self._compiled.get(name)
        if found is None:
            found = self._compiled[name] = compile_proxy(snapshot, self.info(name), self._cache)
        return found

    def proxy(self, name: str) -> Proxy:
        """The proxy of a workload, its table built from the encoded resources."""
        compiled = self.compiled(name)
        found = self._proxies.get(name)
        if found is None:
            bodies = {url: {key: one.body for key, one in compiled.of(url).items()} for url in DATA_PLANE}
            built = _BUILDER.build(bodies)
            assert not built.refused, built.refused
            found = Proxy(name, self.identity(name), built.table, self._loop, self._connect)
            self._proxies[name] = found
        return found

    def identity(self, name: str) -> str:
        """A workload's SPIFFE id."""
        one = self.workloads[name]
        return f"spiffe://{self.config.trust_domain}/ns/{one.namespace}/sa/{one.service_account}"

    def resolve(self, name: str, host: str) -> str:
        """What the DNS of a workload's host answers; "" when there is no such name."""
        names = self._names.get(name)
        if names is None:
            held: Any = {NAME_TABLE: self.compiled(name).of(NAME_TABLE)}
            home = self.workloads[name].namespace
            names = self._names[name] = names_of(held, home, self.config.domain_suffix)
        full = names.find(host)
        if full is not None:
            found = names.addresses(full)
            return (found.v4 or found.v6)[0]
        return self.internet.get(host, "")

    # Calls

    def call(
        self, from_: str, to: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, host: str = "",
        body: bytes = b"", random: int = DEFAULT_RANDOM, address: str = "", raw_path: str = "",
    ) -> Decision:  # fmt: skip
        """One call by a workload: `http://name:port/path`, `https://name` or `tcp://name:port`.

        `host` overrides the Host field, `address` the DNS answer, `raw_path` goes out as it is.
        """
        url = urlsplit(to)
        port = url.port or {"http": 80, "https": 443}[url.scheme]
        name = url.hostname or ""
        literal = name.replace(".", "").isdigit() or ":" in name
        target = address or (name if literal else self.resolve(from_, name))
        assert target, f"{name} cannot be resolved on {from_}"
        self._begin(random)
        source = self.workloads[from_]
        opening = Opening(tls=url.scheme == "https", http=url.scheme == "http", server_name="", alpn=())
        if opening.tls:
            opening = Opening(tls=True, server_name=name, alpn=("h2", "http/1.1"))
        remote = (source.address, 40000)
        if source.mtls:
            proxy = self.proxy(from_)
            accepted = proxy.accept(
                proxy.listener((target, port)), (target, port), remote, opening, random, self._call.outbound
            )
        else:
            accepted = self._arrive((target, port), remote, opening)
        return self._finish(accepted, self._request(url, method, headers, host, body, raw_path))

    def knock(
        self, to: str, *, identity: str = "", alpn: tuple[str, ...] = (), tls: bool = False, method: str = "GET",
        headers: Mapping[str, str] | None = None, host: str = "", remote: str = "192.0.2.9", raw_path: str = "",
    ) -> Decision:  # fmt: skip
        """A call straight to a host's address by somebody without a proxy, plain or with a certificate of its own."""
        url = urlsplit(to)
        self._begin(DEFAULT_RANDOM)
        opening = Opening(tls=tls or bool(identity), http=url.scheme == "http", alpn=alpn, identity=identity)
        accepted = self._arrive((url.hostname or "", url.port or 80), (remote, 40000), opening)
        return self._finish(accepted, self._request(url, method, headers, host, b"", raw_path))

    def _begin(self, random: int) -> None:
        self._call = Decision()
        self._die = random
        self._started = self._loop.now

    def _request(
        self, url: Any, method: str, headers: Mapping[str, str] | None, host: str, body: bytes, raw_path: str
    ) -> Sent:
        path = raw_path or (url.path or "/") + (f"?{url.query}" if url.query else "")
        fields = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
        return Sent(method.encode(), path.encode(), (host or url.netloc).encode(), Headers(fields), body)

    def _finish(self, accepted: Accepted | str, request: Sent) -> Decision:
        decision = self._call
        if isinstance(accepted, str):
            decision.refused = decision.refused or accepted
            return decision
        if accepted.far is None:
            decision.workload = accepted.tcp
            return decision
        answers: list[Response] = []
        accepted.far(request, answers.append)
        self._loop.run_until(lambda: bool(answers))
        response = answers[0]
        decision.status, decision.body = response.status, response.body
        decision.headers = {name.decode(): value.decode() for name, value in response.headers}
        if not any(name == b"x-workload" for name, _ in response.headers):
            decision.workload = ""
        decision.seconds = self._loop.now - self._started
        return decision

    def _connect(self, proxy: Proxy, pool: Pool, hop: Hop) -> Accepted | str:
        """A proxy's connection to a host: to its own application, another workload's host, or the outside."""
        endpoint = pool.host.endpoint
        target = (
            endpoint.hostname if not endpoint.address.host else endpoint.address.host,
            endpoint.address.port,
        )
        source = self.workloads[proxy.name]
        inbound = pool.cluster.name.startswith("inbound|") or pool.cluster.name == "InboundPassthroughCluster"
        if inbound:
            return self._application(source, target, hop)
        tls: UpstreamTls | None = pool.host.tls_context
        hop.upstream_tls = tls
        opening = Opening(http=True)
        if hop.cluster and not hop.virtual_host and tls is None and not pool.waiting:
            opening = Opening()
        if tls is not None:
            judge = compile_judge(tls.validation.sans) if tls.validation is not None else None
            opening = Opening(
                tls=True, http=bool(pool.waiting), server_name=tls.sni, alpn=tls.alpn,
                identity=proxy.identity if tls.certificates else "", expects=judge,
            )  # fmt: skip
        return self._arrive(target, (source.address, 40001), opening)

    def _arrive(self, target: Address, remote: Address, opening: Opening) -> Accepted | str:
        """A connection reaches a host from the network."""
        for workload in self.workloads.values():
            if workload.address == target[0]:
                if not workload.mtls:
                    return self._application(workload, target, Hop())
                proxy = self.proxy(workload.name)
                self._call.inbound = hop = Hop()
                listener = proxy.table.listeners["virtualInbound"]
                found = proxy.accept(listener, target, remote, opening, self._die, hop)
                if isinstance(found, str):
                    self._call.refused = found
                return found
        return self._outside(f"{target[0]}:{target[1]}", opening)

    def _application(self, workload: Workload, target: Address, hop: Hop) -> Accepted | str:
        if workload.down:
            return "connection refused"

        def answer(sent: Sent, answered: Answered) -> None:
            workload.received.append(sent)
            self._call.workload, self._call.received = workload.name, sent
            response = Response(
                workload.status, [(b"x-workload", workload.name.encode())], workload.name.encode()
            )
            self._loop.after(workload.takes, lambda: answered(response))

        return Accepted(answer, None, workload.name)

    def _outside(self, address: str, opening: Opening) -> Accepted:
        def answer(sent: Sent, answered: Answered) -> None:
            self._call.workload, self._call.received = address, sent
            response = Response(200, [(b"x-workload", address.encode())], b"outside")
            if self.outside_answers is not None:
                response = self.outside_answers(sent)
            self._loop.after(0, lambda: answered(response))

        return Accepted(answer, None, address)


def expected_names(tls: UpstreamTls | None) -> tuple[str, ...]:
    """The names that a proxy demands of the server's certificate."""
    if tls is None or tls.validation is None:
        return ()
    return tuple(one.match.value + ("*" if one.match.kind == "prefix" else "") for one in tls.validation.sans)
