"""Which workloads or targets a resource speaks about: selectors and target references (istio.type.v1beta1).

Not for: evaluating a selector against a proxy (istiod/snapshot.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any

from pydantic import Field

from istiod.resources.schema import NonEmpty, RefGroup, RefKind, Spec, Str, empty


class WorkloadSelector(Spec):
    """istio.type.v1beta1.WorkloadSelector: all labels must be equal; empty selects all of the namespace."""

    match_labels: dict[str, Str] = empty()

    def rules(self) -> Iterator[tuple[str, str]]:
        for key, value in self.match_labels.items():
            if not key:
                yield "matchLabels", "key must not be empty"
            if "*" in key:
                yield f"matchLabels[{key}]", "wildcard not allowed in label key match"
            if "*" in value:
                yield f"matchLabels[{key}]", "wildcard not allowed in label value match"
            if len(value) > 63:
                yield f"matchLabels[{key}]", "label value longer than 63 characters"


class LabelSelector(Spec):
    """istio.networking.v1alpha3.WorkloadSelector: the same with `labels`."""

    labels: dict[str, Str] = empty()

    def rules(self) -> Iterator[tuple[str, str]]:
        for key, value in self.labels.items():
            if not key:
                yield "labels", "key must not be empty"
            if "*" in key or "*" in value:
                yield f"labels[{key}]", "wildcard is not supported in selector"
            if len(value) > 63:
                yield f"labels[{key}]", "label value longer than 63 characters"


class TargetReference(Spec):
    """istio.type.v1beta1.PolicyTargetReference. Its targets are gateways and waypoints."""

    group: RefGroup = ""
    kind: RefKind
    name: NonEmpty
    namespace: Str = ""

    def rules(self) -> Iterator[tuple[str, str]]:
        if self.namespace:
            yield "namespace", "cross namespace referencing is not currently supported"
        if (self.group or "core", self.kind) not in _TARGETS:
            known = ", ".join(f"{group}/{kind}" for group, kind in _TARGETS)
            yield "kind", f"{self.group or 'core'}/{self.kind} cannot be a target; one of {known}"


_TARGETS = (
    ("core", "Service"),
    ("networking.istio.io", "ServiceEntry"),
    ("gateway.networking.k8s.io", "Gateway"),
    ("gateway.networking.k8s.io", "GatewayClass"),
)


TargetRefs = Annotated[tuple[TargetReference, ...], Field(max_length=16)]


def one_target(
    target_ref: object, target_refs: tuple[TargetReference, ...], selector: object
) -> Iterator[tuple[str, str]]:
    """The rule shared by the kinds that have all three: at most one of them."""
    given = (target_ref is not None) + bool(target_refs) + (selector is not None)
    if given > 1:
        yield "", "only one of targetRefs or selector can be set"


def selector_labels(spec: Any) -> Mapping[str, str]:
    """The labels that a resource selects workloads by; empty for all."""
    selector = getattr(spec, "selector", None)
    if selector is None:
        selector = getattr(spec, "workload_selector", None)
    if selector is None:
        return {}
    labels: Mapping[str, str] = (
        getattr(selector, "match_labels", None) or getattr(selector, "labels", None) or {}
    )
    return labels
