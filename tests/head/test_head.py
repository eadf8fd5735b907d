"""The head over real nodes: it loads, answers, explains what broke, loads again, and leaves nothing behind."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
import pytest_asyncio

from tests.support.checksum import EOS as END
from tests.support.checksum import QUIET, make_checksum_model
from tests.support.cluster import (
    Node,
    ask,
    by_hand,
    cluster_settings,
    right_answer,
    running_cluster,
    running_head,
    until,
)
from tests.support.folders import write_model
from tests.support.patience import PATIENCE
from together.cluster_types import NodeState
from together.errors import BadPlan, BadSetting, LoadFailed, NotEnoughMemory, NotServing, UnsupportedModel
from together.head.head import Head
from together.types import LayerRange, Sampling
from together.view import ServingState

pytestmark = pytest.mark.asyncio(loop_scope="module")

ENDLESS = (*QUIET, END)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checksum_model(tmp_path_factory.mktemp("toy") / "model", quiet_ids=ENDLESS)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[tuple[Head, list[Node]]]:
    async with running_cluster(tmp_path_factory.mktemp("home"), "anna", "berta") as cluster:
        yield cluster


@pytest.fixture
def head(cluster: tuple[Head, list[Node]]) -> Head:
    return cluster[0]


@pytest.fixture
def nodes(cluster: tuple[Head, list[Node]]) -> list[Node]:
    return cluster[1]


def shown(head: Head) -> tuple[ServingState, str]:
    serving = head.view().serving
    return serving.state, str(serving.cause)


def ranges(head: Head) -> list[LayerRange]:
    plan = head.view().serving.plan
    assert plan is not None
    return [stage.layers for stage in plan.stages]


# --- loading ----------------------------------------------------------------------------------------------------------


async def test_without_a_model_a_chat_says_what_to_do(head: Head) -> None:
    with pytest.raises(NotServing, match="no model is loaded; load one"):
        await ask(head)
    assert shown(head) == (ServingState.EMPTY, "")


async def test_equal_parts_on_all_nodes(head: Head, toy: Path) -> None:
    await head.load(toy)
    assert ranges(head) == [LayerRange(0, 2), LayerRange(2, 4)]
    assert len({stage.node for stage in head.view().serving.plan.stages}) == 2  # type: ignore[union-attr]
    assert shown(head) == (ServingState.READY, "")
    texts = [f"message {i}" for i in range(3)]
    assert await asyncio.gather(*(ask(head, text) for text in texts)) == [right_answer(toy, text) for text in texts]


async def test_given_boundaries_and_settings_that_reach_the_last_stage(head: Head, toy: Path) -> None:
    await head.load(toy, by_hand("0:3,3:4"))
    assert ranges(head) == [LayerRange(0, 3), LayerRange(3, 4)]
    drawn = Sampling(temperature=1.2, top_k=12, top_p=0.9, seed=7)
    assert await ask(head, sampling=drawn) == right_answer(toy, sampling=drawn)
    assert await ask(head) == right_answer(toy)


@pytest.mark.parametrize(
    ("layers", "sentence"),
    [
        ("0:3", "layers 3:4 are in no range"),
        ("0:1,2:4", "layers 1:2 are in no range"),
        ("0:3,2:4", "layers 2:3 are in two ranges"),
        ("0:1,1:2,2:4", "3 ranges and there are 2 nodes"),
        ("anna=0:2,carla=2:4", "there is no node carla; there are: anna, berta"),
    ],
)
async def test_layers_that_make_no_plan(head: Head, toy: Path, layers: str, sentence: str) -> None:
    await head.unload()
    with pytest.raises(BadPlan, match=sentence) as error:
        await head.load(toy, by_hand(layers))
    assert shown(head) == (ServingState.FAILED, str(error.value))
    with pytest.raises(NotServing, match=sentence):
        await ask(head)


async def test_folders_that_are_no_model(head: Head, tmp_path: Path) -> None:
    await head.unload()
    with pytest.raises(BadSetting, match="nowhere"):
        await head.load(tmp_path / "nowhere")
    with pytest.raises(UnsupportedModel, match="unheard_of"):
        await head.load(write_model(tmp_path / "odd", model_type="unheard_of"))
    state, cause = shown(head)
    assert state is ServingState.FAILED
    assert "unheard_of" in cause


async def test_a_folder_that_is_no_model_leaves_what_serves_alone(head: Head, toy: Path, tmp_path: Path) -> None:
    await head.load(toy)
    with pytest.raises(BadSetting, match="nowhere"):
        await head.load(tmp_path / "nowhere")
    assert shown(head) == (ServingState.READY, "")
    assert await ask(head) == right_answer(toy)


async def test_too_little_memory_is_refused_before_anything_is_loaded(
    head: Head, nodes: list[Node], tmp_path: Path
) -> None:
    huge = make_checksum_model(tmp_path / "huge", num_key_value_heads=2**18)
    await head.unload()
    with pytest.raises(
        NotEnoughMemory, match=r"hold 0 of its 4 layers; 8\.6 GB are missing .*\n- add a node with 8\.6 GB"
    ):
        await head.load(huge)
    assert [node.stages() for node in nodes] == [[], []]


async def test_a_stage_that_cannot_load_takes_the_others_with_it(head: Head, nodes: list[Node], tmp_path: Path) -> None:
    lying = make_checksum_model(tmp_path / "lying", block=2**30)  # the plan believes in blocks of 256 tokens
    with pytest.raises(LoadFailed, match=r"node (anna|berta): stage \d \(layers \d:\d\): .* were granted"):
        await head.load(lying)
    assert [node.stages() for node in nodes] == [[], []]
    assert shown(head)[0] is ServingState.FAILED


async def test_the_view_follows_a_load_to_its_end_and_back(head: Head, tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "unhurried", load_ms=800)
    seen: list[tuple[ServingState, float]] = []
    loading = asyncio.create_task(head.load(toy))
    async with asyncio.timeout(PATIENCE), aclosing(head.changes()) as views:  # type: ignore[type-var]  # it is a generator
        async for view in views:
            seen.append((view.serving.state, view.serving.progress))
            if view.serving.state is ServingState.READY:
                break
            if view.serving.state is ServingState.LOADING and view.serving.progress > 0.1:
                with pytest.raises(
                    NotServing, match=r"unhurried is being loaded: loading the layers(, \d+%)?; try again in a moment"
                ):
                    await ask(head)
    await loading
    states = [state for state, _ in seen]
    assert states[-1] is ServingState.READY
    assert len({progress for state, progress in seen if state is ServingState.LOADING}) >= 3
    await head.unload()
    assert shown(head) == (ServingState.EMPTY, "")
    await until(lambda: [node.state for node in head.view().nodes] == [NodeState.IDLE] * 2)
    with pytest.raises(NotServing, match="no model is loaded"):
        await ask(head)


async def test_two_heads_on_the_same_nodes_keep_apart(head: Head, nodes: list[Node], toy: Path, tmp_path: Path) -> None:
    other = make_checksum_model(tmp_path / "other", layers=5, seed=3, step_ms=2, quiet_ids=ENDLESS)
    async with running_head(head.settings, *nodes) as second:
        await asyncio.gather(head.load(toy), second.load(other, by_hand("0:1,1:5")))
        both = await asyncio.gather(ask(head, tokens=6), ask(second, tokens=6))
        assert list(both) == [right_answer(toy, tokens=6), right_answer(other, tokens=6)]
        assert [len(node.stages()) for node in nodes] == [2, 2]
        await head.unload()
        assert [len(node.stages()) for node in nodes] == [1, 1]
        assert await ask(second, tokens=6) == right_answer(other, tokens=6)
    assert [node.stages() for node in nodes] == [[], []]


async def test_no_moment_without_a_model_between_two_models(head: Head, toy: Path, tmp_path: Path) -> None:
    """Looked at in every turn of the loop, so that a flash of one turn is seen, too."""
    other = make_checksum_model(tmp_path / "other", seed=2, quiet_ids=ENDLESS)
    seen: list[tuple[ServingState, str, str]] = []

    async def look() -> None:
        while True:
            serving = head.view().serving
            now = (serving.state, serving.model, str(serving.step))
            if not seen or seen[-1] != now:
                seen.append(now)
            await asyncio.sleep(0)

    await head.load(toy)
    looking = asyncio.create_task(look())
    await head.load(other)
    looking.cancel()
    assert (ServingState.LOADING, "other", f"ending {toy.name}") in seen
    assert ServingState.EMPTY not in {state for state, _, _ in seen}
    models = [model for _, model, _ in seen]
    assert models == sorted(models)  # one, then the other, and never back
    assert await ask(head) == right_answer(other)


async def test_a_task_that_ends_before_its_head_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def ends() -> None:
        raise ZeroDivisionError

    head = Head(cluster_settings(tmp_path))
    monkeypatch.setattr(head.demands, "run", ends)
    await head.start()
    await until(lambda: "a task of the head has ended" in caplog.text)
    assert "ZeroDivisionError" in caplog.text
    await head.stop()
