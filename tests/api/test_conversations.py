"""Kept conversations over HTTP, with a real app whose toy's answers never end by themselves."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.conftest import RealApp, start_app, until
from tests.support.patience import PATIENCE
from together.chats.exchange import FORMAT

JSON = dict[str, Any]


@pytest.fixture(scope="module")
def client(real_app: RealApp) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=real_app.url, timeout=PATIENCE, trust_env=False) as made:
        yield made


def new(client: httpx.Client, **settings: object) -> str:
    answer = client.post("/conversations", json={"settings": settings})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["summary"]["id"])


def ask(client: httpx.Client, chat: str, text: str = "hello?", parent: str = "", **more: object) -> tuple[JSON, JSON]:
    answer = client.post(f"/conversations/{chat}/turns", json={"text": text, "parent": parent, **more})
    assert answer.status_code == 201, answer.text
    return answer.json()["question"], answer.json()["answer"]


def get(client: httpx.Client, chat: str) -> JSON:
    found: JSON = client.get(f"/conversations/{chat}").raise_for_status().json()
    return found


def settled(client: httpx.Client, chat: str) -> list[JSON]:
    """The turns of a conversation when nothing is being written in it."""
    until(lambda: all(turn["state"] != "writing" for turn in get(client, chat)["turns"]), PATIENCE, "an answer")
    return list(get(client, chat)["turns"])


@contextmanager
def events(client: httpx.Client, path: str) -> Iterator[Iterator[JSON]]:
    with client.stream("GET", path) as answer:
        assert answer.status_code == 200
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        yield (json.loads(line.removeprefix("data: ")) for line in lines)


def test_an_answer_is_the_same_as_over_the_chat_route(client: httpx.Client) -> None:
    settings = {"temperature": 0, "max_tokens": 12, "system": "be short"}
    chat = new(client, **settings)
    ask(client, chat, "what is a node?")
    question, answer = settled(client, chat)
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "what is a node?"}]
    body = {"messages": messages, "temperature": 0, "max_tokens": 12}
    expected = client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert (question["said"]["text"], answer["said"]["text"]) == ("what is a node?", expected)
    figures = answer["said"]["figures"]
    assert figures["tokens"] == 12
    assert len(figures["machines"]) == 2
    assert "12 tokens" in answer["said"]["note"]


def test_an_answer_grows_for_who_watches_and_stops_when_told(client: httpx.Client, real_app: RealApp) -> None:
    chat = new(client)
    _, answer = ask(client, chat)
    with events(client, f"/conversations/{chat}/events") as steps:
        told = next(steps)["chat"]["turns"][1]["said"]["text"]
        for step in steps:
            if len(told) > 20:
                break
            told += step["grown"]["text"]
            assert step["shown"] is None or step["shown"]["blocks"]
    kept = get(client, chat)["turns"][1]
    assert kept["state"] == "writing"
    assert kept["said"]["text"].startswith(told)
    client.post(f"/conversations/{chat}/turns/{answer['id']}/stop").raise_for_status()
    assert settled(client, chat)[1]["state"] == "stopped"
    until(lambda: real_app.serving()["running"] == 0, PATIENCE, "the engine to be free")


def test_a_list_has_what_was_asked_and_is_told_of_changes(client: httpx.Client) -> None:
    chat = new(client, max_tokens=3)
    with events(client, f"/conversations/events?chat={chat}") as steps:
        assert next(steps)["chat"]["summary"]["id"] == chat
        first = {name: value for step in (next(steps), next(steps)) for name, value in step.items()}
        assert first["list"] is True
        (model,) = first["serving"]["models"]
        assert (model["name"], model["ready"], model["context"], first["serving"]["reason"]) == ("toy", True, 4096, "")
        ask(client, chat, "北京 zebra")
        assert {"list": True} in steps
    settled(client, chat)
    client.patch(f"/conversations/{chat}", json={"pinned": True}).raise_for_status()
    assert client.get("/conversations").json()["conversations"][0] == get(client, chat)["summary"]
    found = client.get("/conversations", params={"search": "京 zeb"}).json()["conversations"]
    assert [each["id"] for each in found] == [chat]
    client.patch(f"/conversations/{chat}", json={"title": "<b>stripes</b>", "pinned": False}).raise_for_status()
    assert get(client, chat)["summary"]["title"] == "<b>stripes</b>"
    client.delete(f"/conversations/{chat}").raise_for_status()
    assert client.get(f"/conversations/{chat}").status_code == 404
    assert client.get("/conversations", params={"search": "zebra"}).json()["conversations"] == []


def test_versions_of_turns(client: httpx.Client) -> None:
    chat = new(client, max_tokens=3)
    question, first = ask(client, chat, "one")
    settled(client, chat)
    second = client.post(f"/conversations/{chat}/turns/{first['id']}/again").json()["answer"]
    settled(client, chat)
    ask(client, chat, "one, said otherwise", question["parent"])
    turns = settled(client, chat)
    assert [turn["parent"] for turn in turns] == ["", question["id"], question["id"], "", turns[3]["id"]]
    kept = client.patch(f"/conversations/{chat}", json={"leaf": question["id"]}).json()
    assert kept["leaf"] == second["id"]


def test_an_export_can_be_read_again(client: httpx.Client) -> None:
    chat = new(client, max_tokens=3, system="be short")
    file = client.post(f"/conversations/{chat}/files", params={"name": "notes.txt"}, content="grüße\r\n").json()
    ask(client, chat, "what does it say?", files=[file["id"]])
    settled(client, chat)
    data = client.get(f"/conversations/{chat}/export").raise_for_status()
    assert data.headers["content-disposition"].startswith("attachment")
    (made,) = client.post("/conversations/import", content=data.content).json()
    copy = get(client, made["id"])
    kept = get(client, chat)
    assert copy["settings"] == kept["settings"]
    assert [turn["said"]["text"] for turn in copy["turns"]] == [turn["said"]["text"] for turn in kept["turns"]]
    (name,) = copy["turns"][0]["said"]["files"]
    assert client.get(f"/files/{name}").text == "grüße\n"
    twin = client.post(f"/conversations/{chat}/duplicate").json()
    assert [turn["said"]["text"] for turn in twin["turns"]] == [turn["said"]["text"] for turn in kept["turns"]]
    text = client.get(f"/conversations/{chat}/export", params={"form": "markdown"}).text
    assert "## Question\n\nAttached: notes.txt\nwhat does it say?" in text
    everything = client.get("/conversations/export").json()
    listed = [each["id"] for each in client.get("/conversations").json()["conversations"]]
    assert [each["conversation"]["summary"]["id"] for each in everything["chats"]] == listed
    assert (everything["left_out"], everything["before"]) == (0, "")
    rest = client.get("/conversations/export", params={"before": listed[0]}).json()
    assert [each["conversation"]["summary"]["id"] for each in rest["chats"]] == listed[1:]


def test_files_are_text_or_pictures(client: httpx.Client) -> None:
    chat = new(client)
    picture = BytesIO()
    Image.new("RGB", (4, 4)).save(picture, "PNG")
    path = f"/conversations/{chat}/files"
    page = client.post(path, params={"name": "a\n<b>.html"}, content="<script>alert(1)</script>").json()
    assert (page["name"], page["kind"]) == ("a <b>.html", "text/plain")
    assert page["tokens"] > 0
    shown = client.get(f"/files/{page['id']}")
    assert shown.headers["content-type"] == "text/plain; charset=utf-8"
    assert shown.headers["x-content-type-options"] == "nosniff"
    assert shown.headers["content-security-policy"] == "sandbox; default-src 'none'"
    drawn = client.post(path, content=picture.getvalue()).json()
    assert client.get(f"/files/{drawn['id']}").headers["content-type"] == "image/png"
    wide = client.post(path, content="wide".encode("utf-16")).json()
    assert client.get(f"/files/{wide['id']}").text == "wide"
    for wrong, said in ((b"\x00\x01binary", "neither text"), (b"%PDF-1.7\n\xff\xfe", "PDF is broken")):
        refused = client.post(path, content=wrong)
        assert (refused.status_code, said in refused.text) == (400, True)
    assert client.post(path, content=b"x" * (2**21 + 1)).status_code == 400
    assert client.post(path, content=b"x" * (2**24 + 1)).status_code == 413


def test_presets(client: httpx.Client) -> None:
    client.put("/presets/exact", json={"temperature": 0}).raise_for_status()
    (preset,) = client.get("/presets").json()
    assert (preset["name"], preset["settings"]["temperature"]) == ("exact", 0.0)
    client.delete("/presets/exact").raise_for_status()
    assert client.delete("/presets/exact").status_code == 404


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/conversations", {"settings": {"temperature": 3}}),
        ("POST", "/conversations", {"settings": {"warmth": 1}}),
        ("POST", "/conversations", {"settings": {"stop": [""]}}),
        ("POST", "/conversations", {"settings": {"max_tokens": 0}}),
        ("PATCH", "/conversations/CHAT", {"title": ""}),
        ("PATCH", "/conversations/CHAT", {"title": 7}),
        ("POST", "/conversations/CHAT/turns", {"text": " "}),
        ("POST", "/conversations/CHAT/turns", {"text": "x", "files": ["gone"] * 33}),
        ("PUT", "/presets/" + "x" * 101, {}),
        ("POST", "/conversations/import", {"format": "another"}),
        ("POST", "/conversations/import", {"name": "no export"}),
        ("POST", "/conversations/import", {"format": FORMAT, "chats": [{"conversation": {}}]}),
        ("POST", "/conversations/import", []),
    ],
)
def test_what_is_wrong_is_named(client: httpx.Client, method: str, path: str, body: object) -> None:
    answer = client.request(method, path.replace("CHAT", new(client)), json=body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/conversations/gone"),
        ("PATCH", "/conversations/gone"),
        ("DELETE", "/conversations/gone"),
        ("GET", "/conversations/gone/events"),
        ("GET", "/conversations/gone/export"),
        ("POST", "/conversations/gone/turns/gone/again"),
        ("POST", "/conversations/gone/turns/gone/stop"),
        ("GET", "/files/gone"),
        ("GET", "/conversations?before=gone"),
    ],
)
def test_what_is_not_there_is_a_404(client: httpx.Client, method: str, path: str) -> None:
    assert client.request(method, path, json={} if method == "PATCH" else None).status_code == 404


def test_a_question_while_no_model_serves_is_not_kept(lent_app: RealApp) -> None:
    with httpx.Client(base_url=lent_app.url, timeout=PATIENCE, trust_env=False) as client:
        chat = new(client)
        lent_app.post("/control/unload", {}).raise_for_status()
        answer = client.post(f"/conversations/{chat}/turns", json={"text": "hello?"})
        assert answer.status_code == 503
        assert get(client, chat)["turns"] == []


@pytest.mark.full
def test_a_killed_head_loses_no_finished_turn(tmp_path: Path) -> None:
    with start_app(tmp_path) as app, httpx.Client(base_url=app.url, timeout=PATIENCE, trust_env=False) as client:
        chat = new(client, max_tokens=3)
        ask(client, chat, "one")
        turns = settled(client, chat)
        client.patch(f"/conversations/{chat}", json={"settings": {}}).raise_for_status()
        ask(client, chat, "two", turns[-1]["id"])
        app.process.kill()
        app.process.wait()
    with start_app(tmp_path) as app, httpx.Client(base_url=app.url, timeout=PATIENCE, trust_env=False) as client:
        kept = get(client, chat)["turns"]
        assert kept[:2] == turns
        assert [(turn["role"], turn["state"]) for turn in kept[2:]] == [("user", "done"), ("assistant", "cut")]
        client.post(f"/conversations/{chat}/turns/{kept[3]['id']}/again").raise_for_status()
