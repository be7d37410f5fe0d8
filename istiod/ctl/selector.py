"""Label selectors of the command line (`-l app=reviews,version!=v1`), as kubectl has them.

Job: read a selector, and judge labels by it.
Not for: selectors of resources (`istiod.resources.selector`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from istiod.ctl.failure import CommandError

_KEY = r"[A-Za-z0-9](?:[-A-Za-z0-9_./]*[A-Za-z0-9])?"
_REQUIREMENT = re.compile(
    rf"\s*(?:(?P<no>!)\s*(?P<absent>{_KEY})"
    rf"|(?P<key>{_KEY})\s*(?:(?P<sign>==|=|!=)\s*(?P<value>[-A-Za-z0-9_.]*)"
    rf"|\s(?P<set>in|notin)\s*\((?P<values>[^()]*)\))?)\s*(?:,|$)"
)
Labels = Mapping[str, str]


def parse(text: str) -> Callable[[Labels], bool]:
    """Whether labels fulfil all requirements of `text`. Raises `CommandError`."""
    tests: list[Callable[[Labels], bool]] = []
    position = 0
    while position < len(text):
        found = _REQUIREMENT.match(text, position)
        if found is None or not (found["absent"] or found["key"]):
            raise CommandError(
                f"{text!r} is not a label selector",
                "write key=value, key!=value, key, !key, key in (a,b) or key notin (a,b), with commas between",
            )
        tests.append(_test(found))
        position = found.end()
    return lambda labels: all(test(labels) for test in tests)


def _test(found: re.Match[str]) -> Callable[[Labels], bool]:
    if found["absent"]:
        key = found["absent"]
        return lambda labels: key not in labels
    key = found["key"]
    if found["set"] or found["sign"]:
        listed = (found["values"] or "").split(",") if found["set"] else [found["value"]]
        values = {value.strip() for value in listed}
        if found["sign"] == "!=" or found["set"] == "notin":
            return lambda labels: labels.get(key) not in values
        return lambda labels: labels.get(key) in values
    return lambda labels: key in labels


def chosen(items: Sequence[dict[str, Any]], text: str | None) -> list[dict[str, Any]]:
    """The manifests whose labels fulfil the selector; all of them without one."""
    if not text:
        return list(items)
    wanted = parse(text)
    return [item for item in items if wanted(item["metadata"].get("labels") or {})]
