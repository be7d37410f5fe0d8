"""The admin API as one application: port 8443.

Job: put the parts of the API together below /api/v1 and /debug/proxy.
Rule: whoever gets here has shown a certificate of the admin CA in the TLS handshake; there is no other way in,
and nothing here is public.
Not for: serving (`istiod.api.serving`) or the parts themselves.
"""

from __future__ import annotations

from collections.abc import Mapping

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from istiod.api.access import AccessApi
from istiod.api.errors import ApiError, on_api_error, on_http_exception, on_registry_error, on_unexpected
from istiod.api.inventory import InventoryApi
from istiod.api.proxies import ProxyApi
from istiod.api.resources import ResourceApi
from istiod.api.tokens import TokenApi
from istiod.monitoring import VERSION
from registry.errors import ConflictError, NotARegistryError, RegistryUnavailableError, TooManyWritesError


def admin_app(
    resources: ResourceApi,
    tokens: TokenApi,
    inventory: InventoryApi,
    proxies: ProxyApi,
    access: AccessApi,
    about: Mapping[str, object],
) -> Starlette:
    """The application. `about` is what /api/v1/version says beside the version (addresses, registry)."""

    async def version(_: Request) -> Response:
        return JSONResponse({"version": VERSION, **about})

    routes = [
        Route("/version", version, methods=["GET"]),
        *resources.routes(),
        *tokens.routes(),
        *inventory.routes(),
        *proxies.routes(),
        *access.routes(),
    ]
    return Starlette(
        routes=[
            Mount("/api/v1", routes=routes),
            Route("/debug/proxy/{namespace}/{name}/{page:path}", proxies.debug, methods=["GET"]),
        ],
        exception_handlers={
            ApiError: on_api_error,
            HTTPException: on_http_exception,
            ConflictError: on_registry_error,
            NotARegistryError: on_registry_error,
            RegistryUnavailableError: on_registry_error,
            TooManyWritesError: on_registry_error,
            Exception: on_unexpected,
        },
    )
