"""Which stored version a document may replace: compare-and-set by `metadata.resourceVersion`.

Rule: a document that was read here never overwrites what was written here since; a document of another cluster
(`kubectl get -o yaml`) has a version that says nothing about this mesh, and does not block. The two are told apart
by `metadata.uid`, which is the resource's name here and the time of its creation here.
Not for: If-Match of single requests (`istiod.api.resources`).
"""

from __future__ import annotations

import uuid
from typing import Any

from istiod.resources.document import Document
from registry.model import ABSENT, Resource

_SPACE = uuid.UUID("8d5a1a3e-5c0c-5b7e-9d26-3f5b6a0e6c11")


def uid_of(resource: Resource) -> str:
    """The stored resource's uid: another one after it was deleted and created again, or in another mesh."""
    return str(uuid.uuid5(_SPACE, f"{resource.key}@{resource.created!r}"))


def replaceable(document: Document[Any], stored: Resource | None, *, unchanged: bool) -> str | None:
    """The version that must be stored when the document is written, as ConfigStore.put's `expected`; None: any.

    `unchanged`: the document says what is stored already, so that nothing can be lost.
    """
    version = document.resource.version
    if not version or unchanged:
        return None
    if stored is None:
        # Nothing can be overwritten but what appears in this moment.
        return ABSENT
    if document.uid and document.uid != uid_of(stored):
        return None
    return version
