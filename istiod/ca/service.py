"""Istio's certificate service: who gets a certificate for which identity, and who is refused and why.

Rule: decided by what the connection proves, never by what the request says: the request's one SPIFFE id must be the
one of the presented certificate (renewal), also when that has lapsed a while ago, or one that the join token allows (first
contact). Every refusal has a reason for the caller and a line in the log.
Not for what a certificate looks like (istiod.ca.authority).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

import trio
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import Certificate
from google.protobuf.message import DecodeError

from istiod.ca import lapsed
from istiod.ca.authority import Authority, granted, istiod_identity
from istiod.ca.serving import utc_now
from istiod.enrolment import Enrolment, TokenRefusedError
from istiod.log import fields
from registry.errors import RegistryError
from wire import x509
from wire.grpc import GrpcError, GrpcStatus, Handler, Metadata, Peer, ServerCall, host_of
from wire.grpc.admission import source_of
from wire.proto.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from wire.rate import RateLimit, RateLimits
from wire.spiffe import SpiffeId

__all__ = ["CertificateService"]

_log = logging.getLogger("istiod.ca")

Clock = Callable[[], datetime]


@dataclass(frozen=True)
class Budgets:
    """How often may be asked. A request costs a signature's verification, and a right one a signature."""

    requests: RateLimits = field(default_factory=lambda: RateLimits(burst=2_000, rate=20))
    """By source, for peers without a certificate; by identity and source for those with one."""
    refusals: RateLimits = field(default_factory=lambda: RateLimits(burst=200, rate=0.5))
    """By source: whoever guesses tokens is refused before anything is read."""
    complaints: RateLimit = field(default_factory=lambda: RateLimit(burst=10, rate=0.2))


def _who(peer: Peer) -> str:
    source = source_of(host_of(peer.address))
    return source if peer.spiffe_id is None else f"{peer.spiffe_id} {source}"


@dataclass(frozen=True)
class CertificateService:
    """The service of one mesh; `create_certificate` is the handler for wire.grpc.CREATE_CERTIFICATE."""

    authority: Authority
    enrolment: Enrolment
    trust_domain: str
    ttl: timedelta
    """The longest lifetime, and the one given when the request names none."""
    barred: Callable[[SpiffeId, bytes | None], str | None] = lambda _, __: None
    """Why an identity, or the presented certificate (DER), was revoked; None when it was not."""
    aliases: Callable[[], tuple[str, ...]] = tuple
    """Further trust domains of this mesh, now: identities move between them (Istio's trustDomainAliases)."""
    clock: Clock = utc_now
    budgets: Budgets = field(default_factory=Budgets)
    grace: timedelta = timedelta(0)
    """How long after its end a certificate still proves who asks for the next one."""

    @property
    def handler(self) -> Handler:
        """For wire.grpc.serve."""
        return self.create_certificate

    async def create_certificate(self, call: ServerCall) -> None:
        """Answer one CreateCertificate call. Raises GrpcError to refuse."""
        message = await call.receive()
        now = trio.current_time()
        refusals = self.budgets.refusals.of(source_of(host_of(call.peer.address)))
        if not self.budgets.requests.of(_who(call.peer)).spend(now) or not refusals.spend(now):
            if self.budgets.complaints.spend(now):
                _log.warning("too many certificate requests", extra=fields(peer=str(call.peer)))
            raise GrpcError(GrpcStatus.RESOURCE_EXHAUSTED, "too many certificate requests; try again later")
        try:
            request = IstioCertificateRequest.FromString(message or b"")
            response = await self.certify(request, call.metadata, call.peer)
        except DecodeError as error:
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, "not an IstioCertificateRequest") from error
        except GrpcError as error:
            _log.warning(
                "certificate refused",
                extra=fields(peer=str(call.peer), status=error.status.name, reason=error.message),
            )
            raise
        refusals.refund()
        await call.send(response.SerializeToString())

    async def certify(
        self, request: IstioCertificateRequest, metadata: Metadata, peer: Peer
    ) -> IstioCertificateResponse:
        """The decision and the certificate. Raises GrpcError."""
        try:
            public_key, identity = x509.read_csr(request.csr)
        except x509.X509Error as error:
            raise GrpcError(GrpcStatus.INVALID_ARGUMENT, str(error)) from error
        if identity.trust_domain not in (self.trust_domain, *self.aliases()):
            raise _denied(f"{identity} is not of the trust domain {self.trust_domain}")
        if identity == istiod_identity(identity.trust_domain):
            raise _denied(f"{identity} is istiod's own identity")
        if (reason := self.barred(identity, None)) is not None:
            raise _denied(reason)
        proof = await self._proof(identity, public_key, metadata, peer, request.csr)
        now = self.clock()
        ttl = granted(request.validity_duration, self.ttl)
        try:
            issued = self.authority.issue(public_key, now=now, ttl=ttl, uris=(identity,))
        except x509.X509Error as error:
            raise GrpcError(GrpcStatus.FAILED_PRECONDITION, str(error)) from error
        certificate = issued.certificate
        _log.info(
            "certificate issued",
            extra=fields(
                identity=str(identity),
                peer=peer.address,
                proof=proof,
                serial=f"{certificate.serial_number:x}",
                expires=certificate.not_valid_after_utc.isoformat(),
            ),
        )
        return IstioCertificateResponse(cert_chain=issued.messages)

    async def _proof(
        self, identity: SpiffeId, public_key: x509.PublicKey, metadata: Metadata, peer: Peer, csr: str
    ) -> str:
        """What entitles the peer to `identity`, for the log. Raises GrpcError."""
        token = _bearer(metadata)
        if peer.spiffe_id is not None and (reason := self.barred(peer.spiffe_id, peer.cert_der)) is not None:
            raise _denied(reason)
        if token is not None:
            return await self._by_token(token, identity, public_key)
        if peer.spiffe_id is None:
            if (certificate := self._lapsed(identity, metadata, csr)) is not None:
                return f"lapsed certificate {certificate.serial_number:x}"
            raise GrpcError(
                GrpcStatus.UNAUTHENTICATED, "neither a client certificate nor a join token was presented"
            )
        # One principal in every trust domain of the mesh; which domain a peer is of was checked by the CA that signed it.
        domains = (self.trust_domain, *self.aliases())
        same = replace(peer.spiffe_id, trust_domain=identity.trust_domain) == identity
        if not same or peer.spiffe_id.trust_domain not in domains:
            raise _denied(f"a certificate for {peer.spiffe_id} does not allow {identity}")
        return "current certificate"

    def _lapsed(self, identity: SpiffeId, metadata: Metadata, csr: str) -> Certificate | None:
        """The lapsed certificate that entitles to `identity`; None when none is shown. Raises GrpcError."""
        try:
            found = lapsed.owner(metadata, csr, self.authority, self.clock(), self.grace)
        except lapsed.LapsedError as error:
            raise _denied(str(error)) from error
        if found is None:
            return None
        actual, certificate = found
        if (reason := self.barred(actual, certificate.public_bytes(Encoding.DER))) is not None:
            raise _denied(reason)
        if actual != identity:
            raise _denied(f"a certificate for {actual} does not allow {identity}")
        return certificate

    async def _by_token(self, text: str, identity: SpiffeId, public_key: x509.PublicKey) -> str:
        der = public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        try:
            token = await self.enrolment.use(text, identity, hashlib.sha256(der).hexdigest(), self.clock())
        except TokenRefusedError as error:
            status = GrpcStatus.PERMISSION_DENIED if error.known else GrpcStatus.UNAUTHENTICATED
            raise GrpcError(status, str(error)) from error
        except RegistryError as error:
            _log.error("join tokens cannot be read", extra=fields(reason=str(error)))
            raise GrpcError(GrpcStatus.UNAVAILABLE, "the registry is not reachable; try again") from error
        return f"join token {token.id}"


def _bearer(metadata: Metadata) -> str | None:
    """The token of `authorization: Bearer TOKEN` (RFC 6750 §2.1). Raises GrpcError for anything else there."""
    values = metadata.get_all("authorization")
    if not values:
        return None
    scheme, _, token = values[0].partition(" ")
    if len(values) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise GrpcError(GrpcStatus.UNAUTHENTICATED, "the authorization is not one bearer token")
    return token.strip()


def _denied(reason: str) -> GrpcError:
    return GrpcError(GrpcStatus.PERMISSION_DENIED, reason)
