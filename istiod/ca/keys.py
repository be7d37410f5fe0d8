"""Where the authorities' keys are: a root made at first start and kept, or a directory as Istio's cacerts.

Rule: private files (0600 in a 0700 directory), written before they are used; what is found is checked whole before
anything is signed with it. A key that is missing beside its certificate is an error, never a reason for a new root.
Not for issuing (istiod.ca.authority).
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.x509 import BasicConstraints, Certificate, ExtensionNotFound, KeyUsage

from istiod.ca.authority import Authority
from registry.errors import ConflictError
from registry.model import ABSENT
from registry.store import Records
from wire import x509
from wire.secret_file import write_secret

__all__ = ["CaError", "admin_authority", "claim_root", "mesh_authority"]

ROOT_LIFETIME = timedelta(days=3653)
_AREA = "ca"
_ROOT_RECORD = "root"


class CaError(Exception):
    """The authority cannot be used; the message names the file and what to do."""


def mesh_authority(state_dir: Path, plugged: Path | None, now: datetime) -> Authority:
    """The authority of workloads and of istiod itself. Raises CaError, OSError."""
    if plugged is not None:
        return _plugged(plugged, now)
    return _own_root(state_dir / "ca", "hostmesh", now)


def admin_authority(state_dir: Path, now: datetime) -> Authority:
    """The authority of the admin API: apart from the mesh's, so that no workload can open it.

    Raises CaError, OSError.
    """
    return _own_root(state_dir / "admin-ca", "hostmesh admin", now)


async def claim_root(records: Records, authority: Authority, *, plugged: bool) -> str | None:
    """Note in the registry whose root this mesh has; refuse to begin a second one.

    A root of our own that is not the noted one means that the state directory was lost, or that two istiods with
    roots of their own share a registry: hosts that trust the one would refuse the other. Raises CaError. A
    plugged authority is the operator's decision and becomes the noted one; then the former is returned.
    """
    mine = authority.fingerprint
    while True:
        record = await records.get(_AREA, _ROOT_RECORD)
        if record is not None and record.value == mine:
            return None
        if record is not None and not plugged:
            raise CaError(
                f"{authority.origin} has the fingerprint {mine}, but the hosts of this mesh trust {record.value}. "
                "Bring back the state directory of the istiod that made that root, or give all istiods of "
                "this registry one authority by ca.plugged in istiod.yaml"
            )
        try:
            await records.put(_AREA, _ROOT_RECORD, mine, expected=record.version if record else ABSENT)
        except ConflictError:
            continue  # another istiod starts at this moment: look again at what it noted
        return record.value if record else None


def _own_root(directory: Path, organisation: str, now: datetime) -> Authority:
    certificate_file, key_file = directory / "root-cert.pem", directory / "root-key.pem"
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    directory.chmod(0o700)
    if not certificate_file.exists():
        # The certificate is written last: without it nothing was ever issued, and a key alone is no loss.
        key = x509.new_key()
        certificate = x509.self_signed_root(key, ttl=ROOT_LIFETIME, now=now, organisation=organisation)
        write_secret(key_file, x509.key_to_pem(key))
        write_secret(certificate_file, x509.to_pem(certificate))
    root, *rest = _certificates(certificate_file)
    if rest:
        raise CaError(f"{certificate_file}: one certificate is expected")
    key_file_mode = key_file.stat().st_mode if key_file.exists() else 0
    if key_file_mode & 0o077:
        raise CaError(f"{key_file}: other users may read the CA's key; run: chmod 600 {key_file}")
    authority = Authority(_key(key_file), root, (), (root,), f"own root in {directory}")
    _check(authority, certificate_file, now)
    return authority


def _plugged(directory: Path, now: datetime) -> Authority:
    certificate_file = directory / "ca-cert.pem"
    certificate = _certificates(certificate_file)[0]
    roots = _certificates(directory / "root-cert.pem")
    chain_file = directory / "cert-chain.pem"
    chain = _certificates(chain_file) if chain_file.exists() else []
    path = _path_to_root(certificate, chain, roots, directory)
    root = path[-1]
    intermediates = tuple(path[:-1])
    others = tuple(other for other in roots if other != root)
    key = _key(directory / "ca-key.pem")
    authority = Authority(key, certificate, intermediates, (root, *others), f"plugged from {directory}")
    for link in (certificate, *intermediates, root):
        _check_is_ca(link, directory, now)
    _check(authority, certificate_file, now)
    return authority


def _path_to_root(
    certificate: Certificate, chain: list[Certificate], roots: list[Certificate], directory: Path
) -> list[Certificate]:
    """`certificate`, what lies between, and the root that signed it all."""
    path = [certificate]
    while path[-1] not in roots:
        signers = [root for root in roots if _signed_by(path[-1], root)] or [
            link for link in chain if link not in path and _signed_by(path[-1], link)
        ]
        if not signers:
            name = path[-1].subject.rfc4514_string() or "ca-cert.pem"
            raise CaError(f"{directory}: neither root-cert.pem nor cert-chain.pem has the issuer of {name}")
        path.append(signers[0])
    return path


def _signed_by(certificate: Certificate, issuer: Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _check(authority: Authority, file: Path, now: datetime) -> None:
    _check_is_ca(authority.certificate, file, now)
    if authority.key.public_key() != authority.certificate.public_key():
        raise CaError(f"{file}: the private key beside it belongs to another certificate")


def _check_is_ca(certificate: Certificate, source: Path, now: datetime) -> None:
    name = certificate.subject.rfc4514_string()
    if not _may_sign(certificate):
        raise CaError(f"{source}: {name} is not a CA's certificate: it may not sign others")
    if not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc:
        raise CaError(
            f"{source}: {name} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} to "
            f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, not now"
        )


def _may_sign(certificate: Certificate) -> bool:
    extensions = certificate.extensions
    try:
        is_ca = extensions.get_extension_for_class(BasicConstraints).value.ca
    except ExtensionNotFound:
        return False
    try:
        return is_ca and extensions.get_extension_for_class(KeyUsage).value.key_cert_sign
    except ExtensionNotFound:
        return is_ca  # RFC 5280 §4.2.1.3: no key usage restricts nothing


def _certificates(file: Path) -> list[Certificate]:
    try:
        return x509.load_chain(file.read_bytes())
    except OSError as error:
        raise CaError(f"{file}: {error.strerror}") from error
    except x509.X509Error as error:
        raise CaError(f"{file}: {error}") from error


def _key(file: Path) -> x509.PrivateKey:
    try:
        return x509.key_from_pem(file.read_bytes())
    except OSError as error:
        raise CaError(f"{file}: {error.strerror}; the CA's certificate is of no use without it") from error
    except x509.X509Error as error:
        raise CaError(f"{file}: {error}") from error
