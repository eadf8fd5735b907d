"""The models of this machine and of a hub over HTTP: lists, fits, downloads that are paused and cut, what may go."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.conftest import Heads
from tests.api.web import client_from_elsewhere, client_of
from tests.support.checksum import EOS, QUIET, make_checksum_model
from tests.support.cluster import Node, right_answer, until
from tests.support.folders import write_tensors
from tests.support.hub import HubServer
from tests.support.hub_home import own_home, own_hub
from tests.support.made_up import write_made_up
from together.api.keys import KeyFile
from together.desktop.bench.shapes import SHAPES
from together.head.head import Head
from together.models.families import BY_NAME
from together.settings import Settings

JSON = dict[str, Any]
REPO = "acme/tiny"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_home(tmp_path, monkeypatch)


@asynccontextmanager
async def library(head_with: Heads, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Head, Any, HubServer]]:
    with own_hub(monkeypatch) as hub:
        async with head_with() as head, client_of(head) as client:
            yield head, client, hub


def publish(hub: HubServer, folder: Path, repo: str = REPO) -> int:
    """A runnable model in the smallest of well-known shapes; the bytes of its weights."""
    write_made_up(folder, SHAPES["tiny"])
    write_tensors(folder / "model.safetensors", SHAPES["tiny"].tensors())
    (folder / "tokenizer.json").write_text("{}")
    hub.add(repo, folder)
    return (folder / "model.safetensors").stat().st_size


async def listed(client: httpx.AsyncClient, name: str) -> list[JSON]:
    body = (await client.get("/library")).json()
    return [model for model in body["models"] if model["name"] == name]


async def news(client: httpx.AsyncClient) -> JSON:
    async with client.stream("GET", "/library/events") as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: "):
                found: JSON = json.loads(line.removeprefix("data: "))
                return found
    raise AssertionError


def job_of(head: Head) -> Any:
    (job,) = head.library.jobs.shown()
    return job


async def start(client: httpx.AsyncClient, **job: str) -> JSON:
    answer = await client.post("/library/jobs", json={"job": job})
    assert answer.status_code == 201, answer.text
    found: JSON = answer.json()
    return found


async def act(client: httpx.AsyncClient, job: JSON, action: str) -> JSON:
    answer = await client.post(f"/library/jobs/{job['id']}", json={"action": action})
    found: JSON = answer.raise_for_status().json()
    return found


async def test_the_list_says_what_is_here_and_what_is_loaded(
    home: Path, head_with: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toy = make_checksum_model(home / "models" / "quick", quiet_ids=(*QUIET, EOS))
    async with library(head_with, monkeypatch) as (head, client, hub):
        await head.load(toy)
        body = (await client.get("/library")).json()
        demo = next(model for model in body["models"] if model["name"] == "demo_model")
        assert (demo["source"], demo["own"], demo["loaded"], demo["part"]) == ("bundled", False, "", 1.0)
        assert (demo["family"] in BY_NAME, demo["context"] > 0, demo["bits"] > 0) == (True, True, True)
        assert demo["backends"] == ["torch", "mlx"]
        (quick,) = await listed(client, "quick")
        assert (quick["source"], quick["own"], quick["loaded"]) == ("models", True, "quick")
        assert body["here"] is True
        assert (body["hub"]["mirror"], body["hub"]["url"]) == (True, hub.url)
        assert body["disk"]["bytes"] <= body["disk"]["most"]
        refused = await client.delete(f"/library/models/{quick['id']}")
        assert "quick is loaded; unload it first" in refused.json()["error"]["message"]
        refused = await client.delete(f"/library/models/{demo['id']}")
        assert "which is not this app's own folder" in refused.json()["error"]["message"]
        (now,) = (await news(client))["loaded"]
        assert (now["name"], now["state"], now["keep"], now["aliases"]) == ("quick", "READY", False, [])
        await client.post("/control/keep", json={"model": "quick", "on": True})
        await client.post("/control/alias", json={"name": "gpt <b>", "model": "quick"})
        (now,) = (await news(client))["loaded"]
        assert (now["keep"], now["aliases"]) == (True, ["gpt <b>"])
        chat = {"model": "gpt <b>", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
        assert (await client.post("/v1/chat/completions", json=chat)).json()["model"] == "quick"
        taken = await client.post("/control/alias", json={"name": "quick", "model": "demo_model"})
        assert "'quick' is the name of a model that serves" in taken.json()["error"]["message"]
        await head.unload("quick")
        assert (await client.delete(f"/library/models/{quick['id']}")).status_code == 200
        assert not toy.exists()
        assert await listed(client, "quick") == []


async def test_a_download_is_paused_cut_gone_on_with_and_deleted(
    home: Path, head_with: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with library(head_with, monkeypatch) as (head, client, hub):
        size = publish(hub, tmp_path / "tiny")
        hub.bytes_per_s, hub.cuts = 60_000.0, [20_000, 30_000]
        job = await start(client, kind="download", model=REPO)
        await until(lambda: job_of(head).done > 30_000)
        told = job_of(head)
        assert (told.state, told.total > size * 0.9, told.speed > 0) == ("running", True, True)
        again = await client.post("/library/jobs", json={"job": {"kind": "download", "model": REPO}})
        assert "that is being done with acme/tiny already" in again.json()["error"]["message"]
        paused = await act(client, job, "pause")
        assert (paused["state"], paused["speed"]) == ("paused", 0.0)
        served = hub.weights_served()
        (part,) = await listed(client, REPO)
        assert 0 < part["part"] < 1
        assert (part["source"], part["own"]) == ("cache", True)
        hub.bytes_per_s = 0.0
        await act(client, job, "resume")
        await until(lambda: job_of(head).state in ("done", "failed"))
        assert re.fullmatch(r"all of acme/tiny is here, 0\.\d MB; load it when you like", str(job_of(head).sentence))
        assert hub.weights_served() - served < size  # what was here was not fetched again
        (whole,) = await listed(client, REPO)
        assert (whole["part"], whole["title"]) == (1.0, "as published")
        await act(client, job, "remove")
        assert head.library.jobs.shown() == ()
        assert (await client.delete(f"/library/models/{whole['id']}")).status_code == 200
        assert await listed(client, REPO) == []


async def test_a_gated_model_asks_for_a_token(
    home: Path, head_with: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with library(head_with, monkeypatch) as (head, client, hub):
        publish(hub, tmp_path / "tiny")
        hub.gated.add(REPO)
        (found,) = (await client.post("/library/search", json={"words": "tiny"})).json()["models"]
        assert (found["name"], found["gated"], found["runs"]) == (REPO, True, True)
        job = await start(client, kind="download", model=REPO)
        await until(lambda: job_of(head).state == "failed")
        assert "acme/tiny is gated: accept its licence at" in str(job_of(head).sentence)
        access = (await client.put("/library/token", json={"token": "hf_right"})).json()
        assert access["token"] is True
        await act(client, job, "resume")
        await until(lambda: job_of(head).state == "done")
        assert hub.cdn_tokens == []


async def test_fits_of_what_is_here_and_of_the_hub(
    home: Path, head_with: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with library(head_with, monkeypatch) as (_, client, hub):
        publish(hub, tmp_path / "tiny")
        write_made_up(home / "models" / "large", SHAPES["llama-3.1-8b"])
        tiny = (await client.post("/library/fits", json={"model": REPO})).json()
        assert (tiny["name"], tiny["family"], tiny["context"]) == (REPO, "llama", 131072)
        assert [form["title"] for form in tiny["forms"]] == ["as published", "4 bit", "8 bit", "mxfp4"]
        assert {form["fit"] for form in tiny["forms"]} == {"fits"}
        assert hub.weights_served() < 60_000  # headers alone
        large = (await client.post("/library/fits", json={"model": "large"})).json()
        assert {form["fit"] for form in large["forms"]} == {"no"}
        assert large["forms"][0]["sentence"].startswith("the model does not fit")
        lines = (await client.post("/library/inspect", json={"model": "large"})).json()["lines"]
        assert ["family", "llama, runs on torch, mlx"] in lines
        none = await client.post("/library/fits", json={"model": "no such model"})
        assert "there is no model 'no such model' on this machine" in none.json()["error"]["message"]


async def test_a_model_is_quantized_and_converted(
    home: Path, head_with: Heads, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_made_up(home / "models" / "mine", SHAPES["tiny"])
    (folder / "tokenizer.json").write_text("{}")
    async with library(head_with, monkeypatch) as (head, client, _):
        job = await start(client, kind="quantize", model="mine", quantize="4")
        await until(lambda: job_of(head).state in ("done", "failed"))
        assert str(job_of(head).sentence) == "now mine is here in 4 bit; load it in this form when you like"
        await act(client, job, "remove")
        plain, made = await listed(client, "mine")
        assert {plain["title"], made["title"]} == {"as published", "4 bit"}
        quantized = made if made["form"] else plain
        disk = (await client.get("/library")).json()["disk"]
        assert disk["spare"] == [quantized["id"]]
        assert [(form["title"], form["models"]) for form in disk["forms"]] == [("4 bit", 1)]
        await start(client, kind="convert", model="mine", folder="mine-mlx", quantize="8")
        await until(lambda: job_of(head).state in ("done", "failed"))
        assert "now mine is a folder in MLX's format" in str(job_of(head).sentence)
        (written,) = await listed(client, "mine-mlx")
        assert written["bits"] < 9
        for name in ("../x", "a/b", ""):
            refused = await client.post(
                "/library/jobs", json={"job": {"kind": "convert", "model": "mine", "folder": name}}
            )
            assert refused.status_code == 400
        assert (await client.delete(f"/library/models/{quantized['id']}")).status_code == 200
        assert [model["form"] for model in await listed(client, "mine")] == [""]


async def test_a_model_of_another_machine_is_listed_and_loaded_from_there(
    home: Path, head_with: Heads, shared_nodes: tuple[Settings, list[Node]]
) -> None:
    """The nodes have a home of their own here."""
    settings, _ = shared_nodes
    toy = make_checksum_model(settings.home_path / "models" / "theirs", seed=5, quiet_ids=(*QUIET, EOS))
    async with head_with() as head, client_of(head) as client:
        (found,) = await listed(client, "theirs")
        assert (found["source"], found["nodes"], found["own"], found["load"]) == (
            "nodes",
            ["one", "two"],
            False,
            "theirs",
        )
        fits = (await client.post("/library/fits", json={"model": "theirs"})).json()
        assert [(form["title"], form["fit"]) for form in fits["forms"]] == [("as published", "fits")]
        assert len(await listed(client, "theirs")) == 1
        away = toy.rename(settings.home_path / "away")
        again = await client.post("/library/fits", json={"model": "theirs"})  # what it is was taken over
        assert again.json() == fits
        away.rename(toy)
        loaded = await client.post("/control/load", json={"model": "theirs", "quantize": "no"})
        assert loaded.json() == {"done": True, "model": "theirs"}
        chat = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 12}
        reply = (await client.post("/v1/chat/completions", json=chat)).json()
        assert reply["choices"][0]["message"]["content"] == right_answer(toy)
    shutil.rmtree(toy)


async def test_who_is_elsewhere_sees_the_list_and_orders_nothing(home: Path, head_with: Heads) -> None:
    async with head_with() as head:
        key = KeyFile(head.settings.config_path).make("anna")[1]
        async with client_from_elsewhere(head) as client:
            client.headers["x-api-key"] = key
            body = (await client.get("/library")).json()
            assert body["models"]
            assert (body["here"], body["hub"], body["disk"]["folder"]) == (False, None, "")
            assert {(model["place"], model["load"]) for model in body["models"]} == {("", "")}
            for path in ("fits", "inspect", "search", "jobs", "jobs/x"):
                refused = await client.post(f"/library/{path}", json={})
                assert (path, refused.status_code) == (path, 403)
            assert (await client.put("/library/token", json={"token": "hf_right"})).status_code == 403
            assert (await client.delete("/library/models/x")).status_code == 403
