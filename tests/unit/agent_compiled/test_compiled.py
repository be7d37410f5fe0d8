"""Compiled modules are used whole or not at all, never where a source has changed; and the shipped agent runs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from agent import compiled

ROOT = Path(__file__).parents[3]
AGENT = Path(sys.executable).parent / "hostmesh-agent"


@pytest.fixture
def build(tmp_path: Path) -> Path:
    """A source tree of one module with a build of it."""
    source = tmp_path / "agent" / "hot.py"
    source.parent.mkdir()
    source.write_text("ANSWER = 42\n")
    folder = tmp_path / "native"
    folder.mkdir()
    manifest = {
        "sources": {"agent.hot": compiled.digest(source)},
        "suffix": EXTENSION_SUFFIXES[0],
        "files": {"agent.hot": f"agent/hot{EXTENSION_SUFFIXES[0]}"},
    }
    (folder / compiled.MANIFEST).write_text(json.dumps(manifest))
    return folder


def test_a_build_of_the_present_sources_is_used(build: Path) -> None:
    finder = compiled.find(build.parent, build)
    assert finder is not None
    spec = finder.find_spec("agent.hot")
    assert spec is not None and spec.origin == str(build / f"agent/hot{EXTENSION_SUFFIXES[0]}")
    assert finder.find_spec("agent.cold") is None


def test_one_changed_source_puts_the_whole_build_out_of_use(build: Path) -> None:
    (build.parent / "agent" / "hot.py").write_text("ANSWER = 43\n")
    assert compiled.find(build.parent, build) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"sources": {}}', '{"sources": 1, "suffix": "", "files": {}}']
)
def test_a_broken_manifest_is_no_build(build: Path, text: str) -> None:
    (build / compiled.MANIFEST).write_text(text)
    assert compiled.find(build.parent, build) is None


def test_another_interpreters_build_is_not_used(build: Path) -> None:
    manifest = json.loads((build / compiled.MANIFEST).read_text())
    (build / compiled.MANIFEST).write_text(json.dumps(manifest | {"suffix": ".cpython-27.so"}))
    assert compiled.find(build.parent, build) is None


def test_this_process_runs_the_sources() -> None:
    assert not compiled.active()


def _version(**environment: str) -> str:
    return subprocess.run(
        [AGENT, "version", "--long"],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


def test_the_agent_runs_the_compiled_modules_where_they_can_be_built() -> None:
    can = shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is not None
    can = can and Path(sysconfig.get_path("include"), "Python.h").is_file()
    assert ("data plane: compiled" in _version()) == can
    assert "data plane: interpreted" in _version(HOSTMESH_INTERPRETED="1")
