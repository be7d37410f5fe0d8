"""Where `-f` takes its documents from.

Job: files, directories (every .yaml, .yml, .json below, in order of name), and `-` for standard input,
as texts with the name that errors show.
Rule: nothing is read twice; a directory without any document is an error, not an empty success.
Not for: parsing them (`istiod.resources`).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from istiod.ctl.client import read_source
from istiod.ctl.failure import CommandError

SUFFIXES = (".yaml", ".yml", ".json")


@dataclass(frozen=True)
class Source:
    """One text with the name it has in messages."""

    name: str
    text: str


def gather(arguments: Sequence[str]) -> list[Source]:
    """The texts behind the `-f` arguments, in their order. Raises `CommandError`."""
    sources: list[Source] = []
    seen: set[Path] = set()
    for argument in arguments:
        if argument == "-":
            sources.append(Source("stdin", sys.stdin.read()))
            continue
        path = Path(argument)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
            if not found:
                raise CommandError(f"{path}: no {', '.join(SUFFIXES)} file in this directory")
        elif path.exists():
            found = [path]
        else:
            raise CommandError(f"{path}: no such file or directory")
        for file in found:
            if file.resolve() not in seen:
                seen.add(file.resolve())
                sources.append(Source(str(file), read_source(file)))
    return sources
