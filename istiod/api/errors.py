"""What the admin API answers when it refuses or fails.

Job: one error type with HTTP status, machine-readable reason and details by field; one JSON shape for all.
Rule: unexpected exceptions are logged with their trace and answered without it.
Not for: showing errors to people (`istiod.ctl.failure` reads this shape).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from istiod.api.documents import Finding
from istiod.log import fields
from registry.errors import ConflictError, NotARegistryError, RegistryUnavailableError, TooManyWritesError

log = logging.getLogger("istiod.api")


@dataclass
class ApiError(Exception):
    """A refusal. `reason` is one word as in Kubernetes' Status.reason (NotFound, Conflict, Invalid, …)."""

    status: int
    reason: str
    message: str
    details: Sequence[Finding] = ()
    hint: str = ""

    def __str__(self) -> str:
        return self.message


def not_found(what: str) -> ApiError:
    """404 for a named thing."""
    return ApiError(404, "NotFound", f"{what} not found")


def bad_request(message: str, field: str = "") -> ApiError:
    """400 for a request that does not have the API's shape."""
    return ApiError(400, "BadRequest", message, (Finding("", field, message),) if field else ())


def to_response(error: ApiError) -> JSONResponse:
    """The JSON document of an error."""
    return JSONResponse(
        {
            "error": {
                "code": error.status,
                "reason": error.reason,
                "message": error.message,
                "hint": error.hint,
                "details": [asdict(problem) for problem in error.details],
            }
        },
        status_code=error.status,
    )


async def on_api_error(_: Request, error: Exception) -> JSONResponse:
    """Starlette's handler for `ApiError`."""
    assert isinstance(error, ApiError)
    return to_response(error)


async def on_http_exception(_: Request, error: Exception) -> JSONResponse:
    """Starlette's own refusals (404 for a path, 405 for a method) in our shape."""
    assert isinstance(error, HTTPException)
    reason = {404: "NotFound", 405: "MethodNotAllowed"}.get(error.status_code, "BadRequest")
    return to_response(ApiError(error.status_code, reason, str(error.detail)))


async def on_registry_error(_: Request, error: Exception) -> JSONResponse:
    """The registry's refusals: a lost race is the caller's to repeat, an absent backend is ours."""
    if isinstance(error, ConflictError):
        hint = "somebody else changed it meanwhile: read it again, then repeat"
        return to_response(ApiError(409, "Conflict", str(error), hint=hint))
    if isinstance(error, NotARegistryError):
        hint = "apply the document again, or delete it"
        return to_response(ApiError(500, "Damaged", str(error), hint=hint))
    if isinstance(error, TooManyWritesError):
        return to_response(ApiError(413, "TooLarge", str(error)))
    assert isinstance(error, RegistryUnavailableError)
    return to_response(ApiError(503, "RegistryUnavailable", f"the registry does not answer: {error}"))


async def on_unexpected(request: Request, error: Exception) -> JSONResponse:
    """A defect of ours: logged with its trace, answered without."""
    log.error("admin API failed", exc_info=error, extra=fields(method=request.method, path=request.url.path))
    return to_response(ApiError(500, "InternalError", "istiod failed on this request; its log says why"))
