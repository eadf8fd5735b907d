"""Servers of tools over HTTP: whose they are, and that a key starts no program and reaches no private address."""

from __future__ import annotations

from pathlib import Path

from tests.api.web import client_from_elsewhere
from tests.support.cluster import cluster_settings, running_head
from tests.support.tool_servers import PROGRAM, serving_tools
from together.api.keys import KeyFile
from together.requests import LOCAL
from together.tools.servers import ServerFile, ToolServer

PATH = "/tool-servers"


async def test_a_key_has_servers_of_its_own_and_no_programs(tmp_path: Path) -> None:
    servers, keys = ServerFile(tmp_path), KeyFile(tmp_path)
    made, text = keys.make("anna")
    servers.add(ToolServer("program", LOCAL, command=PROGRAM))
    with serving_tools() as url:
        servers.add(ToolServer("lan", made.id, url=url, key="secret", anywhere=True))
        async with running_head(cluster_settings(tmp_path)) as head, client_from_elsewhere(head, "tg-own") as client:
            client.headers["x-api-key"] = text
            listed = await client.get(PATH)
            assert [each["name"] for each in listed.json()] == ["lan"]
            assert "secret" not in listed.text
            tools = (await client.get(f"{PATH}/lan/tools")).json()["tools"]
            assert [tool["name"] for tool in tools][:2] == ["add", "evil <b>name</b>"]
            for method, path in (("GET", "program/tools"), ("DELETE", "program"), ("DELETE", "program/allowed")):
                assert (await client.request(method, f"{PATH}/{path}")).status_code == 404
            near = await client.post(PATH, json={"name": "near", "url": url})
            assert (near.status_code, "added it:" in near.json()["error"]["message"]) == (502, True)
            program = await client.post(PATH, json={"name": "x", "url": url, "command": ["/bin/sh"]})
            assert (program.status_code, "command" in program.text) == (400, True)
            assert (await client.post(PATH, json={"name": "a b", "url": url})).status_code == 400
            for written, said in (("[", "line 1"), ("[]", '"wrong":""')):
                assert said in (await client.post(f"{PATH}/check", json={"functions": written})).text
            assert (await client.delete(f"{PATH}/lan")).status_code == 200
            await head.forget_texts()
    assert [each.name for each in servers.of(LOCAL)] == ["program"]
    assert servers.of(made.id) == ()
