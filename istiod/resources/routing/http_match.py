"""The conditions of a VirtualService's HTTP rules."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import StringConstraints

from istiod.resources.routing.origin import origin_problems
from istiod.resources.schema import Bool, NonEmpty, Spec, Str, UInt32, empty, exactly_one, regex_problem

MatchedHeader = Annotated[Str, StringConstraints(min_length=1)]
_HEADER = re.compile(r"[-_A-Za-z0-9!#$%&'*+.^`|~]+|:(?:method|authority|scheme|path)")
_CLAIM = re.compile(r"@request\.auth\.claims(?:\..+|(?:\[[^\[\]]+\])+)")
PRESENCE = "*"
"""The regular expression that is none: the header or parameter must be there."""


class StringMatch(Spec):
    """Exactly one of the three; a query parameter or header may have none: then it must merely be present."""

    exact: Str | None = None
    prefix: Str | None = None
    regex: Str | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        given = exactly_one(self, ("exact", "prefix", "regex"))
        if len(given) > 1:
            yield "", f"only one of exact, prefix, regex may be set, not {' and '.join(given)}"

    def value_problems(
        self, *, presence: bool = False, empty_prefix: bool = False
    ) -> Iterator[tuple[str, str]]:
        """What is wrong with the value, which depends on what is matched.

        `presence`: the regular expression `*` is allowed and means presence; `empty_prefix`: matches all.
        """
        if self.prefix == "" and not empty_prefix:
            yield "prefix", "must not be empty: it would match everything"
        if self.regex is None or (presence and self.regex == PRESENCE):
            return
        if not self.regex:
            yield "regex", "must not be empty"
        elif problem := regex_problem(self.regex):
            yield "regex", problem

    @property
    def only_presence(self) -> bool:
        """Whether any value will do, as long as there is one."""
        return self.exact is None and self.prefix is None and self.regex in (None, PRESENCE)


def is_claim(name: str) -> bool:
    """`@request.auth.claims.group`, `@request.auth.claims[group]`: a claim of a verified token, at gateways."""
    return _CLAIM.fullmatch(name) is not None


class HttpMatchRequest(Spec):
    """All conditions of one match must hold; a route matches when any of its matches does."""

    name: Str = ""
    uri: StringMatch | None = None
    scheme: StringMatch | None = None
    method: StringMatch | None = None
    authority: StringMatch | None = None
    headers: dict[MatchedHeader, StringMatch] = empty()
    without_headers: dict[MatchedHeader, StringMatch] = empty()
    query_params: dict[NonEmpty, StringMatch] = empty()
    port: UInt32 = 0
    source_labels: dict[str, Str] = empty()
    source_namespace: Str = ""
    gateways: tuple[NonEmpty, ...] = ()
    ignore_uri_case: Bool = False
    stat_prefix: Str = ""

    def rules(self) -> Iterator[tuple[str, str]]:
        for name in ("uri", "scheme", "method", "authority"):
            match: StringMatch | None = getattr(self, name)
            if match is None:
                continue
            if not exactly_one(match, ("exact", "prefix", "regex")):
                yield name, "one of exact, prefix, regex must be set"
            for path, reason in match.value_problems(empty_prefix=name == "uri"):
                yield f"{name}.{path}", reason
        for field, values in (
            ("headers", self.headers),
            ("withoutHeaders", self.without_headers),
            ("queryParams", self.query_params),
        ):
            for name, match in values.items():
                if field != "queryParams" and not _HEADER.fullmatch(name) and not is_claim(name):
                    yield f"{field}[{name}]", f"{name!r} is not a header name"
                for path, reason in match.value_problems(presence=True):
                    yield f"{field}[{name}].{path}", reason
        yield from origin_problems(self.port, self.source_labels, self.source_namespace, self.gateways)

    def claims(self) -> Iterator[str]:
        """The conditions on claims of a token, as paths."""
        for field, values in (("headers", self.headers), ("withoutHeaders", self.without_headers)):
            yield from (f"{field}[{name}]" for name in values if is_claim(name))
