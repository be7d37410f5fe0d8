"""Delegates: a VirtualService's rule that another VirtualService, without hosts, spells out.

Rule (Istio, delegate): the delegate's matches narrow those of the rule; pairs that contradict each other fall out.
Not for: which VirtualService a rule may name (Snapshot.delegate).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias

from istiod.resources.document import Document
from istiod.resources.routing.http_match import HttpMatchRequest, StringMatch
from istiod.resources.routing.http_route import Delegate, HttpRoute
from istiod.resources.schema import exactly_one
from istiod.resources.virtual_service import VirtualService

Delegates: TypeAlias = Callable[[Document[VirtualService], Delegate], Document[VirtualService] | None]
"""The delegate that a VirtualService names, None for one that it may not use."""


def undelegated(
    document: Document[VirtualService],
    rule: HttpRoute,
    delegates: Delegates,
) -> Iterable[tuple[Document[VirtualService], HttpRoute]]:
    """The rule itself, or the delegate's rules narrowed by it. A delegate that is missing yields nothing."""
    if rule.delegate is None:
        yield document, rule
        return
    found = delegates(document, rule.delegate)
    if found is None:
        return
    for inner in found.spec.http:
        if inner.delegate is not None:
            continue  # one level only (Istio)
        matches = _merged_matches(rule.match, inner.match)
        if matches is None:
            continue
        changes: dict[str, object] = {"match": matches}
        for name in ("timeout", "retries", "fault", "cors_policy", "headers", "rewrite"):
            if getattr(inner, name) is None and getattr(rule, name) is not None:
                changes[name] = getattr(rule, name)
        yield found, inner.model_copy(update=changes)


def _merged_matches(
    outer: tuple[HttpMatchRequest, ...], inner: tuple[HttpMatchRequest, ...]
) -> tuple[HttpMatchRequest, ...] | None:
    """Every pair of a root's and a delegate's match; pairs that contradict each other fall out (Istio, delegate)."""
    if not outer or not inner:
        return outer or inner
    result = []
    for one in outer:
        for two in inner:
            merged = _merged_match(one, two)
            if merged is not None:
                result.append(merged)
    return tuple(result) or None


def _merged_match(root: HttpMatchRequest, leaf: HttpMatchRequest) -> HttpMatchRequest | None:
    changes: dict[str, object] = {}
    for name in root.model_fields_set:
        mine, theirs = getattr(root, name), getattr(leaf, name)
        if name not in leaf.model_fields_set:
            changes[name] = mine
        elif isinstance(mine, dict):
            if any(key in theirs and not _agrees(value, theirs[key]) for key, value in mine.items()):
                return None
            changes[name] = {**mine, **theirs}
        elif isinstance(mine, StringMatch):
            if not _narrows(mine, theirs):
                return None
        elif name not in ("name", "gateways", "stat_prefix", "ignore_uri_case") and mine != theirs:
            return None
    return leaf.model_copy(update=changes)


def _agrees(root: object, leaf: object) -> bool:
    """Whether a delegate may say this of a header, parameter or label of which its root says that."""
    if isinstance(root, StringMatch) and isinstance(leaf, StringMatch):
        return _narrows(root, leaf)
    return root == leaf


def _narrows(root: StringMatch, leaf: StringMatch) -> bool:
    """Whether everything that `leaf` matches, `root` matches (regular expressions only when equal)."""
    if root == leaf or not exactly_one(root, ("exact", "prefix", "regex")):
        return True
    if root.prefix is not None:
        return (leaf.exact if leaf.exact is not None else leaf.prefix or "").startswith(root.prefix)
    return False
