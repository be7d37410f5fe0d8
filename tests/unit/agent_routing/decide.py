"""Table, routing and filters put together without a proxy: what would become of this request?

The order is the exchange's; nothing here waits or sends. Only for tests.
"""

from __future__ import annotations

from typing import Any

import yaml

from agent.filters import FilterState, compile_steps
from agent.http.headers import Headers
from agent.http.request import ConnectionInfo, LocalReply, RequestContext, ResponseHead
from agent.routing.compile import compile_routes
from agent.routing.normalise import compile_normaliser
from agent.table.bootstrap import load
from agent.table.listener import HttpManager

_EXTENSIONS = "type.googleapis.com/envoy.extensions."
_IGNORED = frozenset(
    b"x-request-id x-forwarded-proto x-envoy-expected-rq-timeout-ms connection content-length host date server"
    b" x-envoy-upstream-service-time transfer-encoding content-type x-ratelimit-reset".split()
)


def bootstrap(spec: dict[str, Any], port: int = 10000, backend: int = 1) -> str:
    """The bootstrap of a recorded configuration: one listener, clusters `a` and `b`."""
    filters = [
        {"name": name, "typed_config": {"@type": _EXTENSIONS + config["type"], **without_type(config)}}
        for item in spec.get("filters", [])
        for name, config in item.items()
    ]
    router = {"@type": _EXTENSIONS + "filters.http.router.v3.Router", **spec.get("router", {})}
    manager = {
        "@type": _EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "ingress",
        "route_config": {"name": "local", "virtual_hosts": spec["vhosts"], **spec.get("rc", {})},
        "http_filters": [*filters, {"name": "router", "typed_config": router}],
        **spec.get("hcm", {}),
    }
    endpoint = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": backend}}}
    clusters = [
        {
            "name": name,
            "type": "STATIC",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}],
            },
        }
        for name in ("a", "b")
    ]
    listener = {
        "name": "main",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "filter_chains": [{"filters": [{"name": "hcm", "typed_config": manager}]}],
    }
    return yaml.safe_dump({"static_resources": {"listeners": [listener], "clusters": clusters}})


def without_type(config: dict[str, Any]) -> dict[str, Any]:
    """A filter's configuration as the bootstrap spells it."""
    return {key: value for key, value in config.items() if key != "type"}


class Decider:
    """One bootstrap's connection manager, compiled as a worker compiles it."""

    def __init__(self, text: str) -> None:
        table = load(text).table
        listener = table.listeners["main"]
        manager = listener.chains[0].terminal
        assert isinstance(manager, HttpManager) and not isinstance(manager.route, str)
        state = FilterState()
        self._port = listener.address.port
        self._router = compile_routes(
            manager.route,
            lambda scope: compile_steps(manager.filters, scope, state),
            suppress_envoy_headers=manager.router.suppress_envoy_headers,
        )
        self._normalise = compile_normaliser(manager)

    def context(self, request: dict[str, Any], *, random: int = 0, now: float = 0.0) -> RequestContext:
        """The context of a request as the exchange would make it."""
        headers = Headers(
            (name.lower().encode(), value.encode()) for name, value in request.get("headers", [])
        )
        if b"x-forwarded-proto" not in headers:
            headers[b"x-forwarded-proto"] = b"http"
        connection = ConnectionInfo(1, ("127.0.0.1", 50000), ("127.0.0.1", self._port))
        return RequestContext(
            request.get("method", "GET").encode(), request["path"].encode(), request.get("host", "h").encode(),
            headers, connection, random=random, started_at=now,
        )  # fmt: skip

    def answer(self, request: dict[str, Any], **circumstances: Any) -> dict[str, Any]:
        """Status, response headers, and what the upstream or (as `body`) the client gets."""
        ctx = self.context(request, **circumstances)
        refused = self._normalise(ctx) if self._normalise is not None else None
        if refused is not None:
            return _local(ctx, refused, (), None)
        plan = ctx.route = self._router.route(ctx)
        steps = self._router.no_route_steps if plan is None else None
        before = steps.request if steps is not None else plan.request_steps if plan is not None else ()
        after = steps.response if steps is not None else plan.response_steps if plan is not None else ()
        for step in before:
            outcome = step(ctx)
            if isinstance(outcome, LocalReply):
                return _local(ctx, outcome, after, None)
        if plan is None:
            return _local(ctx, LocalReply(404), after, None)
        if plan.respond is not None:
            return _local(ctx, plan.respond(ctx), after, plan.finish_response)
        if plan.finish_request is not None:
            plan.finish_request(ctx)
        head = ResponseHead(
            200, Headers(((b"x-up", b"u1"), (b"x-up", b"u2"), (b"cache-control", b"no-cache")))
        )
        if plan.finish_response is not None:
            plan.finish_response(ctx, head)
        for response_step in after:
            response_step(ctx, head)
        return {
            "status": 200,
            "response": _shown(head.headers),
            "upstream": {
                "path": ctx.path.decode(), "host": ctx.authority.decode(), "headers": _shown(ctx.headers)
            },
        }  # fmt: skip


def _local(ctx: RequestContext, reply: LocalReply, steps: Any, finish: Any) -> dict[str, Any]:
    head = ResponseHead(reply.status, Headers(reply.headers), local=True)
    if finish is not None:
        finish(ctx, head)
    for step in steps:
        step(ctx, head)
    return {"status": reply.status, "response": _shown(head.headers), "body": reply.body.decode()}


def _shown(headers: Headers) -> list[list[str]]:
    return sorted([name.decode(), value.decode()] for name, value in headers.fields() if name not in _IGNORED)
