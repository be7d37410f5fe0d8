"""The admin API's join tokens: create, list, revoke.

Job: `istiod.enrolment` over JSON.
Rule: the token's text is in one answer, that of its creation, and never in the log.
Not for: what a token allows and how it is used up.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from istiod.api.body import member, read_json, texts
from istiod.api.documents import Finding
from istiod.api.errors import ApiError, not_found
from istiod.enrolment import Enrolment, JoinToken, TokenRequestError
from istiod.log import fields

log = logging.getLogger("istiod.api")

_LONGEST_SECONDS = 10**9


class TokenApi:
    """The handlers over the mesh's tokens."""

    def __init__(self, enrolment: Enrolment, clock: Callable[[], datetime]) -> None:
        self._enrolment = enrolment
        self._clock = clock

    def routes(self) -> list[BaseRoute]:
        """Paths below /api/v1."""
        return [
            Route("/tokens", self.list, methods=["GET"]),
            Route("/tokens", self.create, methods=["POST"]),
            Route("/tokens/{id}", self.revoke, methods=["DELETE"]),
        ]

    async def create(self, request: Request) -> Response:
        """POST {namespace, serviceAccounts, services, addresses, uses, ttlSeconds}."""
        body = await read_json(request)
        namespace = member(body, "namespace", str)
        accounts = texts(body, "serviceAccounts")
        services, addresses = texts(body, "services", []), texts(body, "addresses", [])
        seconds = member(body, "ttlSeconds", int, 3600)
        ttl = timedelta(seconds=max(min(seconds, _LONGEST_SECONDS), -1))
        try:
            text, token = await self._enrolment.create(
                namespace,
                accounts,
                ttl,
                self._clock(),
                services=services,
                addresses=addresses,
                uses=member(body, "uses", int, 1),
            )
        except TokenRequestError as error:
            detail = Finding("", error.field, str(error))
            raise ApiError(422, "Invalid", "the token cannot be made", (detail,)) from error
        log.info(
            "join token created",
            extra=fields(
                token=token.id,
                namespace=namespace,
                accounts=",".join(accounts),
                services=",".join(token.services),
                expires=token.expires,
            ),
        )
        return JSONResponse({"token": text, **self._document(token)}, status_code=201)

    async def list(self, _: Request) -> Response:
        """GET all tokens, without secrets."""
        return JSONResponse({"items": [self._document(token) for token in await self._enrolment.list()]})

    async def revoke(self, request: Request) -> Response:
        """DELETE one."""
        identifier = request.path_params["id"]
        if not await self._enrolment.revoke(identifier):
            raise not_found(f"join token {identifier}")
        log.info("join token revoked", extra=fields(token=identifier))
        return JSONResponse({"id": identifier, "status": "revoked"})

    def _document(self, token: JoinToken) -> dict[str, Any]:
        return {
            "id": token.id,
            "namespace": token.namespace,
            "serviceAccounts": list(token.service_accounts),
            "services": list(token.services),
            "addresses": list(token.addresses),
            "uses": token.uses,
            "used": sorted(token.used),
            "created": token.created.isoformat(timespec="seconds"),
            "expires": token.expires.isoformat(timespec="seconds"),
            "status": token.status(self._clock()),
        }
