"""The admin context: everything meshctl needs to reach one istiod's admin API.

Job: the file format (`admin-context.yaml`), read and written in one place for both sides: istiod writes
it at its first start, meshctl reads it.
Rule: the file carries a private key, so it is written with mode 0600 and refused when others can read it.
Not for: choosing which file (`istiod.ctl.context`) or issuing the certificate (`istiod.ca`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from wire.secret_file import write_secret

API_VERSION = "hostmesh/v1"
KIND = "AdminContext"
_FIELDS = ("address", "certificateAuthority", "clientCertificate", "clientKey")


class ContextError(Exception):
    """The context file cannot be used; the message says which file, why and what to do."""


@dataclass(frozen=True)
class AdminContext:
    """One istiod's admin API and the client certificate that opens it (all PEM texts)."""

    address: str
    certificate_authority: str
    client_certificate: str
    client_key: str

    def to_yaml(self) -> str:
        """The file's text."""
        return yaml.safe_dump(
            {
                "apiVersion": API_VERSION,
                "kind": KIND,
                "address": self.address,
                "certificateAuthority": self.certificate_authority,
                "clientCertificate": self.client_certificate,
                "clientKey": self.client_key,
            },
            sort_keys=False,
            default_style=None,
        )

    @classmethod
    def from_yaml(cls, text: str, origin: str) -> AdminContext:
        """Parse the file's text; `origin` names it in errors. Raises `ContextError`."""
        try:
            document = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ContextError(f"{origin}: not YAML: {error}") from error
        if not isinstance(document, dict) or document.get("kind") != KIND:
            raise ContextError(f"{origin}: not a hostmesh admin context (kind: {KIND} expected)")
        if document.get("apiVersion") != API_VERSION:
            raise ContextError(f"{origin}: apiVersion {document.get('apiVersion')!r}, expected {API_VERSION}")
        values = []
        for field in _FIELDS:
            value = document.get(field)
            if not isinstance(value, str) or not value:
                raise ContextError(f"{origin}: {field}: a text is expected here")
            values.append(value)
        return cls(*values)


def write(path: Path, context: AdminContext) -> None:
    """Write the context file atomically, mode 0600."""
    write_secret(path, context.to_yaml().encode())


def read(path: Path) -> AdminContext:
    """Read a context file. Raises `ContextError` when it is missing, malformed or readable by others."""
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ContextError(f"{path}: no such file") from None
    except PermissionError:
        raise ContextError(f"{path}: permission denied (it belongs to another user; try sudo)") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ContextError(f"{path}: {error}") from error
    if mode & 0o077:
        raise ContextError(f"{path}: holds a private key but other users may read it; run: chmod 600 {path}")
    return AdminContext.from_yaml(text, str(path))
