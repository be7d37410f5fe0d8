"""Changes of request and response headers in a VirtualService's rules.

Source: Istio HeaderOperations; Envoy's header values, in which `%` begins a command (`%REQ(x-user)%`) and `%%`
stands for itself. Which commands exist is not judged here: the trial with the proxy's own interpreter does that.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import StringConstraints

from istiod.resources.schema import HeaderName, Spec, Str, empty

OperationName = Annotated[
    Str, StringConstraints(min_length=1, pattern=r"^:?[!#$%&'*+\-.^_`|~0-9A-Za-z]+$", max_length=16384)
]
_COMMAND = re.compile(r"%%|%[A-Z][A-Z0-9_]*(?:\((?:[^)\\]|\\.)*\))?(?::[0-9]+)?%")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def value_problem(value: str) -> str | None:
    """Why `value` cannot be a header's value in Envoy's configuration, or None."""
    if _CONTROL.search(value):
        return "has a control character"
    if "%" in _COMMAND.sub("", value):
        return "has a % that begins no command such as %REQ(x-user)%; write %% for a percent sign"
    return None


def is_authority(name: str) -> bool:
    """Whether a header operation on `name` is one on the request's authority."""
    return name.lower() in (":authority", "host")


class HeaderOperations(Spec):
    """Fields to set (overwrite), add (append) and remove, in that order in Envoy: remove first."""

    set: dict[OperationName, Str] = empty()
    add: dict[OperationName, Str] = empty()
    remove: tuple[OperationName, ...] = ()

    def rules(self) -> Iterator[tuple[str, str]]:
        for path, changes in (("set", self.set), ("add", self.add)):
            for name, value in changes.items():
                if problem := value_problem(value):
                    yield f"{path}[{name}]", problem

    def authorities(self) -> Mapping[str, str]:
        """The operations on the authority: path to the new authority."""
        return {
            f"{path}[{name}]": value
            for path, changes in (("set", self.set), ("add", self.add))
            for name, value in changes.items()
            if is_authority(name)
        }


class Headers(Spec):
    """Header operations on the request and on the response."""

    request: HeaderOperations = HeaderOperations()
    response: HeaderOperations = HeaderOperations()

    def rules(self) -> Iterator[tuple[str, str]]:
        for path, name in self._names():
            side, _, operation = path.partition(".")
            if side == "request" and not operation.startswith("remove") and is_authority(name):
                continue
            if name.startswith(":"):
                yield (
                    path,
                    f"{name!r} is part of the request line or status, not a header that can be changed",
                )
            elif name.lower() == "host":
                yield path, "Host can only be set on requests: it is the request's authority"
        if len(self.request.authorities()) > 1:
            yield "request", "the authority (Host, :authority) can be set only once"

    def _names(self) -> Iterator[tuple[str, str]]:
        for side, operations in (("request", self.request), ("response", self.response)):
            for path, changes in (("set", operations.set), ("add", operations.add)):
                for name in changes:
                    yield f"{side}.{path}[{name}]", name
            for index, name in enumerate(operations.remove):
                yield f"{side}.remove[{index}]", name


__all__ = ["HeaderName", "HeaderOperations", "Headers", "is_authority", "value_problem"]
