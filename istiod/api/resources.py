"""The admin API's resources: list, get, put, delete, and apply of many documents at once.

Job: parse, compare, write with compare-and-set, answer what became of each.
Rule: apply validates and tries everything before it writes anything, and writes all or nothing; a caller who names
the version that it has read (resourceVersion, If-Match) never overwrites what somebody else wrote meanwhile.
Not for: what a resource means (`istiod.resources`, `istiod.compile`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from istiod.api.body import flag, member, read_json
from istiod.api.documents import Finding, findings, manifest, parse_sources, same
from istiod.api.errors import ApiError, bad_request, not_found
from istiod.api.versions import replaceable
from istiod.log import fields
from istiod.resources.document import Document, Parsed
from istiod.resources.kinds import KINDS, find_kind
from istiod.resources.problem import Problem
from istiod.trial import Outcome, Trial
from registry.model import ABSENT, Resource, ResourceKey
from registry.store import ConfigStore, Write

log = logging.getLogger("istiod.api")


class ResourceApi:
    """The handlers over one config store. Every change is tried before it is stored."""

    def __init__(self, store: ConfigStore, trial: Trial) -> None:
        self._store = store
        self._trial = trial
        self._storing = trio.Lock()

    def routes(self) -> list[BaseRoute]:
        """Paths below /api/v1."""
        one = "/resources/{kind}/{namespace}/{name}"
        return [
            Route("/apply", self.apply, methods=["POST"]),
            Route("/parse", self.parse, methods=["POST"]),
            Route("/resources", self.list, methods=["GET"]),
            Route(one, self.get, methods=["GET"]),
            Route(one, self.put, methods=["PUT"]),
            Route(one, self.delete, methods=["DELETE"]),
        ]

    async def list(self, request: Request) -> Response:
        """GET /resources?kind=A,B&namespace=NS."""
        namespace = request.query_params.get("namespace")
        words = request.query_params.get("kind")
        kinds = [_kind(word) for word in words.split(",")] if words else list(KINDS)
        found: list[Resource] = []
        if len(kinds) == 1:
            found += await self._store.list(kinds[0], namespace)
        else:
            found += [one for one in await self._store.list(None, namespace) if one.kind in kinds]
        return JSONResponse({"items": [manifest(resource) for resource in found]})

    async def get(self, request: Request) -> Response:
        """GET one resource as a manifest; ETag is its version."""
        key = _key(request)
        resource = await self._store.get(key)
        if resource is None:
            raise not_found(f'{key.kind} "{key.name}" in namespace {key.namespace}')
        return JSONResponse(manifest(resource), headers={"etag": f'"{resource.version}"'})

    async def put(self, request: Request) -> Response:
        """PUT one manifest. `If-Match: "VERSION"` or metadata.resourceVersion: only if that is stored now;
        `If-None-Match: *`: only if nothing is. `?dryRun=true` validates and compares only."""
        key = _key(request)
        body = await read_json(request)
        parsed = parse_sources([("body", json.dumps(body))], key.namespace)
        _refuse(parsed)
        if len(parsed.documents) != 1 or parsed.documents[0].resource.key != key:
            raise bad_request(f"the body must be the manifest of {key}", "metadata")
        document = parsed.documents[0]
        expected = _expected(request)
        results, warnings = await self._store_all([(document, expected)], flag(request, "dryRun"))
        return JSONResponse(results[0] | {"warnings": _warnings(warnings, parsed)})

    async def delete(self, request: Request) -> Response:
        """DELETE one resource, with `If-Match` and `?dryRun` as PUT."""
        key = _key(request)
        if flag(request, "dryRun"):
            found = await self._store.get(key) is not None
        else:
            found = await self._store.delete(key, expected=_expected(request))
        if not found:
            raise not_found(f'{key.kind} "{key.name}" in namespace {key.namespace}')
        log.info("resource deleted", extra=fields(resource=key))
        return JSONResponse(
            {"kind": key.kind, "namespace": key.namespace, "name": key.name, "action": "deleted"}
        )

    async def apply(self, request: Request) -> Response:
        """POST {namespace, dryRun, sources: [{name, text}]}: validate all, then write all."""
        body = await read_json(request)
        parsed = _parse(body)
        _refuse(parsed)
        if not parsed.documents:
            raise ApiError(422, "Invalid", "no documents found", findings(parsed.problems))
        dry_run = member(body, "dryRun", bool, False)
        wanted = [(document, None) for document in parsed.documents]
        results, warnings = await self._store_all(wanted, dry_run)
        return JSONResponse({"results": results, "warnings": _warnings(warnings, parsed)})

    async def parse(self, request: Request) -> Response:
        """POST as apply; answers only which resources the documents name."""
        parsed = _parse(await read_json(request))
        # What this version refuses may have been stored by another one, and can be deleted.
        _refuse(parsed, parsed.errors())
        return JSONResponse({"documents": [document.resource.key._asdict() for document in parsed.documents]})

    async def _store_all(
        self, wanted: Sequence[tuple[Document[Any], str | None]], dry_run: bool
    ) -> tuple[Sequence[dict[str, Any]], Sequence[str]]:
        """Try all documents together, then store all or none; what became of each, and warnings.

        One at a time: two changes that are right for themselves may not be so together.
        """
        async with self._storing:
            stored = await self._store.list()
            known = {one.key: one for one in stored}
            writes = [
                (document, _expected_version(document, expected, known.get(document.resource.key)))
                for document, expected in wanted
            ]
            changed = [
                document
                for document, _ in writes
                if (before := known.get(document.resource.key)) is None or not same(before, document.resource)
            ]
            outcome = await self._trial.of(changed, stored) if changed else Outcome()
            _refuse_trial(outcome)
            if dry_run:
                after: Sequence[Resource] = [document.resource for document, _ in writes]
            else:
                after = await self._store.put_all(
                    [Write(document.resource, expected) for document, expected in writes]
                )
        results = [
            _result(known.get(one.key), document.resource, one, dry_run)
            for one, (document, _) in zip(after, writes, strict=True)
        ]
        return results, list(outcome.warnings)


def _expected_version(document: Document[Any], expected: str | None, stored: Resource | None) -> str | None:
    """The version that a document may replace; one that names a version of this mesh must be current."""
    actual = stored.version if stored is not None else ABSENT
    if expected is None:
        unchanged = stored is not None and same(stored, document.resource)
        expected = replaceable(document, stored if document.resource.version else None, unchanged=unchanged)
    if expected not in (None, actual):
        where = f"{document.where}: " if document.where else ""
        message = f"{where}{document.subject} was changed meanwhile"
        hint = (
            f"the document says version {document.resource.version or expected}, stored is {actual or 'nothing'}; "
            "read it again, or leave metadata.resourceVersion out if it is another cluster's"
        )
        raise ApiError(409, "Conflict", message, hint=hint)
    return expected


def _refuse_trial(outcome: Outcome) -> None:
    if not outcome.refusals:
        return
    count = len(outcome.refusals)
    raise ApiError(
        422,
        "Invalid",
        f"{count} {'document' if count == 1 else 'documents'} that proxies would refuse; nothing was changed",
        tuple(
            Finding(
                ": ".join(filter(None, (one.document.at(one.field), one.document.subject))),
                one.field,
                one.reason,
            )
            for one in outcome.refusals
        ),
    )


def _result(before: Resource | None, wanted: Resource, after: Resource, dry_run: bool) -> dict[str, Any]:
    action = "created" if before is None else "unchanged" if same(before, wanted) else "configured"
    if dry_run and before is not None and action == "unchanged":
        after = before
    if not dry_run and action != "unchanged":
        log.info("resource %s", action, extra=fields(resource=after.key, version=after.version))
    return {
        "kind": after.kind,
        "apiVersion": after.api_version,
        "namespace": after.namespace,
        "name": after.name,
        "action": action,
        "version": "" if dry_run else after.version,
        **({"before": manifest(before) if before else None, "after": manifest(after)} if dry_run else {}),
    }


def _warnings(found: Sequence[str], parsed: Parsed) -> Sequence[str]:
    return [*found, *(str(problem) for problem in parsed.warnings())]


def _parse(body: dict[str, Any]) -> Parsed:
    sources = []
    for index, source in enumerate(member(body, "sources", list)):
        if not isinstance(source, dict):
            raise bad_request(f"sources[{index}]: an object is expected here", f"sources[{index}]")
        path = f"sources[{index}]"
        sources.append((member(source, f"{path}.name", str), member(source, f"{path}.text", str)))
    return parse_sources(sources, member(body, "namespace", str, "default"))


def _refuse(parsed: Parsed, problems: tuple[Problem, ...] | None = None) -> None:
    blocking = parsed.blocking() if problems is None else problems
    if blocking:
        noun = "problem" if len(blocking) == 1 else "problems"
        raise ApiError(
            422, "Invalid", f"{len(blocking)} {noun} found; nothing was changed", findings(blocking)
        )


def _kind(word: str) -> str:
    kind = find_kind(word)
    if kind is None:
        raise ApiError(404, "NotFound", f"unknown kind {word!r}")
    return kind.name


def _key(request: Request) -> ResourceKey:
    params = request.path_params
    return ResourceKey(_kind(params["kind"]), params["namespace"], params["name"])


def _expected(request: Request) -> str | None:
    if request.headers.get("if-none-match") == "*":
        return ABSENT
    tag = request.headers.get("if-match")
    return tag.strip('"') if tag else None
