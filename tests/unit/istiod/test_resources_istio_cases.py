"""Files of Istio's own, unchanged: what its validation accepts and rejects, and what its samples hold."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from istiod.resources.document import parse
from istiod.resources.problem import Problem, Severity

CASES = Path(__file__).parents[4] / "shared" / "cases"

# Where Istio's message names no field, the field that the message is about.
FIELDS = {
    "Cannot set serviceAccounts with namespaces or principals": "spec.rules[0].from[0].source",
    'Unsupported value: "BLAH': "spec.mtls.mode",
    "type conversion error from": "spec.portLevelMtls[acd]",
    "portLevelMtls requires selector": "spec.portLevelMtls",
    "key must not be empty": "spec.selector.matchLabels",
    "only one of targetRefs or selector can be set": "spec",
    "cross namespace referencing is not currently supported": "spec.targetRef.namespace",
    "audiences[0] in body": "spec.jwtRules[0].audiences[0]",
    "url must have scheme": "spec.jwtRules[0].jwksUri",
    "fromParams[0] in body": "spec.jwtRules[0].fromParams[0]",
    "fromCookies[0] in body": "spec.jwtRules[0].fromCookies[0]",
    "header in body": "spec.jwtRules[0].outputClaimToHeaders[0].header",
    "must be a valid duration greater than": "spec.jwtRules[0].timeout",
    "spaceDelimitedClaims[0] in body": "spec.jwtRules[0].spaceDelimitedClaims[0]",
    'Unsupported value: "MANDATORY': "spec.jwtRules[0].presence",
    "wildcard is not supported in selector": "spec.workloadSelector.labels[val]",
    "only one of WorkloadSelector or Endpoints can be set": "spec.endpoints",
    "hostname cannot be wildcard": "spec.hosts[0]",
    "CIDR addresses are allowed only for NONE/STATIC resolution types": "spec.addresses",
    "port number cannot be duplicated": "spec.ports[1].number",
    "NONE mode cannot set endpoints": "spec.endpoints",
    "DNS_ROUND_ROBIN mode cannot have multiple endpoints": "spec.endpoints",
    "name in body": "spec.metrics[0].providers[0].name",
    "customMetric in body": "spec.metrics[0].overrides[0].match.customMetric",
    "value must be set when operation is UPSERT": "spec.metrics[0].overrides[0].tagOverrides[foo].value",
    "value must not be set when operation is REMOVE": "spec.metrics[0].overrides[0].tagOverrides[foo].value",
    "url must have schema one of": "spec.url",
    "value may only be set when valueFrom is INLINE": "spec.vmConfig.env[0].value",
    "wildcard not allowed in label value match": "spec.selector.matchLabels[istio]",
    "wildcard not allowed in label key match": "spec.selector.matchLabels[istio*]",
    "Address is required": "spec",
    "UDS may not be a dir": "spec.address",
    "UDS must be an absolute path or abstract socket": "spec.address",
    "UDS may not include ports": "spec.ports",
}


def documents() -> list[tuple[str, str, str | None]]:
    """(name, YAML, Istio's error or None) of every validation document."""
    found = []
    for path in sorted((CASES / "istio-validation").glob("*.yaml")):
        for number, text in enumerate(re.split(r"(?m)^---\s*$", path.read_text())):
            if not re.sub(r"(?m)^\s*#.*$", "", text).strip():
                continue
            error = re.search(r"(?m)^_err: *(.*)$", text)
            wanted = error.group(1).strip("'\"").replace('\\"', '"') if error else None
            found.append((f"{path.stem}-{number}", re.sub(r"(?m)^_err:.*$", "", text), wanted))
    return found


def field_of(error: str, found: tuple[Problem, ...]) -> str:
    """The field that Istio's message names, or that it is about."""
    named = re.match(r"(spec[\w.\[\]]*)(:| in body)", error)
    if named:
        return named.group(1)
    for message, field in FIELDS.items():
        if error.startswith(message):
            return field
    # The two messages that several documents share name the field by its value.
    return next(problem.path for problem in found if "port" in problem.path or "Duplicate" in problem.message)


@pytest.mark.parametrize(("name", "text", "error"), documents(), ids=lambda value: str(value)[:40])
def test_a_document_is_judged_as_istio_judges_it(name: str, text: str, error: str | None) -> None:
    errors = parse(text).errors()
    if error is None:
        assert errors == ()
    else:
        assert field_of(error, errors) in [problem.path for problem in errors], [str(one) for one in errors]


@pytest.mark.parametrize(
    "path",
    [*sorted((CASES / "istio-config").glob("*.yaml")), *sorted((CASES / "istio-samples").glob("*.yaml"))],
    ids=lambda path: path.stem,
)
def test_istios_configurations_and_samples_are_accepted_unchanged(path: Path) -> None:
    parsed = parse(path.read_text(), path.name)
    assert [problem for problem in parsed.blocking() if not problem.subject.startswith("EnvoyFilter")] == []
    assert parsed.documents


@pytest.mark.parametrize("path", sorted((CASES / "authz").glob("*-in.yaml")), ids=lambda path: path.stem)
def test_istios_authorization_policies_are_accepted(path: Path) -> None:
    assert parse(path.read_text()).errors() == ()


def test_what_has_no_effect_is_named() -> None:
    text = (CASES / "istio-samples" / "bookinfo-gateway.yaml").read_text()
    warnings = parse(text).warnings()
    assert [(warning.path, warning.severity) for warning in warnings] == [
        ("kind", Severity.WARNING),
        ("spec.gateways[0]", Severity.WARNING),
    ]
