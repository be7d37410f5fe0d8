"""Lets the hosts' unprivileged users read what runs on them, wherever the checkout lies.

A checkout or an interpreter under a home directory that others may not enter (0700) cannot be run by the lab's
applications and workers, which have users of their own. Inside the lab's private mount namespace the closed directory
is covered by an open one that holds only what is needed. The machine's own view does not change.
Not for: making secret files readable; modes of files stay as they are.
"""

from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path


def open_the_way(staging: Path) -> None:
    """Make the repository, the environment and the interpreter reachable for every user of this mount namespace."""
    repository = Path(__file__).resolve().parents[3]
    shared = (repository.parent / "shared").resolve()
    needed = {repository, Path(sys.prefix).resolve(), Path(sys.base_prefix).resolve()}
    needed |= {Path(sys.executable).resolve().parent} | ({shared} if shared.is_dir() else set())
    closed: dict[Path, set[Path]] = {}
    for path in needed:
        ancestor = next((parent for parent in reversed(path.parents) if not _enterable(parent)), None)
        if ancestor is not None:
            closed.setdefault(ancestor, set()).add(path)
    for number, (ancestor, paths) in enumerate(sorted(closed.items())):
        original = staging / str(number)
        original.mkdir(parents=True)
        _mount("--rbind", str(ancestor), str(original))
        _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(ancestor))
        for path in sorted(paths):
            if not any(parent in paths for parent in path.parents):
                path.mkdir(parents=True)
                _mount("--rbind", str(original / path.relative_to(ancestor)), str(path))


def _enterable(path: Path) -> bool:
    return bool(path.stat().st_mode & stat.S_IXOTH)


def _mount(*argv: str) -> None:
    done = subprocess.run(["mount", *argv], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"mount {' '.join(argv)}: {done.stderr.strip()}")
