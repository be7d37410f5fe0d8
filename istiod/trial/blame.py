"""Which field of a document a refusal is due to: the smallest part without which the refusal is gone.

Rule: no I/O; asks a question (`fails`) of documents that are smaller by one part each, and follows the part that
matters. Where a document would not validate without a part, the parts of that part are tried.
Not for: which of several documents it is (`trial` asks of each alone).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any

from istiod.resources.document import typed
from registry.model import Resource

MOST_QUESTIONS = 60
_REACH = ("hosts", "host", "gateways", "exportTo", "selector", "workloadSelector")
"""Without these a document would apply to nothing, and so not fail: they are not suspected."""


async def culprit(resource: Resource, fails: Callable[[Resource], Awaitable[bool]]) -> str:
    """The path of the smallest part of `resource` that has to go for it not to fail (`spec.http[0].timeout`)."""
    questions = 0

    async def matters(path: list[str | int]) -> bool | None:
        """Whether the document passes without that part; None: it cannot be without."""
        nonlocal questions
        smaller = replace(resource, spec=_without(resource.spec, path))
        if questions >= MOST_QUESTIONS or not _valid(smaller):
            return None
        questions += 1
        return not await fails(smaller)

    async def smallest(path: list[str | int], node: Any) -> list[str | int] | None:
        for key in _keys(node):
            if not path and key in _REACH:
                continue
            one = [*path, key]
            verdict = await matters(one)
            if verdict is False:
                continue
            found = await smallest(one, node[key])
            if found or verdict:
                return found or one
        return None

    return _spoken(await smallest([], resource.spec) or [])


def _keys(node: Any) -> list[str | int]:
    if isinstance(node, Mapping):
        return list(node)
    return list(range(len(node))) if isinstance(node, list | tuple) else []


def _without(spec: Any, path: list[str | int]) -> Any:
    key, rest = path[0], path[1:]
    if isinstance(spec, Mapping):
        if not rest:
            return {name: value for name, value in spec.items() if name != key}
        return {name: _without(value, rest) if name == key else value for name, value in spec.items()}
    if not rest:
        return [value for index, value in enumerate(spec) if index != key]
    return [_without(value, rest) if index == key else value for index, value in enumerate(spec)]


def _valid(resource: Resource) -> bool:
    try:
        typed(resource)
    except Exception:
        return False
    return True


def _spoken(path: list[str | int]) -> str:
    return "spec" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
