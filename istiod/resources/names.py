"""The names that Istio's resources are written with: hosts, addresses, labels, gateways, namespaces.

Rule: each function returns why a text is not such a name, or None; the forms are Istio's (`pkg/config/validation`),
except that a label of a host may contain `_`, as many names of machines do.
Not for: whether a name exists, or what it means for a proxy (`istiod.snapshot`, `istiod.compile`).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

_LABEL = re.compile(r"[a-zA-Z0-9](?:[-a-zA-Z0-9]{0,61}[a-zA-Z0-9])?")
_HOST_LABEL = re.compile(r"[a-zA-Z0-9_](?:[-a-zA-Z0-9_]{0,61}[a-zA-Z0-9_])?")
_LABEL_NAME = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_PREFIX = re.compile(r"[a-z0-9](?:[-a-z0-9.]{0,251}[a-z0-9])?")
UNIX = "unix://"


def number_of(text: str) -> int | None:
    """The number that up to nine ASCII digits are; None for any other text (`²` and `٣` are digits to Python)."""
    return int(text) if len(text) < 10 and text.isascii() and text.isdigit() else None


def port_problem(text: str) -> str | None:
    """The decimal number of a port."""
    number = number_of(text)
    if number is None or not 1 <= number <= 65535:
        return f"{text[:20]!r} is not a port between 1-65535"
    return None


def label_problem(text: str) -> str | None:
    """A DNS label of RFC 1123: subsets, namespaces, gateways, ports."""
    if _LABEL.fullmatch(text):
        return None
    return f"{text!r} must be letters, digits and - (at most 63), with a letter or digit at both ends"


def host_problem(host: str, *, wildcard: bool) -> str | None:
    """A host name; with `wildcard` also `*`, `*.example.com`, `*example.com` and `*-example.com`."""
    if not host:
        return "must not be empty"
    if len(host) > 255:
        return "is longer than 255 characters"
    rest = host
    if host.startswith("*"):
        if not wildcard:
            return "must not be a wildcard"
        if host == "*":
            return None
        rest = host[1:].removeprefix(".").removeprefix("-")
        if not rest:
            return "is not a host name"
    if "*" in rest:
        return "may have a wildcard only in front"
    for label in rest.removesuffix(".").split("."):
        if not _HOST_LABEL.fullmatch(label):
            return f"{label!r} is not a DNS label"
    return None


def domain_problem(host: str, *, wildcard: bool) -> str | None:
    """A host of a resource: as `host_problem`, and not an IP address (its last label is not a number)."""
    if problem := host_problem(host, wildcard=wildcard):
        return problem
    if host.rpartition(".")[2].isdigit():
        return f"{host!r} is not a domain name: its last label is a number"
    return None


class HostSet:
    """Hosts, each perhaps with a wildcard in front, and which of them includes another one.

    A question costs the length of the name, however many hosts there are: documents come with thousands.
    """

    def __init__(self, hosts: Iterable[str]) -> None:
        self._exact: dict[str, int] = {}
        self._tails: dict[str, int] = {}
        """Positions, by the lower-case name, and by what follows the wildcard."""
        self._names = [host.lower() for host in hosts]
        for index, name in enumerate(self._names):
            self._exact.setdefault(name, index)
            if name.startswith("*"):
                self._tails.setdefault(name[1:], index)

    def includes(self, host: str) -> bool:
        """Whether one of them stands for everything that `host` stands for."""
        name = host.lower()
        return name in self._exact or next(self._wider(name), None) is not None

    def overlaps(self) -> Iterator[tuple[int, int]]:
        """The positions of hosts of which one includes the other: the later one, the earlier one."""
        for index, name in enumerate(self._names):
            first = self._exact[name]
            if first != index:
                yield index, first
                continue
            for other in self._wider(name):
                if other != index:
                    yield max(index, other), min(index, other)
                    break

    def _wider(self, name: str) -> Iterator[int]:
        rest = name.removeprefix("*")
        for position in range(len(rest) + 1):
            found = self._tails.get(rest[position:])
            if found is not None:
                yield found


def partial_wildcard(host: str) -> bool:
    """`*foo.example.com`: a wildcard that is less than a whole label."""
    return host.startswith("*") and host != "*" and not host.startswith("*.")


def ip_problem(text: str) -> str | None:
    """An IP address."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return f"{text!r} is not an IP address"
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id is not None:
        return f"{text!r} has a zone, which means nothing on another host"
    return None


def address_problem(text: str) -> str | None:
    """An IP address or CIDR block (bits behind the prefix are allowed, as in Istio)."""
    base, slash, prefix = text.partition("/")
    if not slash:
        return f"{text!r} is neither an IP address nor a CIDR block" if ip_problem(text) else None
    try:
        width = ipaddress.ip_address(base).max_prefixlen
    except ValueError:
        return f"{text!r} is neither an IP address nor a CIDR block"
    if not re.fullmatch(r"0|[1-9][0-9]{0,2}", prefix) or int(prefix) > width or "%" in base:
        return f"{text!r} is not a CIDR block: its prefix must be between 0 and {width}"
    return None


def unix_problem(path: str) -> str | None:
    """The part of `unix://PATH` behind the scheme: an absolute path of a file, or `@NAME`."""
    if path.startswith("@") and len(path) > 1:
        return None
    if not path.startswith("/"):
        return "UDS must be an absolute path or abstract socket"
    return "UDS may not be a dir" if path.endswith("/") else None


def label_problems(path: str, labels: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Labels that no workload can have: keys and values as Kubernetes writes them."""
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        if not _LABEL_NAME.fullmatch(name) or (slash and not _LABEL_PREFIX.fullmatch(prefix)):
            yield f"{path}[{key}]", f"{key!r} is not a label key"
        if value and not _LABEL_NAME.fullmatch(value):
            yield f"{path}[{key}]", f"{value!r} is not a label value (at most 63 letters, digits, -, _, .)"


def gateway_problem(text: str) -> str | None:
    """`mesh`, `gateway`, `namespace/gateway`, or the old form `gateway.namespace.svc…`."""
    namespace, slash, name = text.partition("/")
    if not slash:
        return domain_problem(text, wildcard=False)
    if not namespace or not name:
        return "neither the namespace nor the gateway's name may be empty"
    return label_problem(namespace) or label_problem(name)


def visible_host_problem(text: str) -> str | None:
    """`namespace/host` of a Sidecar (`./*`, `*/*`, `ns/*.example.com`)."""
    namespace, slash, host = text.partition("/")
    if not slash:
        return f"{text!r} must be namespace/dnsName"
    if not namespace or not host:
        return "neither the namespace nor the host may be empty; . is the resource's own namespace, * is any"
    if namespace not in ("*", ".", "~") and (problem := label_problem(namespace)):
        return f"the namespace {problem}; . is the resource's own, * is any, ~ is none"
    return _listed_host_problem(host)


def server_host_problem(text: str) -> str | None:
    """A host of a Gateway's server: `host` or `namespace/host`; also an IP address."""
    namespace, slash, host = text.partition("/")
    if not slash:
        namespace, host = "*", text
    if namespace not in ("*", ".") and (problem := label_problem(namespace)):
        return f"the namespace {problem}"
    return None if ip_problem(host) is None else _listed_host_problem(host)


def _listed_host_problem(host: str) -> str | None:
    if host == "*":
        return None
    if problem := domain_problem(host, wildcard=True):
        return problem
    if "." not in host:
        return f"{host!r} is a short name; write it in full, as {host}.NAMESPACE.svc.cluster.local"
    if partial_wildcard(host):
        return f"{host!r}: a wildcard must stand for whole labels, as in *.example.com"
    return None


def export_to_problems(
    values: Sequence[str], namespace: str, *, service_entry: bool = False, selector: bool = False
) -> Iterator[tuple[str, str]]:
    """What is wrong with an exportTo of a resource in `namespace`; `selector`: of a DestinationRule with one."""
    seen: dict[str, str] = {}
    for index, value in enumerate(values):
        path = f"spec.exportTo[{index}]"
        target = namespace if value == "." else value
        if target in seen:
            first = seen[target]
            yield (
                path,
                f"{value!r} says the same as {first!r}" if first != value else f"{value!r} is there twice",
            )
        elif value == "~":
            if not service_entry:
                yield path, "only a ServiceEntry can be exported to no namespace (~)"
        elif value not in (".", "*") and (problem := label_problem(value)):
            yield path, f"{problem}; . is the resource's own namespace, * is all"
        seen.setdefault(target, value)
    for word, meaning in (("*", "all namespaces"), ("~", "no namespace")):
        if word in seen and len(values) > 1:
            yield "spec.exportTo", f"{word!r} ({meaning}) must stand alone"
    if selector and values and set(seen) != {namespace}:
        yield "spec.exportTo", "a rule with a workloadSelector holds in its own namespace only: use ['.']"
