"""The admin API's view of the connected proxies, and the way to their own admin pages.

Job: proxy status, waiting until a change is in effect, the configuration istiod sent, and /debug/proxy.
Rule: read only; what changes a host is for people on that host.
Not for: how a status comes about (`istiod.xds`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from istiod.api.body import member, read_json
from istiod.api.config_dump import config_dump
from istiod.api.errors import ApiError, bad_request, not_found
from istiod.debug import DebugChannels, NoAnswerError, NotAttachedError
from istiod.feed import Feed
from istiod.xds.status import SHORT_NAMES, ProxyStatus, ProxyTable, TypeStatus, behind
from registry.model import ResourceKey
from wire.xds import EncodedResource

MAX_WAIT = 300.0

SentResources = Callable[[ProxyStatus], Mapping[str, Mapping[str, EncodedResource]]]


class ProxyApi:
    """The handlers over the proxy table. `sent` gives what a stream was sent, by type and name."""

    def __init__(
        self, table: ProxyTable, feed: Feed, debug: DebugChannels, sent: SentResources, owner: str
    ) -> None:
        self._table = table
        self._feed = feed
        self._debug = debug
        self._sent = sent
        self._owner = owner

    def routes(self) -> list[BaseRoute]:
        """Paths below /api/v1."""
        return [
            Route("/proxies", self.list, methods=["GET"]),
            Route("/proxies/{namespace}/{name}", self.get, methods=["GET"]),
            Route("/proxies/{namespace}/{name}/config_dump", self.config_dump, methods=["GET"]),
            Route("/wait", self.wait, methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """GET /proxies?namespace=NS."""
        namespace = request.query_params.get("namespace")
        found = [one for one in self._table.newest() if namespace in (None, one.node.namespace)]
        return JSONResponse(
            {"items": [self._document(one) for one in found], "problems": list(self._feed.problems)}
        )

    async def get(self, request: Request) -> Response:
        """GET one proxy."""
        return JSONResponse(self._document(self._status(request)))

    async def config_dump(self, request: Request) -> Response:
        """GET what istiod sent, in the shape of Envoy's /config_dump?include_eds."""
        return JSONResponse(config_dump(self._sent(self._status(request))))

    async def wait(self, request: Request) -> Response:
        """POST {resources: [{kind, namespace, name, version}], timeoutSeconds}: answer when every connected
        proxy has taken a snapshot with these versions ("": deleted), or at the timeout."""
        body = await read_json(request)
        limit = member(body, "timeoutSeconds", float, 10.0)
        if not 0 < limit <= MAX_WAIT:
            raise bad_request(f"timeoutSeconds: must be above 0 and at most {MAX_WAIT:g}", "timeoutSeconds")
        wanted: dict[ResourceKey, str] = {}
        for index, entry in enumerate(member(body, "resources", list)):
            path = f"resources[{index}]"
            if not isinstance(entry, dict):
                raise bad_request(f"{path}: an object is expected here", path)
            key = ResourceKey(
                *(member(entry, f"{path}.{part}", str) for part in ("kind", "namespace", "name"))
            )
            wanted[key] = member(entry, f"{path}.version", str, "")
        first: int | None = None
        number = 0
        with trio.move_on_after(limit):
            first, number = await self._feed.contains(wanted)
            await self._table.settled(number)
        return JSONResponse(_verdict(list(self._table), first, number))

    async def debug(self, request: Request) -> Response:
        """GET /debug/proxy/NS/NAME/PAGE: the page of that proxy's own admin."""
        params = request.path_params
        page = params["page"]
        key = f"{params['namespace']}/{params['name']}"
        path = f"/{page}" + (f"?{request.url.query}" if request.url.query else "")
        try:
            answer = await self._debug.ask(key, path)
        except NotAttachedError:
            connected = self._table.find(key) is not None
            message = (
                f"proxy {key} is connected, but no agent is attached for it"
                if connected
                else f"proxy {key} not found"
            )
            raise ApiError(
                409 if connected else 404, "NotAttached" if connected else "NotFound", message
            ) from None
        except NoAnswerError as error:
            raise ApiError(504, "NoAnswer", str(error)) from None
        status = answer.status if 200 <= answer.status < 600 else 502
        if status >= 400:
            text = answer.body[:500].decode(errors="replace").strip()
            raise ApiError(status, "ProxyError", f"proxy {key} answered {status} to {path}: {text}")
        # A host's page is data here, whatever type it claims: no browser may run it in istiod's origin.
        return Response(
            answer.body,
            media_type=answer.content_type or "text/plain",
            headers={"x-content-type-options": "nosniff", "content-security-policy": "sandbox"},
        )

    def _status(self, request: Request) -> ProxyStatus:
        key = f"{request.path_params['namespace']}/{request.path_params['name']}"
        status = self._table.find(key)
        if status is None:
            raise not_found(f"proxy {key}")
        return status

    def _document(self, stream: ProxyStatus) -> dict[str, Any]:
        now = trio.current_time()
        return {
            "name": stream.node.name,
            "namespace": stream.node.namespace,
            "id": stream.node.id,
            "cluster": stream.node.cluster or "-",
            "identity": str(stream.peer) if stream.peer is not None else "",
            "address": stream.address,
            "protocol": stream.protocol,
            "connectedSeconds": round(now - stream.connected_at, 1),
            "health": stream.health,
            "healthReason": stream.health_reason,
            "notRegistered": stream.refused,
            "attached": self._debug.attached(stream.node.key),
            "istiod": self._owner,
            "version": stream.node.version or "-",
            "synced": stream.settled >= self._feed.number and not stream.failures,
            "notCompiled": [
                {"type": SHORT_NAMES.get(one.type_url, "all"), "part": one.what, "reason": one.reason}
                for one in stream.failures
            ],
            "types": [_type_document(status, now) for status in stream.types.values()],
        }


def _verdict(streams: list[ProxyStatus], first: int | None, number: int) -> dict[str, Any]:
    """What became of a change that snapshot `first` was the first to have (None: none has it yet).

    `proxies` have taken it whole; `rejected` refuse, or could not be compiled, something since that snapshot,
    `degraded` did so before it.
    """
    late = streams if first is None else behind(streams, number)
    pending = {stream.number for stream in late}
    rejected: list[dict[str, str]] = []
    degraded: list[dict[str, str]] = []
    whole = 0
    for stream in streams:
        found = [(one, _short(status)) for status in stream.types.values() for one in status.refused]
        for refusal, short in found:
            new = first is None or refusal.snapshot >= first
            detail = {"proxy": stream.node.key, "type": short, "reason": refusal.reason}
            (rejected if new else degraded).append(detail)
        for failure, since in stream.failures.items():
            new = first is None or since >= first
            short = SHORT_NAMES.get(failure.type_url, "all")
            (rejected if new else degraded).append(
                {"proxy": stream.node.key, "type": short, "reason": f"not compiled: {failure}"}
            )
        whole += stream.number not in pending and not found and not stream.failures
    return {
        "synced": bool(streams) and not late,
        "connected": len(streams),
        "proxies": whole,
        "pending": sorted(stream.node.key for stream in late),
        "rejected": rejected,
        "degraded": degraded,
    }


def _short(status: TypeStatus) -> str:
    return SHORT_NAMES.get(status.type_url, status.type_url.rpartition(".")[2])


def _type_document(status: TypeStatus, now: float) -> dict[str, Any]:
    ack = None
    if status.sent_at is not None and status.answered_at is not None and status.answered_at >= status.sent_at:
        ack = round((status.answered_at - status.sent_at) * 1000, 1)
    return {
        "type": status.type_url,
        "short": _short(status),
        "status": status.state,
        "resources": status.resources,
        "version": status.version,
        "lastPushSeconds": None if status.sent_at is None else round(now - status.sent_at, 1),
        "ackMilliseconds": ack,
        "reason": status.reason,
        "refused": [one.name for one in status.refused],
    }
