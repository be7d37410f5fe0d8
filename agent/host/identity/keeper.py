"""A workload's identity over time: joining, renewal, storing; its key never leaves the host.

Rule: an identity is used only when key, chain and SPIFFE id fit each other. It is renewed with itself when half of its life
is over: over mutual TLS, or, once it has lapsed, by a signature (wire.lapsed). The join token is for the first time, and for
a host that istiod does not let renew any more. Failing to renew or to store never takes an identity away.
Not for: who may have which identity (istiod decides), how workers get it (`secrets`).
Source: istio.v1.auth.IstioCertificateService; X509-SVID.
"""

from __future__ import annotations

import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime

import trio
from cryptography.x509 import Certificate
from google.protobuf.message import DecodeError

from agent.host.config import JoinToken
from agent.host.control.control_plane import ControlPlane, Unreachable
from agent.host.identity import join_token
from agent.host.identity.identity import Identity, IdentityError, read
from agent.host.log import fields
from agent.host.state import State
from wire.grpc import CREATE_CERTIFICATE, Backoff, GrpcError, GrpcStatus, open_channel
from wire.lapsed import prove
from wire.proto import istio_ca_pb2
from wire.spiffe import SpiffeId
from wire.tls import client_context
from wire.x509 import (
    PrivateKey,
    X509Error,
    fingerprint,
    key_from_pem,
    key_to_pem,
    load_chain,
    make_csr,
    new_key,
    to_pem,
)

log = logging.getLogger("hostmesh.identity")
_DEADLINE = 15.0
_LONGEST_SLEEP = 60.0
"""Between two looks at the wall clock, and two tries to store what could not be stored."""


_NOT_LIKE_THIS = (GrpcStatus.PERMISSION_DENIED, GrpcStatus.UNAUTHENTICATED)


OBTAINING_ERRORS = (IdentityError, Unreachable, GrpcError, X509Error, DecodeError, OSError)


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
        self._unstored = False
        """Whether the present identity is in memory only."""

    @property
    def expired(self) -> bool:
        """Whether there is an identity and it is of no use any more."""
        return self.current is not None and self.current.expires <= self._clock()

    def load(self) -> bool:
        """Take up the stored identity; False when there is none that fits. An expired one is taken up too."""
        stored = self._state.identity(self._key)
        if stored is None:
            return False
        try:
            self.current = read(stored[0], self._spiffe, stored[1])
        except IdentityError as error:
            log.warning("the stored identity is not used: %s", error, extra=fields(workload=self._key))
            return False
        roots = self._stored_roots(self.current)
        if roots is None:
            self.current = None
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

    def _stored_roots(self, identity: Identity) -> bytes | None:
        """The stored trust roots; where they are damaged, the root at the end of the identity's own chain."""
        stored = self._state.root()
        try:
            load_chain(stored or b"")
        except X509Error as error:
            last = load_chain(identity.chain_pem)[-1]
            if last.subject != last.issuer:
                log.warning(
                    "the stored trust roots are damaged, and the stored chain holds no root: joining anew: %s",
                    error, extra=fields(workload=self._key),
                )  # fmt: skip
                return None
            log.warning(
                "the stored trust roots are damaged; the root of the stored identity is used: %s",
                error, extra=fields(workload=self._key),
            )  # fmt: skip
            stored = to_pem(last)
            self._unstored = True
        return stored

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
            await self._rest()
            try:
                await self._obtain()
            except OBTAINING_ERRORS as error:
                self.last_error = str(error)
                self._complain(error)
                await trio.sleep(backoff.next_delay())
                continue
            backoff.reset()

    async def _rest(self) -> None:
        """Until it is time to renew; what could not be stored is stored meanwhile."""
        due = self.current.renew_at(self._chance()) if self.current is not None else 0.0
        # In short naps: a host that was suspended finds its clock far ahead.
        while (wait := due - self._clock()) > 0:
            if not self._unstored:
                self.last_error = ""  # of a renewal that a wrong clock had made due
            await trio.sleep(min(wait, _LONGEST_SLEEP))
            if self._unstored and self.current is not None:
                self._store(self.current, self.roots)

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
        if self.current is None:
            await self._join()
        elif not self.expired:
            await self._ask(new_key(), self.context())
        else:
            try:
                await self._renew_lapsed(self.current)
            except GrpcError as error:
                if error.status not in _NOT_LIKE_THIS:
                    raise
                log.warning(
                    "the lapsed certificate is not renewed: %s",
                    error.message,
                    extra=fields(workload=self._key),
                )
                await self._join()

    async def _join(self) -> None:
        try:
            token = join_token.load(self._token)
        except join_token.TokenError as error:
            raise IdentityError(f"{error} (a new one: meshctl token create)") from error
        roots = await self._control_plane.fetch_root(token.root)
        metadata = (("authorization", f"Bearer {token.text}"),)
        try:
            await self._ask(self._joining_key(), client_context(roots), metadata)
        except GrpcError as error:
            if error.status not in _NOT_LIKE_THIS:
                raise
            raise IdentityError(f"{error} (a new token for this host: meshctl token create)") from error

    def _joining_key(self) -> PrivateKey:
        """The key to join with, stored before the token is used: only the same key may ask again (decision 004)."""
        pem = self._state.pending_key(self._key)
        if pem is not None:
            try:
                return key_from_pem(pem)
            except X509Error as error:
                log.warning("the stored joining key is not used: %s", error, extra=fields(workload=self._key))
        key = new_key()
        try:
            self._state.save_pending_key(self._key, key_to_pem(key))
        except OSError as error:
            raise IdentityError(
                f"the join token is not used yet: its key cannot be stored: {error}"
            ) from error
        return key

    async def _renew_lapsed(self, lapsed: Identity) -> None:
        key = new_key()
        leaf = load_chain(lapsed.chain_pem)[0]

        def proof(csr: bytes) -> tuple[tuple[str, bytes], ...]:
            return prove(leaf, key_from_pem(lapsed.key_pem), csr)

        await self._ask(key, client_context(self.roots), proof=proof)

    async def _ask(
        self,
        key: PrivateKey,
        context: ssl.SSLContext,
        metadata: tuple[tuple[str, str | bytes], ...] = (),
        proof: Callable[[bytes], tuple[tuple[str, bytes], ...]] = lambda csr: (),
    ) -> None:
        """Ask istiod for a certificate of this key, and take it up."""
        csr = make_csr(key, self._spiffe)
        request = istio_ca_pb2.IstioCertificateRequest(csr=csr.decode())

        async def connect() -> trio.abc.Stream:
            return await self._control_plane.connect(context)

        async with open_channel(connect, self._control_plane.authority) as channel:
            answer = await channel.unary(
                CREATE_CERTIFICATE, request.SerializeToString(), (*metadata, *proof(csr)), deadline=_DEADLINE
            )
        chain = istio_ca_pb2.IstioCertificateResponse.FromString(answer).cert_chain
        bundle = _roots_of(chain)
        # The chain ends in the root that is istiod's own; further ones of the bundle are trusted, not presented.
        links = b"".join(to_pem(load_chain(part)) for part in chain[:-1])
        own_chain = key_to_pem(key) + links + to_pem(bundle[0])
        identity = read(own_chain, self._spiffe, self._clock())
        if identity.expires <= self._clock():
            raise IdentityError("istiod gave a certificate that has expired (are the clocks right?)")
        await self._take_up(identity, to_pem(bundle))

    async def _take_up(self, identity: Identity, roots: bytes) -> None:
        # First in use, then stored: a full disk must not throw away what was issued.
        self.current, self.roots, self.last_error = identity, roots, ""
        self._store(identity, roots)
        until = datetime.fromtimestamp(identity.expires, UTC).isoformat(timespec="seconds")
        log.info("new certificate", extra=fields(workload=self._key, spiffe=self._spiffe, until=until))
        await self._on_change(identity, roots)
        changed, self.changed = self.changed, trio.Event()
        changed.set()

    def _store(self, identity: Identity, roots: bytes) -> None:
        try:
            self._state.save_root(roots)
            self._state.save_identity(self._key, identity.pem)
            self._state.forget_pending_key(self._key)
        except OSError as error:
            self._unstored = True
            self.last_error = f"the certificate is in use, but cannot be stored: {error}"
            log.warning("%s", self.last_error, extra=fields(workload=self._key))
            return
        if self._unstored:
            log.info("the certificate is stored", extra=fields(workload=self._key))
        self._unstored, self.last_error = False, ""


def _roots_of(chain: Sequence[str]) -> list[Certificate]:
    """Exactly the roots of istiod's bundle, the last part of its answer: one that it dropped is trusted no more.

    Raises IdentityError for an answer without a bundle of roots.
    """
    if len(chain) < 2:
        raise IdentityError("istiod's answer has no trust roots")
    bundle = load_chain(chain[-1])
    if any(one.subject != one.issuer for one in bundle):
        raise IdentityError("istiod's bundle of trust roots has a certificate that is no root")
    return bundle
