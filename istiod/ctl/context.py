"""Which istiod meshctl talks to.

Job: find the admin context: `--context`, then HOSTMESH_CONTEXT, then ~/.config/hostmesh/context.yaml.
Rule: an explicit choice that does not work is an error; nothing falls back to another istiod in silence.
Not for: the file's format (`istiod.admin_context`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from istiod.admin_context import AdminContext, ContextError, read

VARIABLE = "HOSTMESH_CONTEXT"


def default_path(environ: Mapping[str, str]) -> Path:
    """~/.config/hostmesh/context.yaml, honouring XDG_CONFIG_HOME."""
    root = environ.get("XDG_CONFIG_HOME") or f"{environ.get('HOME', '~')}/.config"
    return Path(root).expanduser() / "hostmesh" / "context.yaml"


def find(option: Path | None, environ: Mapping[str, str]) -> AdminContext:
    """The chosen context. Raises `ContextError` with advice when there is none."""
    if option is not None:
        return read(option)
    if environ.get(VARIABLE):
        return read(Path(environ[VARIABLE]).expanduser())
    path = default_path(environ)
    if not path.exists():
        raise ContextError(
            f"no admin context: give --context FILE, set {VARIABLE}, or copy istiod's "
            f"admin-context.yaml (in its stateDir, written at its first start) to {path} with mode 0600"
        )
    return read(path)
