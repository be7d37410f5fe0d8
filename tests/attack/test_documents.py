"""Documents that are made to hurt: each is judged in a moment, and by a message, never by an exception."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from istiod.resources.document import Parsed, parse
from istiod.resources.kinds import KINDS

MANY = 8_000


def judged(kind: str, spec: str, seconds: float = 5.0) -> Parsed:
    """The verdict, which must not keep istiod from its other work."""
    text = f"apiVersion: {KINDS[kind].api_version}\nkind: {kind}\nmetadata: {{name: x}}\nspec: {spec}\n"
    started = time.process_time()
    parsed = parse(text, "hostile.yaml")
    assert time.process_time() - started < seconds, "the time must not grow with the square of the document"
    return parsed


def many(entry: Callable[[int], str]) -> str:
    return "[" + ", ".join(entry(number) for number in range(MANY)) + "]"


ROUTE = "route: [{destination: {host: a}}]"


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("VirtualService", f"{{hosts: {many(lambda n: f'h{n}.example.com')}, http: [{{{ROUTE}}}]}}"),
        ("VirtualService", f"{{hosts: {many(lambda n: repr(f'*.h{n}.example.com'))}, http: [{{{ROUTE}}}]}}"),
        (
            "VirtualService",
            f"{{hosts: ['*.b'], tls: [{{match: [{{sniHosts: {many(lambda n: f'h{n}.b')}}}], {ROUTE}}}]}}",
        ),
        ("DestinationRule", f"{{host: a, subsets: {many(lambda n: f'{{name: s{n}}}')}}}"),
        ("DestinationRule", f"{{host: a, exportTo: {many(lambda n: f'ns{n}')}}}"),
    ],
    ids=["hosts", "wildcards", "server names", "subsets", "namespaces"],
)
def test_a_document_of_thousands_of_parts_is_accepted_in_time(kind: str, spec: str) -> None:
    assert judged(kind, spec, 15.0).blocking() == ()


def test_a_document_with_thousands_of_mistakes_in_one_mapping_is_refused_in_time() -> None:
    headers = ", ".join(f"x{number}: {{prefix: ''}}" for number in range(MANY))
    parsed = judged(
        "VirtualService", f"{{hosts: [a], http: [{{match: [{{headers: {{{headers}}}}}], {ROUTE}}}]}}", 15.0
    )
    assert len(parsed.errors()) == MANY
    assert {problem.where for problem in parsed.errors()} == {"hostile.yaml:4"}


def test_localities_by_the_thousand_are_refused_in_time() -> None:
    shares = ", ".join(f"r{number}/z: 1" for number in range(MANY))
    spec = f"{{host: a, trafficPolicy: {{loadBalancer: {{localityLbSetting: {{distribute: [{{from: r, to: {{{shares}}}}}]}}}}}}}}"
    assert judged("DestinationRule", spec, 15.0).errors()


@pytest.mark.parametrize(
    "value",
    [
        "9" * 5000,
        "'" + "9" * 5000 + "'",
        "1e400",
        ".nan",
        ".inf",
        "-0",
        "0x" + "f" * 300,
        "٣",
        '"\\ud800"',
        '"\\0"',
        "[[[[[]]]]]",
        "{<<: {a: 1}}",
        "!!python/object/apply:os.system [id]",
        "!!binary aGk=",
        "*missing",
    ],
)
@pytest.mark.parametrize(
    "spec",
    [
        "{{host: {value}}}",
        "{{host: a, trafficPolicy: {{loadBalancer: {{consistentHash: {{httpHeaderName: x, maglev: {{tableSize: {value}}}}}}}}}}}",
        "{{host: a, trafficPolicy: {{connectionPool: {{tcp: {{connectTimeout: {value}, maxConnections: {value}}}}}}}}}",
        "{{host: a, subsets: [{{name: {value}, labels: {{a: {value}}}}}]}}",
        "{{host: a, exportTo: [{value}]}}",
    ],
)
def test_values_of_the_wrong_sort_are_refused_with_a_message(spec: str, value: str) -> None:
    parsed = judged("DestinationRule", spec.format(value=value))
    assert parsed.documents == ()
    assert all(str(problem) for problem in parsed.errors())
    assert parsed.errors()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 5000,
        "{a: " * 5000,
        "- " * 5000,
        "a: &a [*a]",
        "a: &a {<<: *a}",
        "? [a]\n: b",
        "%YAML 9.9\n---\na: 1",
        "\ufeffkind: x",
        "\x00",
        "a: 'unclosed",
        "--- \n" * 1000,
        "kind: List\napiVersion: v1\nitems: [1, null, [], {}, {kind: List, items: []}]",
    ],
)
def test_texts_that_are_no_documents_are_refused_with_a_message(text: str) -> None:
    started = time.process_time()
    parsed = parse(text, "hostile.yaml")
    assert time.process_time() - started < 5.0
    assert parsed.documents == ()
    assert all(problem.message for problem in parsed.problems)


NUMBERS = ["²", "٣٠٠", "9" * 5000, "-1", "1_0", "0x50", "１０"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:5])
@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        ("VirtualService", f"{{hosts: [a], http: [{{retries: {{attempts: 1, retryOn: 'NUMBER'}}, {ROUTE}}}]}}"),
        ("Sidecar", "{ingress: [{port: {number: 80, protocol: HTTP}, defaultEndpoint: '127.0.0.1:NUMBER'}]}"),
        ("Sidecar", "{ingress: [{port: {number: 'NUMBER', protocol: HTTP}}]}"),
        ("AuthorizationPolicy", "{rules: [{to: [{operation: {ports: ['NUMBER']}}]}]}"),
        ("AuthorizationPolicy", "{rules: [{when: [{key: destination.port, values: ['NUMBER']}]}]}"),
        ("PeerAuthentication", "{selector: {matchLabels: {a: b}}, portLevelMtls: {'NUMBER': {mode: STRICT}}}"),
        ("ServiceEntry", "{hosts: [a.b], addresses: ['10.0.0.0/NUMBER']}"),
        ("ServiceEntry", "{hosts: [a.b], ports: [{number: 'NUMBER', name: x}]}"),
        ("DestinationRule", "{host: a, trafficPolicy: {connectionPool: {tcp: {connectTimeout: 'NUMBERs'}}}}"),
    ],
)  # fmt: skip
def test_numbers_that_are_none_are_refused_with_a_message(kind: str, spec: str, number: str) -> None:
    assert judged(kind, spec.replace("NUMBER", number)).errors()
