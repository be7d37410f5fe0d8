"""Where a call comes from and which port it goes to: the conditions that HTTP, TLS and TCP matches have in common.

Source: Istio HTTPMatchRequest, L4MatchAttributes (port, sourceLabels, sourceNamespace, gateways).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from istiod.resources.names import gateway_problem, label_problem, label_problems


def origin_problems(
    port: int, source_labels: Mapping[str, str], source_namespace: str, gateways: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Field and reason of each condition that cannot hold."""
    if port > 65535:
        yield "port", "port must be between 1-65535"
    yield from label_problems("sourceLabels", source_labels)
    if source_namespace and (problem := label_problem(source_namespace)):
        yield "sourceNamespace", problem
    for index, gateway in enumerate(gateways):
        if problem := gateway_problem(gateway):
            yield f"gateways[{index}]", problem
