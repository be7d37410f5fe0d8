"""What the outside may ask about istiod itself: port 15014.

Job: /ready, /healthz, /metrics (Prometheus text), /version.
Rule: read only, nothing secret, no TLS; ready means a snapshot of the registry is loaded and xDS is served.
Not for: the mesh's traffic (the agents' 15020).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version as distribution_version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

VERSION = distribution_version("hostmesh")


class Metrics:
    """istiod's own metrics; Istio's pilot names where it has the thing."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.connections = Gauge("pilot_xds", "Endpoints connected to this istiod by xDS.", registry=registry)
        self.pushes = Counter("pilot_xds_pushes", "xDS responses sent, by type.", ["type"], registry=registry)
        self.rejects = Counter(
            "pilot_total_xds_rejects",
            "xDS responses refused by proxies, by type.",
            ["type"],
            registry=registry,
        )
        self.convergence = Histogram(
            "pilot_proxy_convergence_time",
            "Seconds from a change to the acknowledgement of a proxy it concerned.",
            buckets=(0.05, 0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20, 30),
            registry=registry,
        )
        self.compile_seconds = Histogram(
            "hostmesh_istiod_compile_seconds",
            "Seconds to compile one proxy's configuration.",
            buckets=(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5),
            registry=registry,
        )
        self.debounced = Counter(
            "pilot_debounce_events", "Registry changes merged into snapshots.", registry=registry
        )
        self.snapshots = Counter("hostmesh_istiod_snapshots", "Snapshots published.", registry=registry)
        self.snapshot_failures = Counter(
            "hostmesh_istiod_snapshot_failures",
            "Times that the registry's content gave no snapshot; the last one stayed in force.",
            registry=registry,
        )
        self.unusable = Gauge(
            "hostmesh_istiod_unusable_documents",
            "Rows and documents of the registry that the newest snapshot leaves out.",
            registry=registry,
        )
        self.compile_failures = Counter(
            "hostmesh_istiod_compile_failures",
            "Parts of proxies' configurations that could not be compiled, by type.",
            ["type"],
            registry=registry,
        )
        self.refused = Counter(
            "hostmesh_istiod_refused_streams",
            "ADS streams refused, by reason.",
            ["reason"],
            registry=registry,
        )
        info = Gauge("istio_build", "Version of this istiod.", ["component", "tag"], registry=registry)
        info.labels("pilot", VERSION).set(1)


def monitoring_app(metrics: Metrics, not_ready: Callable[[], str | None]) -> Starlette:
    """The application of port 15014; `not_ready` says why istiod is not ready, or None."""

    async def ready(_: Request) -> Response:
        reason = not_ready()
        return PlainTextResponse(f"{reason or 'ready'}\n", status_code=503 if reason else 200)

    async def alive(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def exposition(_: Request) -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    async def version(_: Request) -> Response:
        return JSONResponse({"version": VERSION})

    return Starlette(
        routes=[
            Route("/ready", ready),
            Route("/healthz", alive),
            Route("/healthz/ready", ready),
            Route("/metrics", exposition),
            Route("/version", version),
        ]
    )
