"""The words for kinds on the command line.

Job: find the kind that a word means, and the columns that kubectl shows for it (source: Istio's CRDs,
`additionalPrinterColumns`).
Rule: an unknown word is answered with the nearest known one.
Not for: the table of kinds itself (`istiod.resources.kinds`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import typer

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


def targets(words: Sequence[str]) -> tuple[list[Kind], list[tuple[str, str]]]:
    """`KINDS`, `KIND NAME…` or `KIND/NAME…` as kinds and (kind, name) pairs. Raises `CommandError`."""
    if any("/" in word for word in words):
        split = [word.split("/", 1) for word in words]
        if any(len(pair) != 2 or not pair[1] for pair in split):
            raise CommandError("when one word is KIND/NAME, all of them must be")
        pairs = [(resolve(kind).name, name) for kind, name in split]
        return list({kind: KINDS[kind] for kind, _ in pairs}.values()), pairs
    wanted = resolve_many(words[0])
    if len(words) > 1 and len(wanted) != 1:
        raise CommandError("a resource cannot be retrieved by name across all namespaces or kinds")
    return wanted, [(wanted[0].name, name) for name in words[1:]]


def words() -> list[str]:
    """Every word that names a kind."""
    return [word for kind in KINDS.values() for word in (kind.name.lower(), kind.plural, *kind.short_names)]


def complete(incomplete: str) -> list[str]:
    """Words that start with `incomplete` (typer's shell completion)."""
    return [word for word in words() if word.startswith(incomplete.lower())]


def complete_resources(ctx: typer.Context, incomplete: str) -> list[str]:
    """Kinds for the first word of a command line, then the names of that kind's resources; KIND/NAME too."""
    typed = [str(word) for word in ctx.params.get("what") or ()]
    kind, slash, start = incomplete.partition("/")
    if slash:
        return [f"{kind}/{name}" for name in _names(ctx, kind) if name.startswith(start)]
    if not typed:
        return complete(incomplete)
    return [name for name in _names(ctx, typed[0]) if name.startswith(incomplete) and name not in typed]


def _names(ctx: typer.Context, word: str) -> list[str]:
    """The names of a kind's resources in the namespace that was typed; none where istiod cannot be asked."""
    from istiod.admin_context import ContextError
    from istiod.ctl.session import Session

    option = ctx.find_root().params.get("context")
    session = Session(Path(option) if option else None, os.environ)
    namespace = str(ctx.params.get("namespace") or os.environ.get("HOSTMESH_NAMESPACE") or "default")
    try:
        with session.client() as client:
            params = {"kind": resolve(word).name, "namespace": namespace}
            answer = client.call("GET", "/api/v1/resources", params=params, timeout=2.0)
    except (CommandError, ContextError):
        return []
    return [str(item["metadata"]["name"]) for item in answer["items"]]
