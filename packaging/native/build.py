"""Compiles the hot modules of the agent with mypyc into `agent/_native/<interpreter>/` (agent/compiled.py finds them there).

    .venv/bin/python packaging/native/build.py [--required]

Does nothing while the sources are those of the last build. Without a C compiler or Python's header files it says so and
leaves the interpreter to run the sources, which behave alike; with --required that is an error.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["HOSTMESH_INTERPRETED"] = "1"

from agent.compiled import FOLDER, MANIFEST, digest, source_of  # noqa: E402

HOT = (
    "agent/exchange/*.py",
    "agent/filters/*.py",
    "agent/http/*.py",
    "agent/limits/tally.py",
    "agent/routing/*.py",
    "agent/table/cluster.py",
    "agent/table/listener.py",
    "agent/table/matchers.py",
    "agent/table/route.py",
    "agent/table/tls.py",
    "agent/tcp/*.py",
    "agent/upstream/*.py",
    "agent/upstream/balancer/*.py",
    "agent/telemetry/access_log.py",
    "agent/telemetry/fields.py",
    "agent/telemetry/flags.py",
    "agent/telemetry/format.py",
    "agent/telemetry/header_fields.py",
    "agent/telemetry/labels.py",
    "agent/telemetry/log_filter.py",
    "agent/telemetry/operators.py",
    "agent/telemetry/outcome.py",
    "agent/telemetry/series.py",
    "agent/telemetry/times.py",
    "agent/worker/accept.py",
    "agent/worker/acceptor.py",
    "agent/worker/answers.py",
    "agent/worker/connect.py",
    "agent/worker/downstream.py",
    "agent/worker/health.py",
    "agent/worker/raw.py",
    "agent/worker/reactor.py",
    "agent/worker/linger.py",
    "agent/worker/station.py",
    "agent/worker/http_station.py",
    "agent/worker/tcp.py",
    "agent/worker/timers.py",
    "agent/worker/tls_transport.py",
    "agent/worker/transport.py",
    "agent/worker/upstream.py",
)
"""What runs for each connection, request or piece of data. One unit: calls between compiled modules are C calls."""


def main() -> int:
    """Exit status 0 where the build is there or cannot be made here, 1 where it failed or is required and missing."""
    arguments = _arguments()
    FOLDER.parent.mkdir(exist_ok=True)
    alone = os.open(FOLDER.parent, os.O_RDONLY)
    fcntl.flock(alone, fcntl.LOCK_EX)  # until this process ends: a second one waits, and finds the build done
    modules = hot_modules()
    sources = {module: digest(source_of(ROOT, module)) for module in modules}
    if _recorded() == {"sources": sources, "suffix": EXTENSION_SUFFIXES[0]}:
        return 0
    missing = _missing()
    if missing:
        sys.stderr.write(f"native: {missing}; the data plane runs interpreted, which is slower\n")
        return int(arguments.required)
    sys.stderr.write(f"native: compiling {len(modules)} modules (a minute or two)\n")
    began = time.monotonic()
    os.chdir(ROOT)
    with tempfile.TemporaryDirectory(dir=FOLDER.parent, prefix="build-") as name:
        built = Path(name) / "lib"
        _compile([str(source_of(Path(), module)) for module in modules], Path(name), built)
        files = {
            _module(built, file): str(file.relative_to(built))
            for file in built.rglob(f"*{EXTENSION_SUFFIXES[0]}")
        }
        lost = set(modules) - set(files)
        if lost:
            sys.stderr.write(f"native: not compiled: {', '.join(sorted(lost))}\n")
            return 1
        manifest = {"sources": sources, "suffix": EXTENSION_SUFFIXES[0], "files": files}
        (built / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
        shutil.rmtree(FOLDER, ignore_errors=True)
        built.rename(FOLDER)
    sys.stderr.write(f"native: done in {time.monotonic() - began:.0f} s\n")
    return 0


def hot_modules() -> list[str]:
    """The names of the modules that are compiled."""
    files = sorted({file for pattern in HOT for file in ROOT.glob(pattern) if file.name != "__init__.py"})
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="packaging/native/build.py", description=__doc__)
    parser.add_argument("--required", action="store_true", help="fail where the modules cannot be compiled")
    return parser.parse_args()


def _recorded() -> dict[str, Any] | None:
    try:
        manifest = json.loads((FOLDER / MANIFEST).read_bytes())
        return {"sources": manifest["sources"], "suffix": manifest["suffix"]}
    except (OSError, ValueError, KeyError):
        return None


def _missing() -> str:
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        return f"there is no C compiler ({compiler})"
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").is_file():
        return "Python's header files are not installed (Debian package python3-dev)"
    try_out = [compiler, "-I", include, "-fsyntax-only", "-x", "c", "-"]
    if subprocess.run(try_out, input=b"#include <Python.h>\n", capture_output=True, check=False).returncode:
        return f"{compiler} finds not all header files (Debian package libc6-dev)"
    return ""


def _module(built: Path, file: Path) -> str:
    relative = file.relative_to(built)
    return ".".join((*relative.parts[:-1], relative.name.removesuffix(EXTENSION_SUFFIXES[0])))


def _compile(sources: list[str], scratch: Path, built: Path) -> None:
    """mypyc writes C, setuptools compiles and links it. What they print is shown where they fail."""
    with Path(scratch, "log").open("w+b") as log:
        kept = os.dup(1), os.dup(2)
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        failed = True
        try:
            _run_compilers(sources, scratch, built)
            failed = False
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(kept[0], 1)
            os.dup2(kept[1], 2)
            if failed:
                log.seek(0)
                sys.stderr.write(log.read().decode(errors="replace")[-4000:])


def _run_compilers(sources: list[str], scratch: Path, built: Path) -> None:
    """The files of the one big unit are compiled side by side."""
    from mypyc.build import mypycify
    from setuptools import Distribution
    from setuptools.command.build_ext import build_ext

    settings = scratch / "mypy.ini"
    settings.write_text("[mypy]\nignore_missing_imports = True\n")
    extensions = mypycify(
        ["--config-file", str(settings), "--cache-dir", str(scratch / "cache"), *sources],
        opt_level="2", debug_level="0", multi_file=True, target_dir=str(scratch / "c"),
    )  # fmt: skip
    for extension in extensions:
        extension.extra_link_args = [*extension.extra_link_args, "-Wl,-s"]

    class SideBySide(build_ext):
        """build_ext whose compiler takes several files at once."""

        def build_extensions(self) -> None:
            one_after_the_other = self.compiler.compile

            def compile_all(files: list[str], *given: Any, **named: Any) -> list[str]:
                with ThreadPoolExecutor(os.cpu_count()) as pool:
                    made = pool.map(lambda file: one_after_the_other([file], *given, **named), files)
                    return [output for outputs in made for output in outputs]

            self.compiler.compile = compile_all
            super().build_extensions()

    command = SideBySide(Distribution({"name": "hostmesh-native", "ext_modules": extensions}))
    command.build_lib = str(built)
    command.build_temp = str(scratch / "objects")
    command.ensure_finalized()
    command.run()


if __name__ == "__main__":
    sys.exit(main())
