"""Reading requests: JSON bodies and their fields, with errors that name the field.

Rule: whatever is wrong with a request is a 400 with the field's path; nothing is guessed.
Not for: documents of resources (`istiod.api.documents`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from starlette.requests import Request

from istiod.api.errors import bad_request

T = TypeVar("T", str, int, float, bool, list, dict)  # type: ignore[type-arg]

_WORDS = {
    str: "a text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    dict: "an object",
}


async def read_json(request: Request) -> dict[str, Any]:
    """The body as a JSON object. Raises `ApiError`."""
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise bad_request("the body must be a JSON object")
    return value


def member(body: Mapping[str, Any], path: str, kind: type[T], default: T | None = None) -> T:
    """The field at the end of `path` (its last part is the key in `body`). Raises `ApiError`."""
    key = path.rsplit(".", 1)[-1]
    if key not in body:
        if default is None:
            raise bad_request(f"{path}: is required", path)
        return default
    value = body[key]
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)  # type: ignore[return-value]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise bad_request(f"{path}: {_WORDS[kind]} is expected here", path)
    return value


def texts(body: Mapping[str, Any], path: str, default: list[str] | None = None) -> list[str]:
    """A list of texts. Raises `ApiError`."""
    values: list[Any] = member(body, path, list, default)
    for index, value in enumerate(values):
        if not isinstance(value, str):
            raise bad_request(f"{path}[{index}]: a text is expected here", f"{path}[{index}]")
    return values


def flag(request: Request, name: str) -> bool:
    """A query parameter that is true or false."""
    value = request.query_params.get(name, "false").lower()
    if value not in ("true", "false", ""):
        raise bad_request(f"?{name}= must be true or false", name)
    return value != "false"
