"""Another machine's app on the same network: its node is left alone, until a person gives its address."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from tests.reliability.moves import heading, node_on, settings_in
from tests.support.cluster import until
from tests.support.namespaces import switch
from together.cluster.discovery import Discovery
from together.cluster_types import Endpoint
from together.head.head import Head


def living(head: Head) -> dict[str, Endpoint]:
    return {node.name: node.endpoint for node in head.view().nodes if not node.cause}


async def an_app_next_door(folder: Path) -> None:
    settings = settings_in(folder)
    with switch("theirs", "free") as network, ExitStack() as stack:
        owned = replace(settings, owner="another head", home=str(folder / "next door"))
        theirs = stack.enter_context(node_on(network.machines["theirs"], owned, "theirs"))
        stack.enter_context(node_on(network.machines["free"], settings, "free"))
        heard = Discovery(settings, lambda: None)
        await heard.start()
        async with heading(settings, nodes=1) as head:
            await until(lambda: len(heard.hints) == 2)
            assert {hint.owner for hint in heard.hints.values()} == {"", "another head"}
            await asyncio.sleep(1)  # what this head would do about it, it does at once
            assert list(living(head)) == ["free"]
        await heard.close()
        async with heading(settings, theirs.endpoint) as head:
            assert list(living(head)) == ["free", "theirs"]
            network.readdress("theirs", 77)
            moved = network.machines["theirs"].address
            await until(lambda: moved in living(head).get("theirs", theirs.endpoint).addresses)
