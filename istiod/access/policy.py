"""Revoked identities as a policy: workloads deny their calls, which no certificate's end would stop for a day.

Rule: one mesh-wide AuthorizationPolicy (action DENY, root namespace), made of the revocations and compiled as every other;
it is in snapshots only, never stored. Single revoked certificates are not in it: policies know identities.
"""

from __future__ import annotations

from typing import Any

from istiod.access.facts import Access
from istiod.resources.document import Document, typed
from istiod.resources.kinds import KINDS
from istiod.resources.mesh_config import MeshConfig
from registry.model import Resource

NAME = "hostmesh-revoked-identities"


def revoked(access: Access, mesh: MeshConfig) -> Document[Any] | None:
    """The policy; None when no identity is revoked."""
    identities = sorted(access.barred_principals)
    if not identities:
        return None
    # Istio's trust domain aliases are added where policies are compiled: a principal of one domain counts for all.
    principals = [f"{mesh.trust_domain}/ns/{namespace}/sa/{account}" for namespace, account in identities]
    spec = {"action": "DENY", "rules": [{"from": [{"source": {"principals": principals}}]}]}
    kind = KINDS["AuthorizationPolicy"]
    return typed(Resource(kind.name, mesh.root_namespace, NAME, kind.api_version, spec))
