"""`launch.py audit`: what it makes of pip-audit's words, and what it says without a network."""

from __future__ import annotations

import os
import subprocess
import sys

from installer.audit import verdict
from tests.conftest import ROOT
from tests.support.patience import PATIENCE

SOUND = {"name": "fine", "version": "1.0", "vulns": []}
HOLE = {"name": "holed", "version": "1.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["1.1"]}, {"id": "GHSA-2"}]}
UNKNOWN = {"name": "ours", "skip_reason": "Dependency not found on PyPI"}


def test_known_holes_are_named_with_their_cure() -> None:
    assert verdict([SOUND]) == (["packages that were looked up: 1; no known hole"], 0)
    assert verdict([SOUND, HOLE]) == (
        [
            "holed 1.0: PYSEC-1, fixed in 1.1",
            "holed 1.0: GHSA-2, fixed in no version yet",
            "packages that were looked up: 2; 2 known holes",
        ],
        1,
    )


def test_what_was_not_looked_up_is_not_called_sound() -> None:
    """As behind a mirror, where pip-audit itself reports no known vulnerabilities, and success."""
    assert verdict([UNKNOWN]) == (
        ["packages that were looked up: 0; no known hole", "not looked up, for the index does not know them: 1 (ours)"],
        1,
    )


def test_without_a_network_it_says_so() -> None:
    nowhere = {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "NO_PROXY": ""}
    command = [sys.executable, "-m", "installer.audit"]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert done.returncode == 1
    assert done.stdout.startswith("the index of known holes cannot be asked: ")
    assert "connect this machine to a network that reaches Python's package index, and run it again" in done.stdout
    assert done.stderr == ""
