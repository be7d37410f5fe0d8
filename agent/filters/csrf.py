"""Cross-site request forgery (envoy.filters.http.csrf).

Rule (Envoy CsrfFilter): a request that changes state must come from the host it goes to, by its Origin or else its
Referer, or from an origin that is configured.
"""

from __future__ import annotations

from typing import Final

from agent.filters.chain import Placed, most_specific
from agent.filters.chance import ENABLED, draw
from agent.filters.step import RequestStep, Steps
from agent.http.request import LocalReply, RequestContext
from agent.table.filter_config import Csrf
from agent.table.matchers import compile_string

_CHANGING: Final = frozenset({b"POST", b"PUT", b"DELETE", b"PATCH"})
_REFUSAL: Final = LocalReply(403, b"Invalid origin", details="csrf_origin_mismatch")


def compile(placed: Placed) -> Steps | None:
    """Steps for a place in a chain."""
    config = most_specific(placed, Csrf)
    if config.enabled.numerator == 0:
        return None
    missing, invalid, valid = (
        placed.count(f"{placed.stats}csrf.{name}")
        for name in ("missing_source_origin", "request_invalid", "request_valid")
    )
    additional = tuple(compile_string(match) for match in config.additional_origins)

    def check(ctx: RequestContext) -> LocalReply | None:
        if ctx.method not in _CHANGING or not config.enabled.takes(draw(ctx, ENABLED)):
            return None
        source = _host_and_port(ctx.headers.get(b"origin") or ctx.headers.get(b"referer", b""))
        if not source:
            missing()
        elif source == _host_and_port(ctx.authority) or any(match(source) for match in additional):
            valid()
            return None
        else:
            invalid()
        return _REFUSAL

    step: RequestStep = check
    return Steps((step,))


def _host_and_port(url: bytes) -> bytes:
    """Host and port of an absolute URL, the input itself where it is none."""
    _, mark, rest = url.partition(b"://")
    return rest.partition(b"/")[0].partition(b"?")[0] if mark else url
