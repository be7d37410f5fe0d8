"""Join tokens: how a new host proves that an operator wants it in the mesh, once for each identity.

Rule: `hm1.ID.SECRET.ROOT`: the id is public, only the secret's SHA-256 is stored, ROOT pins the CA for the agent's
first contact. Using a token up is a compare-and-set in the registry: of two racing agents exactly one gets the
identity. Not for certificates (istiod.ca) nor for agents that have one already: they renew without a token.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from istiod.access.facts import OWN, Grant
from istiod.access.records import AccessRecords, block
from istiod.ca.authority import ISTIOD_NAMESPACE, ISTIOD_SERVICE_ACCOUNT
from istiod.log import fields
from istiod.resources.names import host_problem
from registry.errors import ConflictError, NotARegistryError
from registry.model import ABSENT, Record
from registry.store import Records
from wire.spiffe import SpiffeError, SpiffeId

__all__ = ["Enrolment", "JoinToken", "TokenRefusedError", "TokenRequestError"]

log = logging.getLogger("istiod.enrolment")

LONGEST_TTL = timedelta(days=90)
MOST_USES = 1000
_AREA = "join-tokens"
_TOKEN = re.compile(r"hm1\.([0-9a-f]{12})\.([A-Za-z0-9_-]{43})\.([0-9a-f]{64})")
_KEPT_AFTER_EXPIRY = timedelta(days=7)
"""So long `meshctl token list` still shows what became of a token."""


class TokenRequestError(ValueError):
    """A token as asked for cannot be made; `field` names what is wrong."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        super().__init__(reason)


class TokenRefusedError(Exception):
    """The token does not allow this. `known` says that its secret was right, so the reason may be told."""

    def __init__(self, reason: str, *, known: bool) -> None:
        self.known = known
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What is stored of a token. `used`: the keys (SHA-256 of their DER) that got each identity so far.

    `services` are what its identities were granted with it (ACCOUNT/NAME), for people: the grant is a record of its own.
    """

    id: str
    secret_hash: str
    namespace: str
    service_accounts: tuple[str, ...]
    created: datetime
    expires: datetime
    used: Mapping[str, tuple[str, ...]]
    revoked: bool = False
    uses: int = 1
    """How many hosts may get each identity."""
    services: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()

    def status(self, now: datetime) -> str:
        """`revoked`, `used` (wholly), `expired` or `active`."""
        if self.revoked:
            return "revoked"
        if all(len(self.used.get(account, ())) >= self.uses for account in self.service_accounts):
            return "used"
        return "expired" if now >= self.expires else "active"


class Enrolment:
    """The mesh's join tokens, kept in the registry's records. Every method may raise RegistryError."""

    def __init__(self, records: Records, root_fingerprint: str) -> None:
        self._records = records
        self._access = AccessRecords(records)
        self._root = root_fingerprint

    async def create(
        self,
        namespace: str,
        service_accounts: Iterable[str],
        ttl: timedelta,
        now: datetime,
        *,
        services: Iterable[str] = (),
        addresses: Iterable[str] = (),
        uses: int = 1,
    ) -> tuple[str, JoinToken]:
        """Make a token and grant what its bearers may serve; returns its text, which exists nowhere else, and what is
        stored. Without `services` they serve nothing. Raises TokenRequestError.
        """
        accounts = tuple(dict.fromkeys(service_accounts))
        _check_request(namespace, accounts, ttl)
        if not 1 <= uses <= MOST_USES:
            raise TokenRequestError("uses", f"must be between 1 and {MOST_USES}")
        pairs = [service_of(text, accounts) for text in dict.fromkeys(services)]
        blocks = blocks_of(addresses)
        secret = secrets.token_urlsafe(32)
        token = JoinToken(
            id=secrets.token_hex(6),
            secret_hash=_hash(secret),
            namespace=namespace,
            service_accounts=accounts,
            created=now,
            expires=now + ttl,
            used={},
            uses=uses,
            services=tuple(f"{account}/{service}" for account, service in pairs),
            addresses=blocks if pairs else (),
        )
        await self._remove_old(now)
        for account, service in pairs:
            source = f"join token {token.id}"
            await self._access.grant(
                Grant(namespace, service, account, blocks or (OWN,), source, now.timestamp())
            )
        await self._records.put(_AREA, token.id, _encode(token), expected=ABSENT)
        return f"hm1.{token.id}.{secret}.{self._root}", token

    async def list(self) -> tuple[JoinToken, ...]:
        """All tokens, the oldest first; those long expired are gone."""
        tokens = _readable(await self._records.list(_AREA))
        return tuple(sorted(tokens, key=lambda token: (token.created, token.id)))

    async def revoke(self, token_id: str) -> bool:
        """Make it unusable; what a token granted that nobody has used goes with it. False: there is no such token."""
        while True:
            record = await self._records.get(_AREA, token_id)
            if record is None:
                return False
            token = replace(_decode(record), revoked=True)
            try:
                await self._records.put(_AREA, token_id, _encode(token), expected=record.version)
            except ConflictError:
                continue  # it was used at this moment: revoke what is stored now
            for pair in token.services if not token.used else ():
                account, _, service = pair.rpartition("/")
                await self._access.withdraw(
                    token.namespace, service, account, source=f"join token {token.id}"
                )
            return True

    async def use(self, text: str, identity: SpiffeId, key_hash: str, now: datetime) -> JoinToken:
        """Use the token up for `identity`, whose key has this SHA-256; the token as it is after.

        The same key may ask again (an answer that was lost on the way); another key may not. Raises
        TokenRefusedError.
        """
        match = _TOKEN.fullmatch(text)
        if match is None:
            raise TokenRefusedError("not a join token", known=False)
        token_id, secret, root = match.groups()
        while True:
            record = await self._records.get(_AREA, token_id)
            token = _decode(record) if record else None
            # Unknown ids take the same way: how long the answer takes must not tell which ids exist.
            right = hmac.compare_digest(_hash(secret), token.secret_hash if token else "0" * 64)
            if record is None or token is None or not right:
                raise TokenRefusedError(f"there is no join token {token_id} with this secret", known=False)
            if root != self._root:
                raise TokenRefusedError("the token was made for another root certificate", known=True)
            account = self._allowed(token, identity, key_hash, now)
            keys = token.used.get(account, ())
            if key_hash in keys:
                return token
            token = replace(token, used={**token.used, account: (*keys, key_hash)})
            try:
                await self._records.put(_AREA, token_id, _encode(token), expected=record.version)
            except ConflictError:
                continue  # somebody else used or revoked it meanwhile: judge what is stored now
            return token

    @staticmethod
    def _allowed(token: JoinToken, identity: SpiffeId, key_hash: str, now: datetime) -> str:
        """The service account that may be used now. Raises TokenRefusedError."""
        account = identity.service_account
        if token.revoked:
            raise TokenRefusedError(f"the join token {token.id} was revoked", known=True)
        if now >= token.expires:
            raise TokenRefusedError(
                f"the join token {token.id} expired at {token.expires:%Y-%m-%d %H:%M} UTC", known=True
            )
        if identity.namespace != token.namespace or account not in token.service_accounts:
            allowed = ", ".join(f"{token.namespace}/{name}" for name in token.service_accounts)
            raise TokenRefusedError(f"the join token {token.id} is for {allowed} only", known=True)
        keys = token.used.get(account, ())
        if key_hash not in keys and len(keys) >= token.uses:
            times = f" {token.uses} times" if token.uses > 1 else ""
            raise TokenRefusedError(
                f"the join token {token.id} was used already{times} for {token.namespace}/{account}",
                known=True,
            )
        return account

    async def _remove_old(self, now: datetime) -> None:
        for token in _readable(await self._records.list(_AREA)):
            if now - token.expires > _KEPT_AFTER_EXPIRY:
                await self._records.delete(_AREA, token.id)


def _readable(records: Iterable[Record]) -> list[JoinToken]:
    """The tokens that can be read; the others are named in the log and keep nobody from theirs."""
    found = []
    for record in records:
        try:
            found.append(_decode(record))
        except NotARegistryError as error:
            log.warning("a join token is left out", extra=fields(reason=str(error)))
    return found


def service_of(text: str, accounts: tuple[str, ...]) -> tuple[str, str]:
    """`NAME`, or `ACCOUNT/NAME` where the token has several accounts, as account and service. Raises
    TokenRequestError."""
    account, slash, name = text.rpartition("/")
    if not slash and len(accounts) > 1:
        raise TokenRequestError(
            "services", f"{text!r}: of a token for several accounts write ACCOUNT/NAME, for whom it is"
        )
    account = account or accounts[0]
    if account not in accounts:
        raise TokenRequestError("services", f"{text!r}: the token is not for the account {account!r}")
    check_service(name)
    return account, name


def check_service(name: str) -> None:
    """Raise TokenRequestError for what is neither a service's name nor a ServiceEntry's host."""
    if (problem := host_problem(name, wildcard=False)) or name != name.lower():
        raise TokenRequestError("services", f"{name!r}: {problem or 'must be in lower case'}")


def blocks_of(addresses: Iterable[str]) -> tuple[str, ...]:
    """Addresses and CIDR blocks in canonical form. Raises TokenRequestError."""
    found = []
    for text in addresses:
        try:
            found.append(block(text))
        except ValueError as error:
            raise TokenRequestError("addresses", f"{text!r} is not an address or CIDR block") from error
    return tuple(sorted(set(found)))


def _check_request(namespace: str, accounts: tuple[str, ...], ttl: timedelta) -> None:
    if not accounts:
        raise TokenRequestError("serviceAccounts", "at least one service account is needed")
    if not timedelta(0) < ttl <= LONGEST_TTL:
        raise TokenRequestError("ttlSeconds", f"must be more than 0 and at most {LONGEST_TTL.days} days")
    for account in accounts:
        try:
            SpiffeId("any", namespace, account)
        except SpiffeError as error:
            field = "namespace" if "namespace" in str(error) else "serviceAccounts"
            raise TokenRequestError(field, str(error)) from error
        if (namespace, account) == (ISTIOD_NAMESPACE, ISTIOD_SERVICE_ACCOUNT):
            raise TokenRequestError("serviceAccounts", f"{namespace}/{account} is istiod's own identity")


def _hash(secret: str) -> str:
    # A random secret of 256 bits cannot be guessed, so no slow password hash is needed.
    return hashlib.sha256(secret.encode()).hexdigest()


def _encode(token: JoinToken) -> str:
    return json.dumps(
        {
            "id": token.id,
            "secretSha256": token.secret_hash,
            "namespace": token.namespace,
            "serviceAccounts": list(token.service_accounts),
            "created": token.created.timestamp(),
            "expires": token.expires.timestamp(),
            # As versions before counted tokens wrote it, where that says the same: they may share the registry.
            "used": {
                account: keys[0] if len(keys) == 1 else list(keys) for account, keys in token.used.items()
            },
            "revoked": token.revoked,
            "uses": token.uses,
            "services": list(token.services),
            "addresses": list(token.addresses),
        },
        sort_keys=True,
    )


def _decode(record: Record) -> JoinToken:
    try:
        value = json.loads(record.value)
        return JoinToken(
            id=value["id"],
            secret_hash=value["secretSha256"],
            namespace=value["namespace"],
            service_accounts=tuple(value["serviceAccounts"]),
            created=datetime.fromtimestamp(value["created"], UTC),
            expires=datetime.fromtimestamp(value["expires"], UTC),
            used={
                account: (keys,) if isinstance(keys, str) else tuple(keys)
                for account, keys in value["used"].items()
            },
            revoked=value["revoked"],
            uses=int(value.get("uses", 1)),
            services=tuple(value.get("services", ())),
            addresses=tuple(value.get("addresses", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NotARegistryError(f"{record.area}/{record.key}: not a join token: {error!r}") from error
