"""One istiod process: its parts, the order in which they start, and how they end.

Job: open the registry, make or load the authorities, bind every port, start the parts, and on SIGTERM take
leave of proxies and admins before stopping.
Rule: every port is bound before anything is announced; ready means that a snapshot is loaded and xDS is served.
SIGHUP reads the file again; only `mesh` changes without a restart.
Not for: what the parts do (`istiod.feed`, `istiod.xds`, `istiod.api`, `istiod.ca`, `istiod.registration`).
"""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import socket
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import trio
from starlette.applications import Starlette

from istiod import notify
from istiod.access.records import AccessRecords, upgrade
from istiod.api.access import AccessApi
from istiod.api.app import admin_app
from istiod.api.inventory import InventoryApi
from istiod.api.proxies import ProxyApi
from istiod.api.resources import ResourceApi
from istiod.api.serving import serve_http
from istiod.api.tokens import TokenApi
from istiod.ca.admin import CONTEXT_FILE, ensure_admin_context
from istiod.ca.authority import Authority, istiod_identity
from istiod.ca.keys import CaError, admin_authority, claim_root, mesh_authority
from istiod.ca.service import CertificateService
from istiod.ca.serving import ServingCertificate, server_names, utc_now
from istiod.config import Address, Config, ConfigError, UnixSocket, load
from istiod.debug import DebugChannels
from istiod.enrolment import Enrolment
from istiod.feed import Feed
from istiod.log import fields
from istiod.monitoring import VERSION, Metrics, monitoring_app
from istiod.registration import Registration
from istiod.trial import Trial
from istiod.xds.plane import Plane
from istiod.xds.standing import Judge
from istiod.xds.stream import serve_delta, serve_sotw
from registry.errors import RegistryError
from registry.opening import open_registry
from registry.store import Registry
from wire import grpc
from wire.private_socket import private_socket, refuse_served

log = logging.getLogger("istiod")

_WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound
GRACE_SECONDS = 5.0
"""How long open calls may go on after SIGTERM."""


class StartError(Exception):
    """istiod cannot start; the message says why."""


async def run(config: Config, environ: Mapping[str, str], path: Path | None = None) -> None:
    """Run istiod until SIGTERM or SIGINT. Raises `StartError`. `path` is read again on SIGHUP."""
    os.umask(0o077)
    _allow_connections()
    try:
        config.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        config.state_dir.chmod(0o700)
        settings = config.registry_settings(environ)
        mesh_ca = mesh_authority(config.state_dir, config.ca.plugged, utc_now())
        admin_ca = admin_authority(config.state_dir, utc_now())
        async with open_registry(settings) as registry:
            await claim_root(registry.records, mesh_ca, plugged=config.ca.plugged is not None)
            if granted := await upgrade(registry, utc_now().timestamp()):
                log.warning("what was registered before grants is granted now", extra=fields(grants=granted))
            await _Istiod(
                config,
                registry,
                mesh_ca=mesh_ca,
                admin_ca=admin_ca,
                notifier=notify.ServiceNotifier(environ),
                path=path,
            ).run()
    except (CaError, RegistryError, ConfigError) as error:
        raise StartError(str(error)) from error
    except OSError as error:
        raise StartError(f"{error.filename or 'start'}: {error.strerror or error}") from error


def _allow_connections() -> None:
    """Every proxy is an open file: take what the system allows (the usual soft limit is 1024)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@dataclass
class _Ports:
    """What is bound: gRPC listeners and the plain sockets for HTTP."""

    xds: list[grpc.Listener]
    xds_plaintext: list[grpc.Listener]
    admin: socket.socket
    monitoring: socket.socket | None


class _Istiod:
    """The parts, made once; `run` connects them to the ports."""

    def __init__(
        self,
        config: Config,
        registry: Registry,
        *,
        mesh_ca: Authority,
        admin_ca: Authority,
        notifier: notify.ServiceNotifier,
        path: Path | None,
    ) -> None:
        self._config = config
        self._path = path
        self._registry = registry
        self._admin_ca = admin_ca
        self._notifier = notifier
        self._stopping = trio.Event()
        self._not_ready: str | None = "starting"
        trust_domain = config.mesh.trust_domain
        self._metrics = Metrics()
        self._feed = Feed(registry, config.mesh, self._metrics)
        self._registration = Registration(
            registry.catalog, registry.owner, self._feed.instance_of, config.registration.grace_seconds
        )
        self._access = AccessRecords(registry.records)
        self._judge = Judge(self._feed, self._access, self._registration, registry.owner)
        self._plane = Plane(
            self._feed,
            self._registration,
            self._metrics,
            self._judge,
            config.limits,
            trust_domain=trust_domain,
            owner=registry.owner,
            identifier=f"hostmesh-istiod {VERSION} {registry.owner}",
        )
        self._debug = DebugChannels(self._connection_of)
        self._enrolment = Enrolment(registry.records, mesh_ca.fingerprint)
        self._certificates = CertificateService(
            mesh_ca,
            self._enrolment,
            trust_domain,
            config.ca.workload_ttl,
            grace=timedelta(seconds=config.ca.renewal_grace),
            barred=self._judge.barred,
            aliases=self._aliases,
        )
        hosts = [config.listen.xds.host, config.listen.admin.host]
        names = server_names(
            (istiod_identity(trust_domain),),
            configured=config.listen.host_names,
            listening=hosts,
            hostname=socket.gethostname(),
        )
        now = utc_now()
        # A certificate is asked for, not demanded: a new host has none and brings a join token.
        self._xds_tls = ServingCertificate(
            mesh_ca, names, client_roots=mesh_ca.roots_pem, client_required=False, now=now
        )
        self._admin_tls = ServingCertificate(
            admin_ca,
            names,
            client_roots=admin_ca.roots_pem,
            client_required=True,
            alpn=("http/1.1",),
            now=now,
        )

    def _aliases(self) -> tuple[str, ...]:
        return tuple(self._feed.snapshot.mesh.trust_domain_aliases)

    async def run(self) -> None:
        """Start everything, wait for the end, take leave."""
        async with AsyncExitStack() as stack:
            ports = await self._bind(stack)
            addresses = _addresses(ports)
            if ensure_admin_context(
                self._config.state_dir, self._admin_ca, self._admin_url(addresses["admin"]), utc_now()
            ):
                log.info("admin context written", extra=fields(file=self._config.state_dir / CONTEXT_FILE))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._signals, nursery.cancel_scope)
                nursery.start_soon(self._notifier.watchdog)
                nursery.start_soon(self._xds_tls.keep_fresh)
                nursery.start_soon(self._admin_tls.keep_fresh)
                # Monitoring first: whoever asks /ready during a slow start gets an answer.
                if ports.monitoring is not None:
                    app = monitoring_app(self._metrics, lambda: self._not_ready)
                    await nursery.start(serve_http, app, ports.monitoring, None, self._stopping.wait)
                await nursery.start(self._feed.run)
                await nursery.start(self._registration.run)
                nursery.start_soon(self._follow_catalog)
                await nursery.start(
                    serve_http,
                    self._admin_app(addresses),
                    ports.admin,
                    self._admin_tls.context,
                    self._stopping.wait,
                )
                nursery.start_soon(self._serve_grpc, ports, nursery.cancel_scope)
                self._not_ready = None
                log.info(
                    "ready", extra=fields(version=VERSION, registry=self._registry.description, **addresses)
                )
                self._notifier.ready(f"serving xDS on {addresses['xds']}")

    async def _bind(self, stack: AsyncExitStack) -> _Ports:
        listen = self._config.listen
        xds = await grpc.listen(_host(listen.xds), listen.xds.port, self._xds_tls.context)
        for listener in xds:
            stack.push_async_callback(listener.aclose)
        plaintext: list[grpc.Listener] = []
        if isinstance(listen.xds_plaintext, UnixSocket):
            plaintext = [_at_path(listen.xds_plaintext.path, stack)]
        elif listen.xds_plaintext is not None:
            plaintext = await grpc.listen(_host(listen.xds_plaintext), listen.xds_plaintext.port)
        for listener in plaintext:
            stack.push_async_callback(listener.aclose)
        admin = stack.enter_context(_listening(listen.admin))
        monitoring = None
        if listen.monitoring is not None:
            monitoring = stack.enter_context(_listening(listen.monitoring))
        return _Ports(xds, plaintext, admin, monitoring)

    async def _serve_grpc(self, ports: _Ports, everything: trio.CancelScope) -> None:
        """Serve both xDS ports; when both have ended after SIGTERM, so has istiod."""

        async def delta(call: grpc.ServerCall) -> None:
            await self._until_stopping(partial(serve_delta, self._plane), call)

        async def sotw(call: grpc.ServerCall) -> None:
            await self._until_stopping(partial(serve_sotw, self._plane), call)

        async def attach(call: grpc.ServerCall) -> None:
            await self._until_stopping(self._debug.attach, call)

        authenticated = {grpc.ADS_DELTA: _with_certificate(delta), grpc.ADS_SOTW: _with_certificate(sotw)}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                self._serve_listeners,
                ports.xds,
                {
                    **authenticated,
                    grpc.DEBUG_ATTACH: attach,
                    grpc.CREATE_CERTIFICATE: self._certificates.handler,
                },
            )
            if ports.xds_plaintext:
                # No certificates and no Debug channel here: nothing proves who is calling.
                nursery.start_soon(
                    self._serve_listeners, ports.xds_plaintext, {grpc.ADS_DELTA: delta, grpc.ADS_SOTW: sotw}
                )
        everything.cancel()

    async def _until_stopping(self, handler: grpc.Handler, call: grpc.ServerCall) -> None:
        """Streams without an end are ended at shutdown, so that agents go to another istiod at once."""
        async with trio.open_nursery() as nursery:

            async def serve() -> None:
                await handler(call)
                nursery.cancel_scope.cancel()

            nursery.start_soon(serve)
            await self._stopping.wait()
            raise grpc.GrpcError(grpc.GrpcStatus.UNAVAILABLE, "istiod is stopping")

    async def _serve_listeners(
        self, listeners: list[grpc.Listener], handlers: Mapping[str, grpc.Handler]
    ) -> None:
        limits = self._config.limits
        connections = grpc.ConnectionLimits(
            identified=limits.connections, anonymous=limits.anonymous_connections
        )
        await grpc.serve(
            listeners,
            handlers,
            limits=grpc.Limits(connections=connections),
            shutdown=self._stopping,
            grace=GRACE_SECONDS,
            barred=self._judge.barred,
        )

    async def _follow_catalog(self) -> None:
        number = 0
        while True:
            await self._feed.newer_than(number)
            number = self._feed.number
            self._registration.seen({instance.id for instance in self._feed.instances})

    async def _signals(self, everything: trio.CancelScope) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as received:
            async for number in received:
                if number == signal.SIGHUP:
                    self._reload()
                    continue
                if self._stopping.is_set():
                    raise KeyboardInterrupt
                log.info("stopping", extra=fields(signal=signal.Signals(number).name))
                self._notifier.stopping()
                if self._not_ready is not None:
                    # Nothing is served yet, and what the start waits for (the registry) may never come.
                    everything.cancel()
                self._not_ready = "stopping"
                self._registration.hold()
                self._stopping.set()

    def _reload(self) -> None:
        """Take over the mesh's settings from the file; a broken file changes nothing."""
        self._notifier.reloading()
        try:
            if self._path is not None:
                fresh = load(self._path)
                if fresh.model_copy(update={"mesh": self._config.mesh}) != self._config:
                    log.warning("settings other than mesh changed: they take effect after a restart")
                if fresh.mesh.trust_domain != self._config.mesh.trust_domain:
                    log.error("mesh.trustDomain cannot change while istiod runs: restart it")
                else:
                    self._feed.set_mesh(fresh.mesh)
                    log.info("configuration read again")
        except ConfigError as error:
            log.error("configuration not read again", extra=fields(reason=str(error)))  # noqa: TRY400
        self._notifier.ready("configuration read again")

    def _admin_app(self, addresses: Mapping[str, str]) -> Starlette:
        return admin_app(
            ResourceApi(
                self._registry.store,
                Trial(
                    self._feed,
                    lambda: (one.node.info() for one in self._plane.table),
                    self._plane.cache,
                    refused=self._plane.table.refused,
                ),
            ),
            TokenApi(self._enrolment, utc_now),
            InventoryApi(self._feed, self._plane.table, self._called(addresses["xds"])),
            ProxyApi(self._plane.table, self._feed, self._debug, self._plane.sent, self._registry.owner),
            AccessApi(self._access, self._registry.catalog, self._feed, utc_now),
            {
                "istiod": self._registry.owner,
                "registry": self._registry.description,
                "listen": dict(addresses),
            },
        )

    def _admin_url(self, address: str) -> str:
        return f"https://{self._called(address)}"

    def _called(self, address: str) -> str:
        """HOST:PORT under which others call what listens on `address`."""
        host, _, port = address.rpartition(":")
        names = self._config.listen.host_names
        if names and host.strip("[]") in _WILDCARDS:
            host = names[0]
        return f"{_reachable(host.strip('[]'))}:{port}"

    def _connection_of(self, key: str) -> str | None:
        status = self._plane.table.find(key)
        return status.address if status is not None else None


def _with_certificate(handler: grpc.Handler) -> grpc.Handler:
    """On the mTLS port, xDS is for holders of a certificate; only enrolment is for others."""

    async def checked(call: grpc.ServerCall) -> None:
        if call.peer.spiffe_id is None:
            log.warning("ADS stream refused: no client certificate", extra=fields(peer=call.peer))
            raise grpc.GrpcError(grpc.GrpcStatus.UNAUTHENTICATED, "a client certificate is needed")
        await handler(call)

    return checked


def _host(address: Address) -> str:
    return address.host or "::"


def _at_path(path: Path, stack: AsyncExitStack) -> grpc.Listener:
    """A Unix socket that `stack` closes and removes. Raises StartError with the field."""
    try:
        if not path.parent.is_dir():
            raise NotADirectoryError(
                errno.ENOTDIR, f"there is no folder {path.parent}; make it first", str(path)
            )
        refuse_served(path)
        sock = stack.enter_context(private_socket(path))
    except OSError as error:
        reason = error.strerror or error
        raise StartError(f"listen.xdsPlaintext: cannot listen at {path}: {reason}") from error
    return trio.SocketListener(trio.socket.from_stdlib_socket(sock))


def _listening(address: Address) -> socket.socket:
    """A bound and listening socket for HTTP. Raises OSError with the address."""
    host = _host(address)
    family, _, _, _, where = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(128)
    except OSError as error:
        sock.close()
        raise OSError(error.errno, f"cannot listen on {address}: {os.strerror(error.errno or 0)}") from error
    sock.setblocking(False)
    return sock


def _addresses(ports: _Ports) -> dict[str, str]:
    """What is really listened on, by name."""
    found = {"xds": _bound(ports.xds[0]), "admin": _spoken(ports.admin.getsockname())}
    if ports.xds_plaintext:
        found["xdsPlaintext"] = _bound(ports.xds_plaintext[0])
    if ports.monitoring is not None:
        found["monitoring"] = _spoken(ports.monitoring.getsockname())
    return found


def _bound(listener: grpc.Listener) -> str:
    inner = listener.transport_listener if isinstance(listener, trio.SSLListener) else listener
    assert isinstance(inner, trio.SocketListener)
    return _spoken(inner.socket.getsockname())


def _spoken(name: tuple[str, int] | str) -> str:
    if isinstance(name, str):
        return f"unix://{name}"
    return f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}"


def _reachable(host: str) -> str:
    """A host under which a listen address can be called: a wildcard is called by the machine's own name."""
    if host in _WILDCARDS:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
