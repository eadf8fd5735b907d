"""axe, which finds what a page lacks for screen readers and keyboards: npm's package `axe-core`, downloaded once.

A test that asks for it is skipped, with the reason, where npm cannot download it. Knows no test.
"""

from __future__ import annotations

import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.support.downloads import DOWNLOAD_WITHIN, cache, once

PACKAGE = "axe-core@4.11.0"
SCRIPT = "package/axe.min.js"


def serious_faults(page: Page) -> list[str]:
    """What axe calls serious or critical in the page as it is, each with the first element that has it."""
    page.evaluate(_axe().read_text("utf-8"))
    found: dict[str, Any] = page.evaluate("axe.run(document)")
    grave = [each for each in found["violations"] if each["impact"] in ("serious", "critical")]
    return [f"{each['id']}: {each['help']}: {each['nodes'][0]['html'][:200]}" for each in grave]


def _axe() -> Path:
    return once(cache("AXE_CACHE", "axe") / f"{PACKAGE}.js", _download)


def _download(wanted: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("axe-core needs npm, which is not on this machine")
    command = [npm, "pack", PACKAGE, "--silent", "--pack-destination", str(wanted.parent)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_WITHIN, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{PACKAGE} did not arrive within {DOWNLOAD_WITHIN:.0f} s")
    packs = list(wanted.parent.glob("axe-core-*.tgz"))
    if done.returncode != 0 or not packs:
        pytest.skip(f"{PACKAGE} cannot be downloaded: {done.stderr.strip()[-200:]}")
    with tarfile.open(packs[0]) as pack:
        script = pack.extractfile(SCRIPT)
        assert script is not None
        wanted.write_bytes(script.read())
