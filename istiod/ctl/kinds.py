"""The words for kinds on the command line.

Job: find the kind that a word means, and the columns that kubectl shows for it (source: Istio's CRDs,
`additionalPrinterColumns`).
Rule: an unknown word is answered with the nearest known one.
Not for: the table of kinds itself (`istiod.resources.kinds`).
"""

from __future__ import annotations

from istiod.ctl.failure import CommandError
from istiod.resources.kinds import KINDS, Kind, find_kind, nearest

COLUMNS: dict[str, tuple[tuple[str, str], ...]] = {
    "VirtualService": (("GATEWAYS", "spec.gateways"), ("HOSTS", "spec.hosts")),
    "DestinationRule": (("HOST", "spec.host"),),
    "ServiceEntry": (
        ("HOSTS", "spec.hosts"),
        ("LOCATION", "spec.location"),
        ("RESOLUTION", "spec.resolution"),
    ),
    "WorkloadEntry": (("ADDRESS", "spec.address"),),
    "PeerAuthentication": (("MODE", "spec.mtls.mode"),),
    "AuthorizationPolicy": (("ACTION", "spec.action"),),
}
"""Kind to (COLUMN, path in the manifest)."""


def resolve(word: str) -> Kind:
    """The kind for a word (any case; a group suffix as in `virtualservices.networking.istio.io` is allowed).

    Raises `CommandError` with the nearest known word.
    """
    plain = word.lower().split(".", 1)[0]
    found = find_kind(plain)
    if found is not None:
        return found
    near = nearest(plain, words())
    known = ", ".join(kind.plural for kind in KINDS.values())
    raise CommandError(
        f'unknown kind "{word}"', f'did you mean "{near}"?' if near else f"known kinds: {known}"
    )


def resolve_many(text: str) -> list[Kind]:
    """`vs,dr` or `all` as kinds, each once, in the order given."""
    if text.lower() == "all":
        return list(KINDS.values())
    return list({kind.name: kind for kind in map(resolve, filter(None, text.split(",")))}.values())


def words() -> list[str]:
    """Every word that names a kind."""
    return [word for kind in KINDS.values() for word in (kind.name.lower(), kind.plural, *kind.short_names)]


def complete(incomplete: str) -> list[str]:
    """Words that start with `incomplete` (typer's shell completion)."""
    return [word for word in words() if word.startswith(incomplete.lower())]
