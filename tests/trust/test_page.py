"""Whose a tab of the page is: nobody but its owner hears of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tests.support.cluster import cluster_settings, running_head
from tests.surface.client import API
from tests.surface.served import served_page
from together.api.keys import KeyFile


async def test_a_tab_is_its_owner_s(tmp_path: Path) -> None:
    """Who guesses the number of another's tab hears nothing of it, ends nothing in it and takes it from nobody."""
    async with running_head(cluster_settings(tmp_path)) as head:
        keys = KeyFile(tmp_path)
        anna, berta = ({"x-api-key": keys.make(name)[1], "via": "x"} for name in ("anna", "berta"))
        head.settings = replace(head.settings, host="0.0.0.0")
        async with served_page(head) as served:
            number = next(number for number in served.events if served.blocks.fns[number].name == "demanded")
            tab = {"session_hash": "guessed"}
            sent = {**served.usual(number), **tab}
            joined = await served.client.post(f"{API}/queue/join", json=sent, headers=anna)
            assert joined.status_code == 200
            ended = {"fn_index": number, "event_id": joined.json()["event_id"], **tab}
            assert (await served.client.post(f"{API}/cancel", json=ended, headers=berta)).status_code == 404
            assert (await served.client.get(f"{API}/queue/data", params=tab, headers=berta)).status_code == 404
            async with served.client.stream("GET", f"{API}/queue/data", params=tab, headers=anna) as stream:
                assert "process_completed" in (await stream.aread()).decode()
