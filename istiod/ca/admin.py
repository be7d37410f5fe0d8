"""Who may open the admin API: certificates of the admin CA, and the context file that carries the first one.

Rule: the context is a private key in a file, so it is 0600 and made anew only when it would soon be of no use (or is
for another address or CA). Not for the file's format (istiod.admin_context) nor for the mesh's identities.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from istiod.admin_context import AdminContext, ContextError, read, write
from istiod.ca.authority import Authority
from wire import x509

__all__ = ["CONTEXT_FILE", "admin_context", "ensure_admin_context"]

CONTEXT_FILE = "admin-context.yaml"
_LIFETIME = timedelta(days=365)
_NAME = "hostmesh:admin"


def admin_context(authority: Authority, address: str, now: datetime) -> AdminContext:
    """A new client certificate for the admin API at `address` (`https://HOST:PORT`), good for a year."""
    key = x509.new_key()
    issued = authority.issue(key.public_key(), now=now, ttl=_LIFETIME, uris=(_NAME,))
    return AdminContext(
        address=address,
        certificate_authority=authority.roots_pem.decode("ascii"),
        client_certificate=x509.to_pem(issued.certificate).decode("ascii"),
        client_key=x509.key_to_pem(key).decode("ascii"),
    )


def ensure_admin_context(state_dir: Path, authority: Authority, address: str, now: datetime) -> bool:
    """See that `admin-context.yaml` in the state directory is good; True when it was (re)written.

    It is kept while it is this CA's, for this address, and has a third of its life left. Raises OSError.
    """
    path = state_dir / CONTEXT_FILE
    if _is_good(path, authority, address, now):
        return False
    write(path, admin_context(authority, address, now))
    return True


def _is_good(path: Path, authority: Authority, address: str, now: datetime) -> bool:
    try:
        context = read(path)
        certificate = x509.load_chain(context.client_certificate)[0]
        key = x509.key_from_pem(context.client_key.encode())
    except (ContextError, x509.X509Error):
        return False  # missing, damaged, or open to others: a new one takes its place
    return (
        context.address == address
        and context.certificate_authority == authority.roots_pem.decode("ascii")
        and key.public_key() == certificate.public_key()
        and certificate.not_valid_after_utc - now > _LIFETIME / 3
    )
