"""The page costs nothing until somebody visits it, and then no more than it must."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT
from tests.support.patience import PATIENCE

VISITS = """
import asyncio, sys
import httpx
import together.desktop.app
from together.desktop.page import LatePage
from together.head.head import Head
from together.settings import Settings

stubs = []
sys.addaudithook(lambda event, of: stubs.append(of[0]) if event == "open" and str(of[0]).endswith(".pyi") else None)

async def main():
    page = LatePage(Head(Settings(home=sys.argv[1])))
    assert "gradio" not in sys.modules
    way = httpx.ASGITransport(app=page)
    async with httpx.AsyncClient(transport=way, base_url="http://127.0.0.1") as client:
        answers = await asyncio.gather(client.get("/split"), client.get("/split"))
    print([answer.status_code for answer in answers], answers[0].content == answers[1].content, stubs)
    await page.close()

asyncio.run(main())
"""


def test_the_page_is_built_once_at_the_first_visit(tmp_path: Path) -> None:
    command = [sys.executable, "-c", VISITS, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.stdout.strip() == "[200, 200] True []", done.stderr
