"""The hot modules as machine code, compiled by mypyc from the very sources beside them.

`packaging/native/build.py` makes them; here they are found. Rule: all of them or none, and never stale ones: the
manifest names the SHA-256 of every source that was compiled, and if one of them has changed since, the interpreter runs
the sources. `HOSTMESH_INTERPRETED=1` makes it do so in any case. Both behave alike; decision 012 tells what differs.
Not for: building, and for knowing which modules are hot.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parent.parent
FOLDER = Path(__file__).parent / "_native" / str(sys.implementation.cache_tag)
"""Where the build for this interpreter is."""
MANIFEST = "manifest.json"
SWITCH = "HOSTMESH_INTERPRETED"


class CompiledFinder:
    """Finds the modules of one build."""

    def __init__(self, folder: Path, files: Mapping[str, str]) -> None:
        self._folder = folder
        self._files = files
        """Module name to file, relative to the folder."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        file = self._files.get(fullname)
        if file is None:
            return None
        location = str(self._folder / file)
        return spec_from_file_location(fullname, location, loader=ExtensionFileLoader(fullname, location))


def digest(source: Path) -> str:
    """What the manifest says of a source."""
    return hashlib.sha256(source.read_bytes()).hexdigest()


def source_of(root: Path, module: str) -> Path:
    """The file of a module."""
    return root.joinpath(*module.split(".")).with_suffix(".py")


def find(root: Path, folder: Path) -> CompiledFinder | None:
    """The finder for the build in a folder; None where there is none, or one of other sources."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        sources: dict[str, str] = manifest["sources"]
        if manifest["suffix"] != EXTENSION_SUFFIXES[0]:
            return None
        if any(digest(source_of(root, module)) != told for module, told in sources.items()):
            return None
        return CompiledFinder(folder, manifest["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def install() -> None:
    """Let the compiled modules be found first; called by `agent` before anything below it is imported."""
    if os.environ.get(SWITCH, "") not in ("", "0"):
        return
    finder = find(ROOT, FOLDER)
    if finder is not None:
        sys.meta_path.insert(0, finder)


def active() -> bool:
    """Does this process run the compiled modules?"""
    return any(isinstance(finder, CompiledFinder) for finder in sys.meta_path)
