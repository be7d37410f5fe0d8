"""Retry policies made ready for the exchange."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from agent.http.matching import RequestPredicate, compile_request_header, compile_response_headers
from agent.http.request import RequestContext
from agent.http.retry_plan import RetryPlan
from agent.table.matchers import HeaderMatch
from agent.table.route import RetryPolicy


def compile_retry(policy: RetryPolicy | None) -> RetryPlan | None:
    """The plan of a policy; None for none."""
    if policy is None:
        return None
    return RetryPlan(
        on=policy.on,
        attempts=policy.attempts,
        per_try_timeout=policy.per_try_timeout,
        statuses=policy.statuses,
        retriable_headers=compile_response_headers(policy.retriable_headers),
        retriable_request=_any_of(policy.retriable_request_headers),
        base_interval=policy.base_interval,
        max_interval=policy.max_interval,
        previous_hosts=policy.previous_hosts,
        avoid=_avoided(policy),
        previous_priorities=policy.previous_priorities,
        reset_headers=policy.reset_headers,
        max_reset=policy.max_reset,
        host_selection_attempts=policy.host_selection_attempts,
        per_try_idle_timeout=policy.per_try_idle_timeout,
    )


def _avoided(policy: RetryPolicy) -> Callable[[Mapping[str, Any]], bool] | None:
    """Is an endpoint with this metadata one that a retry passes over?"""
    omitted = tuple(match for match in policy.omit_metadata if match)
    canaries = policy.omit_canaries
    if not omitted and not canaries:
        return None

    def avoid(metadata: Mapping[str, Any]) -> bool:
        own: Mapping[str, Any] = metadata.get("envoy.lb", {})
        if canaries and own.get("canary") is True:
            return True
        return any(all(own.get(name) == value for name, value in match.items()) for match in omitted)

    return avoid


def _any_of(matches: tuple[HeaderMatch, ...]) -> RequestPredicate | None:
    if not matches:
        return None
    tests = tuple(compile_request_header(match) for match in matches)

    def retriable(ctx: RequestContext) -> bool:
        return any(test(ctx) for test in tests)

    return retriable
