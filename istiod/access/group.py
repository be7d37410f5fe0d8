"""WorkloadGroups as grants: an administrator says once for many hosts who they are and what they serve.

Rule: the group's service is Istio's canonical service of its labels (`service.istio.io/canonical-name`,
`app.kubernetes.io/name`, `app`), else the group's own name. Its labels become its instances' labels, so that policy
and ServiceEntries can select them. Not for WorkloadEntries, which are endpoints themselves (istiod.services).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from istiod.access.facts import Grant
from istiod.resources.document import Document
from istiod.resources.workload import WorkloadGroup

_CANONICAL = ("service.istio.io/canonical-name", "app.kubernetes.io/name", "app")


def grants_of(groups: Iterable[Document[WorkloadGroup]]) -> Iterator[Grant]:
    """The grant that each group is."""
    for group in groups:
        spec, resource = group.spec, group.resource
        labels = {**spec.template.labels, **(spec.metadata.labels if spec.metadata is not None else {})}
        service = next((labels[name] for name in _CANONICAL if labels.get(name)), resource.name)
        yield Grant(
            namespace=resource.namespace,
            service=service,
            service_account=spec.template.service_account or "default",
            source=f"WorkloadGroup {resource.name}",
            created=resource.created,
            labels=labels,
            ports=dict(spec.template.ports),
            locality=spec.template.locality,
            weight=spec.template.weight,
        )
