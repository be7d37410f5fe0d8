"""A workload's identity: a key that never leaves the host, its certificate, and their renewal.

Rule: an identity is used only when key, chain and SPIFFE id fit each other. It is renewed with itself, over
mutual TLS, when half of its life is over; the join token is for the first time, and for a host that slept
past the end of its certificate. Failing to renew never takes the present identity away.
Not for: who may have which identity (istiod decides), how workers get it (`secrets`).
Source: istio.v1.auth.IstioCertificateService; X509-SVID.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import trio
from google.protobuf.message import DecodeError

from agent.host.config import JoinToken
from agent.host.control.control_plane import ControlPlane, Unreachable
from agent.host.identity import join_token
from agent.host.log import fields
from agent.host.state import State
from wire.grpc import CREATE_CERTIFICATE, Backoff, GrpcError, open_channel
from wire.proto import istio_ca_pb2
from wire.spiffe import SpiffeError, SpiffeId
from wire.tls import client_context
from wire.x509 import X509Error, fingerprint, key_from_pem, key_to_pem, load_chain, make_csr, new_key, to_pem

log = logging.getLogger("hostmesh.identity")
_DEADLINE = 15.0
_LONGEST_SLEEP = 60.0
_MAX_ROOTS = 4
_END = b"-----END PRIVATE KEY-----\n"


class IdentityError(Exception):
    """No identity could be had; says why and what to do."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A key and its chain (leaf first, root last). Invariant: the leaf is the key's, and names `spiffe`."""

    spiffe: SpiffeId
    key_pem: bytes
    chain_pem: bytes
    issued: float
    expires: float
    """Both in seconds since the epoch."""
    serial: str

    @property
    def pem(self) -> bytes:
        """Key and chain as one text, the form in which it is stored."""
        return self.key_pem + self.chain_pem

    def renew_at(self, chance: float) -> float:
        """When to renew: at half of its life, a twentieth earlier or later. `chance` is from 0 to 1."""
        return self.issued + (self.expires - self.issued) * (0.45 + 0.1 * chance)


def read(pem: bytes, spiffe: SpiffeId, issued: float) -> Identity:
    """Check a stored or received identity; IdentityError when its parts do not fit each other."""
    head, end, chain_pem = pem.partition(_END)
    try:
        key = key_from_pem(head + end)
        chain = load_chain(chain_pem)
        actual = SpiffeId.of_certificate(chain[0])
    except (X509Error, SpiffeError) as error:
        raise IdentityError(str(error)) from error
    if actual != spiffe:
        raise IdentityError(f"the certificate is for {actual}, not for {spiffe}")
    if chain[0].public_key() != key.public_key():
        raise IdentityError("the certificate is not for this key")
    leaf = chain[0]
    start, expires = leaf.not_valid_before_utc.timestamp(), leaf.not_valid_after_utc.timestamp()
    return Identity(
        spiffe=spiffe,
        key_pem=head + end,
        chain_pem=to_pem(chain),
        issued=min(max(issued, start), expires),
        expires=expires,
        serial=f"{leaf.serial_number:x}",
    )


class IdentityKeeper:
    """One workload's identity over time; `on_change` is awaited with each new one and the trust roots."""

    def __init__(
        self,
        key: str,
        spiffe: SpiffeId,
        *,
        state: State,
        control_plane: ControlPlane,
        token: JoinToken | None,
        on_change: Callable[[Identity, bytes], Awaitable[None]],
        clock: Callable[[], float],
        chance: Callable[[], float],
    ) -> None:
        self.current: Identity | None = None
        self.roots = b""
        self.last_error = ""
        self.changed = trio.Event()
        """Set and replaced whenever a new identity is in force."""
        self._key, self._spiffe, self._state = key, spiffe, state
        self._control_plane, self._token, self._on_change = control_plane, token, on_change
        self._clock, self._chance = clock, chance

    def load(self) -> bool:
        """Take up the stored identity; False when there is none that fits. An expired one is taken up too."""
        stored, roots = self._state.identity(self._key), self._state.root()
        if stored is None or roots is None:
            return False
        try:
            self.current = read(stored[0], self._spiffe, stored[1])
        except IdentityError as error:
            log.warning("the stored identity is not used: %s", error, extra=fields(workload=self._key))
            return False
        try:
            token = join_token.load(self._token)
        except join_token.TokenError:
            token = None  # not needed any more
        if token is not None and token.root not in map(fingerprint, load_chain(roots)):
            log.warning("the join token is another CA's: joining anew", extra=fields(workload=self._key))
            self.current = None
            return False
        self.roots = roots
        return True

    def context(self) -> ssl.SSLContext:
        """The TLS context for talking to istiod as this workload."""
        assert self.current is not None
        return client_context(self.roots, self.current.chain_pem, self.current.key_pem)

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Get an identity if there is none, then renew it for ever; started once there is one."""
        backoff = Backoff(self._chance, initial=1.0, maximum=60.0)
        started = False
        while True:
            if self.current is not None and not started:
                started = True
                task_status.started()
            due = self.current.renew_at(self._chance()) if self.current is not None else 0.0
            # In short naps: a host that was suspended finds its clock far ahead.
            while (wait := due - self._clock()) > 0:  # noqa: ASYNC110 (the wall clock rings no bell)
                await trio.sleep(min(wait, _LONGEST_SLEEP))
            try:
                await self._obtain()
            except (IdentityError, Unreachable, GrpcError, X509Error, DecodeError, OSError) as error:
                self.last_error = str(error)
                self._complain(error)
                await trio.sleep(backoff.next_delay())
                continue
            self.last_error = ""
            backoff.reset()

    def _complain(self, error: Exception) -> None:
        left = self.current.expires - self._clock() if self.current is not None else 0.0
        extra = fields(workload=self._key, spiffe=self._spiffe)
        if self.current is None:
            log.error("no identity yet: %s", error, extra=extra)
        elif left <= 0:
            log.error("the certificate has expired and cannot be renewed: %s", error, extra=extra)
        else:
            log.warning("renewal failed, valid for another %d s: %s", left, error, extra=extra)

    async def _obtain(self) -> None:
        if self.current is not None and self.current.expires > self._clock():
            metadata: tuple[tuple[str, str], ...] = ()
            context, roots = self.context(), self.roots
        else:
            try:
                token = join_token.load(self._token)
            except join_token.TokenError as error:
                raise IdentityError(f"{error} (a new one: meshctl token create)") from error
            roots = await self._control_plane.fetch_root(token.root)
            context, metadata = client_context(roots), (("authorization", f"Bearer {token.text}"),)
        key = new_key()
        request = istio_ca_pb2.IstioCertificateRequest(csr=make_csr(key, self._spiffe).decode())

        async def connect() -> trio.abc.Stream:
            return await self._control_plane.connect(context)

        async with open_channel(connect, self._control_plane.authority) as channel:
            answer = await channel.unary(
                CREATE_CERTIFICATE, request.SerializeToString(), metadata, deadline=_DEADLINE
            )
        chain = istio_ca_pb2.IstioCertificateResponse.FromString(answer).cert_chain
        chain_pem = "".join(part if part.endswith("\n") else part + "\n" for part in chain).encode()
        identity = read(key_to_pem(key) + chain_pem, self._spiffe, self._clock())
        if identity.expires <= self._clock():
            raise IdentityError("istiod gave a certificate that has expired (are the clocks right?)")
        await self._take_up(identity, _merge(roots, chain_pem))

    async def _take_up(self, identity: Identity, roots: bytes) -> None:
        self._state.save_root(roots)
        self._state.save_identity(self._key, identity.pem)
        self.current, self.roots = identity, roots
        until = datetime.fromtimestamp(identity.expires, UTC).isoformat(timespec="seconds")
        log.info("new certificate", extra=fields(workload=self._key, spiffe=self._spiffe, until=until))
        await self._on_change(identity, roots)
        changed, self.changed = self.changed, trio.Event()
        changed.set()


def _merge(roots: bytes, chain_pem: bytes) -> bytes:
    """The chain's own root first, then those trusted so far (a root that is being replaced)."""
    last = load_chain(chain_pem)[-1]
    known = load_chain(roots)
    if last.subject != last.issuer or last in known:
        return roots
    return to_pem([last, *known][:_MAX_ROOTS])
