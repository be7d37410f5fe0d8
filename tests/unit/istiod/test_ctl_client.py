"""The admin key on its way into TLS."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path

import pytest

from istiod.ca.admin import admin_context
from istiod.ca.keys import admin_authority
from istiod.ctl.client import AdminClient


def test_the_admin_key_is_in_no_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime.now(UTC)
    context = admin_context(admin_authority(tmp_path, now), "https://127.0.0.1:8443", now)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    before = set(Path("/proc/self/fd").iterdir())
    with AdminClient(context):
        pass
    assert set(Path("/proc/self/fd").iterdir()) == before, "the file in memory is closed"
