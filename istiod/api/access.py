"""The admin API's grants, revocations and evictions.

Job: `istiod.access.records` over JSON: what `meshctl service grants|delete`, `identity` and `workload evict` call.
Rule: every change is an administrator's and is logged; what a change means is decided in `istiod.access`.
Not for: join tokens (`istiod.api.tokens`), which grant as well.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from istiod.access.facts import OWN, Eviction, Grant, Revocation
from istiod.access.records import AccessRecords
from istiod.api.body import member, read_json, texts
from istiod.api.documents import Finding
from istiod.api.errors import ApiError, bad_request, not_found
from istiod.enrolment import TokenRequestError, blocks_of, check_service
from istiod.feed import Feed
from istiod.log import fields
from registry.catalog import Catalog
from registry.errors import ConflictError
from wire.spiffe import SpiffeError, SpiffeId

log = logging.getLogger("istiod.api")

_SERIAL = re.compile(r"[0-9a-f]{1,40}")
_LONGEST_REASON = 500


class AccessApi:
    """The handlers. `feed` gives what is in force, with the grants of WorkloadGroups."""

    def __init__(
        self, records: AccessRecords, catalog: Catalog, feed: Feed, clock: Callable[[], datetime]
    ) -> None:
        self._records = records
        self._catalog = catalog
        self._feed = feed
        self._clock = clock

    def routes(self) -> list[BaseRoute]:
        """Paths below /api/v1."""
        grants = "/services/{namespace}/{name}/grants"
        return [
            Route(grants, self.grants, methods=["GET"]),
            Route(f"{grants}/{{account}}", self.grant, methods=["PUT"]),
            Route(f"{grants}/{{account}}", self.withdraw, methods=["DELETE"]),
            Route("/services/{namespace}/{name}", self.delete_service, methods=["DELETE"]),
            Route("/revocations", self.revocations, methods=["GET"]),
            Route("/revocations", self.revoke, methods=["POST"]),
            Route("/revocations", self.restore, methods=["DELETE"]),
            Route("/evictions", self.evictions, methods=["GET"]),
            Route("/workloads/{namespace}/{name}/eviction", self.evict, methods=["PUT"]),
            Route("/workloads/{namespace}/{name}/eviction", self.readmit, methods=["DELETE"]),
        ]

    async def grants(self, request: Request) -> Response:
        """GET the grants of a service."""
        namespace, name = _of(request)
        stored = (await self._records.read()).access.of_service(namespace, name)
        groups = [
            grant
            for grant in self._feed.snapshot.access.of_service(namespace, name)
            if grant.source.startswith("WorkloadGroup ")
        ]
        return JSONResponse({"items": [self._grant_document(grant) for grant in (*stored, *groups)]})

    async def grant(self, request: Request) -> Response:
        """PUT {addresses}: let the account serve the service, at these addresses only (default: its own)."""
        namespace, name = _of(request)
        account = request.path_params["account"]
        body = await read_json(request)
        try:
            SpiffeId("any", namespace, account)
            check_service(name)
            addresses = blocks_of(texts(body, "addresses", []))
        except (SpiffeError, TokenRequestError) as error:
            detail = Finding("", getattr(error, "field", "serviceAccount"), str(error))
            raise ApiError(422, "Invalid", "the grant cannot be made", (detail,)) from error
        grant = Grant(namespace, name, account, addresses or (OWN,), "meshctl", self._clock().timestamp())
        await self._records.grant(grant, widen=False)
        log.info(
            "service granted",
            extra=fields(service=f"{namespace}/{name}", account=account, addresses=",".join(grant.addresses)),
        )
        return JSONResponse(self._grant_document(grant))

    async def withdraw(self, request: Request) -> Response:
        """DELETE a grant."""
        namespace, name = _of(request)
        account = request.path_params["account"]
        removed = await self._records.withdraw(namespace, name, account)
        group = next(
            (
                grant.source
                for grant in self._feed.snapshot.access.of_service(namespace, name)
                if grant.service_account == account and grant.source.startswith("WorkloadGroup ")
            ),
            "",
        )
        if not removed and not group:
            raise not_found(f"a grant of {namespace}/{name} to {account}")
        if group:
            raise ApiError(
                409,
                "Conflict",
                f"{group} grants {namespace}/{name} to {account}",
                hint="delete or change that group",
            )
        log.info("grant withdrawn", extra=fields(service=f"{namespace}/{name}", account=account))
        return JSONResponse({"serviceAccount": account, "status": "withdrawn"})

    async def delete_service(self, request: Request) -> Response:
        """DELETE a service without instances, with its grants; its addresses are kept from other names for a day."""
        namespace, name = _of(request)
        try:
            found = await self._catalog.forget_service(namespace, name)
        except ConflictError:
            raise ApiError(
                409,
                "Conflict",
                f"service {namespace}/{name} has instances",
                hint="withdraw its grants (meshctl service grants) or stop its agents first",
            ) from None
        grants = (await self._records.read()).access.of_service(namespace, name)
        for grant in grants:
            await self._records.withdraw(namespace, name, grant.service_account)
        if not found and not grants:
            raise not_found(f"service {namespace}/{name}")
        log.info("service deleted", extra=fields(service=f"{namespace}/{name}", grants=len(grants)))
        return JSONResponse({"namespace": namespace, "name": name, "grants": len(grants)})

    async def revocations(self, _: Request) -> Response:
        """GET all revoked identities and certificates."""
        found = (await self._records.read()).access.revocations.values()
        return JSONResponse({"items": [_noted("subject", one.subject, one) for one in found]})

    async def revoke(self, request: Request) -> Response:
        """POST {subject, reason}: a SPIFFE id or a certificate's serial number."""
        body = await read_json(request)
        subject, reason = self._subject(body), _reason(body)
        await self._records.revoke(Revocation(subject, reason, self._clock().timestamp()))
        log.warning("revoked", extra=fields(subject=subject, reason=reason))
        return JSONResponse({"subject": subject}, status_code=201)

    async def restore(self, request: Request) -> Response:
        """DELETE {subject}: undo a revocation."""
        subject = self._subject(await read_json(request))
        if not await self._records.restore(subject):
            raise not_found(f"a revocation of {subject}")
        log.warning("revocation undone", extra=fields(subject=subject))
        return JSONResponse({"subject": subject})

    async def evictions(self, _: Request) -> Response:
        """GET all evicted instances."""
        found = (await self._records.read()).access.evictions.values()
        return JSONResponse({"items": [_noted("workload", one.instance, one) for one in found]})

    async def evict(self, request: Request) -> Response:
        """PUT {reason}: keep an instance out of the catalog."""
        key = "/".join(_of(request))
        if self._feed.instance_of(key) is None:
            raise not_found(f"workload {key}")
        reason = _reason(await read_json(request))
        await self._records.evict(Eviction(key, reason, self._clock().timestamp()))
        log.warning("workload evicted", extra=fields(workload=key, reason=reason))
        return JSONResponse({"workload": key})

    async def readmit(self, request: Request) -> Response:
        """DELETE an eviction."""
        key = "/".join(_of(request))
        if not await self._records.readmit(key):
            raise not_found(f"an eviction of {key}")
        log.warning("workload readmitted", extra=fields(workload=key))
        return JSONResponse({"workload": key})

    def _subject(self, body: dict[str, Any]) -> str:
        text = member(body, "subject", str).strip()
        if not text.startswith("spiffe://"):
            serial = text.replace(":", "").lower().removeprefix("0x").lstrip("0")
            if not _SERIAL.fullmatch(serial):
                raise bad_request(
                    f"subject: {text[:200]!r} is neither a SPIFFE id nor a serial number in hex", "subject"
                )
            return serial
        try:
            identity = SpiffeId.parse(text)
        except SpiffeError as error:
            raise bad_request(f"subject: {error}", "subject") from error
        mesh = self._feed.snapshot.mesh
        if identity.trust_domain not in (mesh.trust_domain, *mesh.trust_domain_aliases):
            raise bad_request(
                f"subject: {identity.trust_domain} is not a trust domain of this mesh", "subject"
            )
        return str(identity)

    def _grant_document(self, grant: Grant) -> dict[str, Any]:
        instances = [
            one.id
            for one in self._feed.snapshot.instances
            if (one.namespace, one.service, one.service_account)
            == (grant.namespace, grant.service, grant.service_account)
        ]
        return {
            "namespace": grant.namespace,
            "service": grant.service,
            "serviceAccount": grant.service_account,
            "addresses": list(grant.addresses),
            "source": grant.source,
            "created": _time(grant.created),
            "instances": instances,
        }


def _of(request: Request) -> tuple[str, str]:
    return request.path_params["namespace"], request.path_params["name"]


def _reason(body: dict[str, Any]) -> str:
    return member(body, "reason", str, "")[:_LONGEST_REASON]


def _noted(name: str, what: str, one: Revocation | Eviction) -> dict[str, Any]:
    return {name: what, "reason": one.reason, "created": _time(one.created)}


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
