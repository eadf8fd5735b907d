"""Several models behind one head for a long while: real ones all at once, and a hundred random acts with toys."""

from __future__ import annotations

import asyncio
import random
import shutil
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import RealApp, run_up, until
from tests.head.test_services import ENDLESS, ask_of, shown
from tests.support.checksum import make_checksum_model
from tests.support.cluster import by_hand, right_answer, running_cluster
from tests.support.cluster import until as when
from tests.support.hub_words import make_folder
from tests.support.patience import PATIENCE
from tests.support.smollm2 import smollm2_folder
from together.errors import NotServing
from together.head.head import Head
from together.planning.request import PlanRequest
from together.view import ServingState
from together.weights.find import BUNDLED

pytestmark = pytest.mark.full

TOKENS = 40
QUESTIONS = ("What is the capital of France?", "What is 7 plus 5?")


async def all_answers(head: Head, models: list[str]) -> list[str]:
    """Of all models to all questions, all at once."""
    return await asyncio.gather(*(ask_of(head, name, TOKENS, text) for name in models for text in QUESTIONS))


async def test_three_real_models_answer_at_once_as_each_does_alone(tmp_path: Path) -> None:
    """The demo, a 135M llama and a Qwen3 of random weights, in fp32 over three nodes, of which one is killed."""
    folders = {BUNDLED.name: BUNDLED, smollm2_folder().name: smollm2_folder()}
    folders["qwen"] = make_folder(tmp_path / "qwen", "qwen3")
    names = list(folders)
    options = {"backend": "torch", "dtype": "fp32", "memory": "2GB"}
    async with running_cluster(tmp_path / "home", "anna", "berta", "carla", **options) as (head, nodes):
        alone: list[str] = []
        for name, folder in folders.items():
            assert await head.load(folder, PlanRequest(strategy="uniform")) == name
            alone += await all_answers(head, [name])
        await head.unload()
        for folder in folders.values():
            await head.load(folder, PlanRequest(strategy="uniform"), beside=True)
        assert await all_answers(head, names) == alone
        asking = asyncio.create_task(all_answers(head, names))
        await when(lambda: sum(each.engine.running for each in head.services.by_name.values()) == len(alone))
        nodes[1].kill()
        assert await asking == alone
        await when(lambda: set(shown(head).values()) == {ServingState.READY})
        asking = asyncio.create_task(all_answers(head, names[:2]))
        await head.unload("qwen")
        assert await asking == alone[:4]
        assert list(shown(head)) == names[:2]


async def patient_answer(head: Head, model: Path) -> str:
    """Also of a ring that is being mended."""
    async with asyncio.timeout(PATIENCE):
        while True:
            try:
                return await ask_of(head, model)
            except NotServing:
                await asyncio.sleep(0.05)


async def test_a_hundred_random_acts_disturb_no_other_model(tmp_path: Path) -> None:
    """Loads, unloads, changes and kills: after each all that should serve answer right; in the end nothing is left."""
    chance = random.Random(18)
    toys = [make_checksum_model(tmp_path / name, seed=i, quiet_ids=ENDLESS) for i, name in enumerate("abcd")]
    names = ("anna", "berta", "carla")
    counts = dict.fromkeys(("load", "unload", "change", "kill"), 0)
    async with running_cluster(tmp_path / "home", *names) as (head, nodes):
        before = [node.free_bytes for node in head.view().nodes]
        served: list[Path] = []
        for _ in range(100):
            act = chance.choice(list(counts))
            if act != "load" and not served:
                act = "load"
            if act == "load" and len(served) == len(toys):
                act = "unload"
            counts[act] += 1
            first, second = chance.sample(names, 2)
            split = by_hand(f"{first}=0:{(cut := chance.randint(1, 3))},{second}={cut}:4")
            if act == "load":
                served.append(chance.choice([toy for toy in toys if toy not in served]))
                await head.load(served[-1], split, beside=True)
            elif act == "unload":
                await head.unload(served.pop(chance.randrange(len(served))).name)
            elif act == "change":
                await head.load(chance.choice(served), split, beside=True)
            else:
                stages = [stage for node in nodes for stage in node.stages()]
                chance.choice(stages).kill() if stages else None
            assert list(shown(head)) == [toy.name for toy in served]
            found = await asyncio.gather(*(patient_answer(head, toy) for toy in served))
            assert found == [right_answer(toy) for toy in served]
        for toy in served:
            await head.unload(toy.name)
        await when(lambda: not any(node.stages() for node in nodes))
        await when(lambda: all(abs(a - b.free_bytes) < 2**27 for a, b in zip(before, head.view().nodes, strict=True)))
        print(counts)


def rss(app: RealApp) -> float:
    return psutil.Process(app.process.pid).memory_info().rss / 1e6


def idle_share(app: RealApp) -> float:
    """Of a core, in percent, over some seconds in which nobody asks for anything."""
    head = psutil.Process(app.process.pid)
    head.cpu_percent()
    time.sleep(10)
    return head.cpu_percent()


def test_three_idle_models_cost_the_head_little(tmp_path: Path) -> None:
    with run_up(tmp_path) as app:
        alone, one = rss(app), idle_share(app)
        for name in ("one", "two"):
            folder = shutil.copytree(BUNDLED, tmp_path / "models" / name)
            loaded = app.post("/control/load", {"model": str(folder), "beside": True})
            assert loaded.is_success, loaded.text
        until(lambda: len(app.status()["services"]) == 3, PATIENCE, "all serve")
        more, three = rss(app) - alone, idle_share(app)
        print(f"two more models: {more:.1f} MB; idle {one:.2f} % of a core with one, {three:.2f} % with three")
        assert more < 60
