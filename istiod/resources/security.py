"""security.istio.io: PeerAuthentication and RequestAuthentication.

Not for: AuthorizationPolicy (`istiod.resources.authorization`) or filter chains (istiod/compile/inbound.py).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from istiod.resources.names import port_problem
from istiod.resources.schema import (
    Bool,
    NonEmpty,
    PositiveDuration,
    Spec,
    Str,
)
from istiod.resources.selector import TargetReference, WorkloadSelector, one_target

MtlsMode = Literal["UNSET", "DISABLE", "PERMISSIVE", "STRICT"]


class Mtls(Spec):
    """One mode; UNSET inherits from the next wider policy."""

    mode: MtlsMode = "UNSET"


class PeerAuthentication(Spec):
    """Whether callers must, may or cannot use mutual TLS."""

    selector: WorkloadSelector | None = None
    mtls: Mtls | None = None
    port_level_mtls: dict[Annotated[str, StringConstraints(pattern=r"^[0-9]+$")], Mtls] | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        ports = self.port_level_mtls
        if ports is None:
            return
        if not ports:
            yield "portLevelMtls", "should have at least 1 properties"
        if self.selector is None or not self.selector.match_labels:
            yield "portLevelMtls", "portLevelMtls requires selector"
        for port in ports:
            if problem := port_problem(port):
                yield f"portLevelMtls[{port}]", problem


class JwtHeader(Spec):
    """Where a token is looked for."""

    name: NonEmpty
    prefix: Str = ""


class ClaimToHeader(Spec):
    """A claim that is copied into a request header."""

    header: Annotated[NonEmpty, StringConstraints(pattern=r"^[-_A-Za-z0-9]+$")]
    claim: NonEmpty


class JwtRule(Spec):
    """One issuer whose tokens are accepted."""

    issuer: NonEmpty = ""
    audiences: tuple[NonEmpty, ...] = ()
    jwks_uri: Annotated[NonEmpty, StringConstraints(max_length=2048)] | None = None
    jwks: Str | None = None
    from_headers: tuple[JwtHeader, ...] = ()
    from_params: tuple[NonEmpty, ...] = ()
    from_cookies: tuple[NonEmpty, ...] = ()
    output_payload_to_header: Str = ""
    forward_original_token: Bool = False
    output_claim_to_headers: tuple[ClaimToHeader, ...] = ()
    timeout: PositiveDuration | None = None
    space_delimited_claims: Annotated[tuple[NonEmpty, ...], Field(max_length=64)] = ()
    presence: Literal["UNSPECIFIED", "OPTIONAL", "REQUIRED"] | None = None

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.jwks is not None and self.jwks_uri is not None:
            yield "jwksUri", "only one of jwks or jwksUri can be set"
        if self.jwks_uri is not None and not re.match(r"https?://", self.jwks_uri):
            yield "jwksUri", "url must have scheme http:// or https://"


class RequestAuthentication(Spec):
    """Which tokens a workload accepts."""

    selector: WorkloadSelector | None = None
    target_ref: TargetReference | None = None
    target_refs: Annotated[tuple[TargetReference, ...], Field(max_length=16)] = ()
    jwt_rules: Annotated[tuple[JwtRule, ...], Field(max_length=4096)] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        yield from one_target(self.target_ref, self.target_refs, self.selector)
