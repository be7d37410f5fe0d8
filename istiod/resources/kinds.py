"""The table of kinds: names, API groups and versions, model, and whether the kind has an effect yet.

To add a kind: write its model, add a line here; to give one effect, compile it and drop its mark.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from istiod.resources.schema import Spec


class Effect(Enum):
    """What applying a resource of a kind does in this version."""

    FULL = "full"
    """It is compiled."""
    WARN = "warn"
    """It is stored with a warning. For gateways, which this mesh does not have: they only ever open something."""
    REFUSE = "refuse"
    """It is refused: the user would rely on something (a check of tokens, a patch) that does not happen."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind; `namespaced` holds for all of Istio's."""

    name: str
    plural: str
    short_names: tuple[str, ...]
    group: str
    versions: tuple[str, ...]
    """Newest first; the first is what `get -o yaml` prints."""
    module: str
    """Where in `istiod.resources` the model is; it is called as the kind."""
    effect: Effect
    spec_required: bool = False

    @property
    def api_version(self) -> str:
        """The preferred apiVersion."""
        return f"{self.group}/{self.versions[0]}"

    @property
    def model(self) -> type[Spec]:
        """The schema of `spec`. Imported at its first use: meshctl needs names only, and starts faster."""
        model: type[Spec] = getattr(import_module(f"istiod.resources.{self.module}"), self.name)
        return model


_NET, _SEC = "networking.istio.io", "security.istio.io"
_TEL, _EXT = "telemetry.istio.io", "extensions.istio.io"
_ALL, _V1B = ("v1", "v1beta1", "v1alpha3"), ("v1", "v1beta1")

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("VirtualService", "virtualservices", ("vs",), _NET, _ALL, "virtual_service", Effect.FULL),
        Kind("DestinationRule", "destinationrules", ("dr",), _NET, _ALL, "destination_rule", Effect.FULL),
        Kind("ServiceEntry", "serviceentries", ("se",), _NET, _ALL, "service_entry", Effect.FULL, True),
        Kind("WorkloadEntry", "workloadentries", ("we",), _NET, _ALL, "workload", Effect.FULL, True),
        Kind("WorkloadGroup", "workloadgroups", ("wg",), _NET, _ALL, "workload", Effect.FULL, True),
        Kind("Sidecar", "sidecars", (), _NET, _ALL, "sidecar", Effect.FULL),
        Kind("Gateway", "gateways", ("gw",), _NET, _ALL, "gateway", Effect.WARN),
        Kind("ProxyConfig", "proxyconfigs", (), _NET, ("v1beta1",), "extension.proxy_config", Effect.REFUSE),
        Kind("EnvoyFilter", "envoyfilters", (), _NET, ("v1alpha3",), "extension.envoy_filter", Effect.REFUSE),
        Kind("PeerAuthentication", "peerauthentications", ("pa",), _SEC, _V1B, "security", Effect.FULL),
        Kind(
            "AuthorizationPolicy", "authorizationpolicies", ("ap",), _SEC, _V1B, "authorization", Effect.FULL
        ),
        Kind(
            "RequestAuthentication", "requestauthentications", ("ra",), _SEC, _V1B, "security", Effect.REFUSE
        ),
        Kind("Telemetry", "telemetries", (), _TEL, ("v1", "v1alpha1"), "extension.telemetry", Effect.REFUSE),
        Kind(
            "WasmPlugin", "wasmplugins", (), _EXT, ("v1alpha1",), "extension.wasm_plugin", Effect.REFUSE, True
        ),
    )
}


def find_kind(word: str) -> Kind | None:
    """The kind that a person means by `word`: its name, plural or short name, any case; None if unknown."""
    lowered = word.lower()
    for kind in KINDS.values():
        if lowered in (kind.name.lower(), kind.plural, *kind.short_names):
            return kind
    return None


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The known name that `word` is most likely a slip of, or None."""
    lowered = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(word.lower(), list(lowered), n=1, cutoff=0.6)
    return lowered[matches[0]] if matches else None
