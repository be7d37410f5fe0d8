"""Where `-f` takes its documents from.

Job: files, directories (every .yaml, .yml, .json below, in order of name, hidden ones left out), and `-` for
standard input, as texts with the name that errors show.
Rule: nothing is read twice. A file that was named must hold resources of the mesh; one that was found in a directory
may be something else, and is then passed over and named.
Not for: parsing them (`istiod.resources`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from istiod.ctl import output
from istiod.ctl.client import read_source
from istiod.ctl.failure import CommandError

SUFFIXES = (".yaml", ".yml", ".json")
_OURS = re.compile(rb"""^[^#\n]*\bapiVersion["']?\s*:\s*["']?[a-z0-9.]*istio\.io/""", re.MULTILINE)


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
        if not path.exists():
            raise CommandError(f"{path}: no such file or directory")
        sources += _of_directory(path, seen) if path.is_dir() else _of_file(path, seen)
    return sources


def _of_file(path: Path, seen: set[Path]) -> Iterator[Source]:
    if path.resolve() not in seen:
        seen.add(path.resolve())
        yield Source(str(path), read_source(path))


def _of_directory(path: Path, seen: set[Path]) -> Iterator[Source]:
    """What is of the mesh below `path`; what is passed over is said."""
    found = sorted(
        one
        for one in path.rglob("*")
        if one.suffix in SUFFIXES
        and one.is_file()
        and not any(part.startswith(".") for part in one.relative_to(path).parts)
    )
    if not found:
        raise CommandError(f"{path}: no {', '.join(SUFFIXES)} file in this directory")
    ours = [one for one in found if _OURS.search(_bytes(one))]
    if not ours:
        raise CommandError(f"{path}: no file in this directory holds a resource of the mesh")
    if len(ours) < len(found):
        skipped = ", ".join(str(one) for one in found if one not in ours)
        output.note(f"skipped, no resource of the mesh: {skipped}")
    for one in ours:
        yield from _of_file(one, seen)


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CommandError(f"{path}: {error}") from error
