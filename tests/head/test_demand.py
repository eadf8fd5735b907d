"""Models that are loaded on request, make room for one another, are kept, and go when nobody uses them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from tests.head.test_services import ENDLESS, ask_of, shown
from tests.support.checksum import make_checksum_model
from tests.support.cluster import (
    GREEDY,
    Node,
    by_hand,
    cluster_settings,
    fresh_head,
    right_answer,
    running_cluster,
    running_head,
    running_node,
    until,
)
from together.errors import BadRequest, NoRoom, NotServing
from together.head.head import Head
from together.head.service import Service
from together.planning.explain import Infeasible
from together.planning.request import PlanRequest
from together.requests import AnswerChunk, ChatRequest, Message
from together.settings import Settings, parse_aliases, parse_seconds
from together.view import ServingState

NODES = ("anna", "berta")
HEAVY = 70_000  # key heads: a model takes more than half of the memory of both nodes


class Clock:
    """Time that a test turns."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def demanding(
    tmp_path: Path, shared: tuple[Settings, list[Node]], **settings: object
) -> AsyncGenerator[tuple[Head, Clock, dict[str, Path]], None]:
    """A head that loads on request, with three models in its home: `heavy` and `other` do not fit together."""
    home, folders = tmp_path / "home", {}
    for seed, (name, heads) in enumerate({"heavy": HEAVY, "other": HEAVY, "light": 1}.items()):
        folder = home / "models" / name
        folders[name] = make_checksum_model(folder, seed=seed, quiet_ids=ENDLESS, num_key_value_heads=heads)
    own = replace(shared[0], on_demand=True, aliases="gpt-4o=light", **settings)  # type: ignore[arg-type]
    async with fresh_head(home, own, shared[1]) as head:
        clock = Clock()
        head.services.clock = clock
        yield head, clock, folders


async def asked(head: Head, name: str, text: str = "hello", within: float | None = None) -> str:
    request = ChatRequest((Message("user", text),), GREEDY, 12)

    def answer(service: Service) -> AsyncGenerator[AnswerChunk, None]:
        return head.chat(request, service.name)

    return "".join([piece.text async for piece in head.on_demand(name, answer, within)])


@pytest.mark.full  # who goes and who waits is below, one by one
async def test_requests_for_models_that_do_not_fit_together_take_turns(
    tmp_path: Path, shared: tuple[Settings, list[Node]]
) -> None:
    async with demanding(tmp_path, shared) as (head, _, folders):
        texts = [f"question {i}" for i in range(8)]
        names = ["heavy", "other"] * 4
        found = await asyncio.gather(*(asked(head, name, text) for name, text in zip(names, texts, strict=True)))
        assert found == [right_answer(folders[name], text) for name, text in zip(names, texts, strict=True)]
        print(f"8 requests, {head.demands.swaps} swap")
        assert head.demands.swaps == 1  # all that wait for a model are answered in its turn
        assert await asked(head, "gpt-4o") == right_answer(folders["light"])
        assert shown(head).keys() in ({"other", "light"}, {"heavy", "light"})
        for name in (str(folders["heavy"]), "org/name", "unheard"):  # a request cannot name what nobody put here
            with pytest.raises(BadRequest, match="there is no model"):
                await asked(head, name)


async def test_the_least_used_goes_and_what_is_used_or_kept_stays(
    tmp_path: Path, shared: tuple[Settings, list[Node]]
) -> None:
    async with demanding(tmp_path, shared, idle="30m") as (head, clock, folders):
        await head.load(folders["heavy"])
        await head.load(folders["light"], beside=True)
        with pytest.raises(NoRoom, match=r"unload heavy, which has .* GB: python3 launch.py unload heavy"):
            await head.load(folders["other"], beside=True)
        plan = await head.plan(folders["other"], PlanRequest(strategy="uniform"), beside=True)
        assert isinstance(plan, Infeasible)
        assert str(plan.suggestions[0]).startswith("unload heavy")
        service = head.ready("heavy")
        async with head.demands.held("heavy"):
            waiting = asyncio.create_task(asked(head, "other", within=10.0))
            await until(lambda: service.leaving)
            clock.now += 11
            with pytest.raises(NotServing, match="waits for others to make room"):
                await waiting
            assert service.holds == 1
        await until(lambda: "other" in head.services.by_name)
        assert shown(head) == {"light": ServingState.READY, "other": ServingState.READY}  # heavy alone was enough
        again = asyncio.create_task(asked(head, "heavy"))
        await until(lambda: head.ready("other").leaving)
        assert not again.done()  # whoever came too late is still answered
        clock.now += 21
        assert await again == right_answer(folders["heavy"])
        await head.load("light", keep=True)
        clock.now += 30 * 60 - 1
        await head.demands.look_at_idle()
        assert shown(head).keys() == {"light", "heavy"}
        clock.now += 2
        await head.demands.look_at_idle()
        assert shown(head).keys() == {"light"}


async def test_a_kept_model_that_lost_its_place_takes_a_normal_ones(tmp_path: Path) -> None:
    kept, normal = (
        make_checksum_model(tmp_path / name, seed=i, quiet_ids=ENDLESS, num_key_value_heads=HEAVY // 4, step_ms=2)
        for i, name in enumerate(("kept", "normal"))
    )
    async with running_cluster(tmp_path / "home", "anna", "berta", memory="450MB") as (head, nodes):
        await head.load(kept, by_hand("anna=0:4"), keep=True)
        await head.load(normal, by_hand("berta=0:4"), beside=True)
        asking = asyncio.create_task(ask_of(head, kept, 200))
        await until(lambda: head.ready("kept").engine.running)
        nodes[0].kill()
        assert await asking == right_answer(kept, tokens=200)
        gone = next(model.serving for model in head.view().services if model.serving.model == "normal")
        assert gone.state is ServingState.FAILED
        assert "kept is to be kept, lost a part of its ring, and needed its memory" in str(gone.sentence)
        await until(lambda: shown(head)["kept"] is ServingState.READY)


async def test_a_client_that_does_not_read_on_stops_nobody(tmp_path: Path, shared: tuple[Settings, list[Node]]) -> None:
    async with demanding(tmp_path, shared) as (head, clock, folders):
        request = ChatRequest((Message("user", "hello"),), GREEDY, 12)
        slow = head.on_demand("heavy", lambda service: head.chat(request, service.name))
        first = await anext(slow)
        service = head.ready("heavy")
        waiting = asyncio.create_task(asked(head, "other"))
        await until(lambda: service.leaving and not service.computing)
        assert await asked(head, "light") == right_answer(folders["light"])  # what needs no room passes
        assert not service.closed
        clock.now += 16
        assert await waiting == right_answer(folders["other"])
        assert first.text + "".join([piece.text async for piece in slow]) == right_answer(folders["heavy"])


async def test_a_model_that_is_used_for_long_takes_requests_in_between(
    tmp_path: Path, shared: tuple[Settings, list[Node]]
) -> None:
    async with demanding(tmp_path, shared) as (head, clock, folders):
        slow = {"seed": 0, "quiet_ids": ENDLESS, "num_key_value_heads": HEAVY, "step_ms": 50}
        await head.load(make_checksum_model(folders["heavy"], **slow))  # type: ignore[arg-type]
        service = head.ready()
        long = asyncio.create_task(ask_of(head, folders["heavy"], 400))
        await until(lambda: service.computing)
        waiting = asyncio.create_task(asked(head, "other"))
        await until(lambda: service.leaving)
        late = asyncio.create_task(asked(head, "heavy"))
        await until(lambda: len(head.demands.open) == 2)
        clock.now += 61
        assert await late == right_answer(folders["heavy"])
        assert not long.done()
        assert service.leaving
        waiting.cancel()
        long.cancel()
        await asyncio.gather(waiting, long, return_exceptions=True)


async def test_what_is_kept_while_it_is_to_go_stays_and_nothing_goes_for_nobody(
    tmp_path: Path, shared: tuple[Settings, list[Node]]
) -> None:
    async with demanding(tmp_path, shared) as (head, _, folders):
        await head.load(folders["heavy"])
        service = head.ready()
        async with head.demands.held("heavy"):
            waiting = asyncio.create_task(asked(head, "other"))
            await until(lambda: service.leaving)
            waiting.cancel()
            await until(lambda: not service.leaving)  # nobody waits
            assert await asked(head, "heavy") == right_answer(folders["heavy"])
            waiting = asyncio.create_task(asked(head, "other"))
            await until(lambda: service.leaving)
            await head.load("heavy", keep=True)
        with pytest.raises(NotServing, match="does not fit"):
            await waiting
        assert head.demands.swaps == 0
        assert shown(head) == {"heavy": ServingState.READY}


async def test_a_failure_that_nobody_foresaw_is_told_in_a_sentence(
    tmp_path: Path, shared: tuple[Settings, list[Node]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with demanding(tmp_path, shared) as (head, _, __):

        async def fails(*_: object, **__: object) -> Service:
            raise OSError("no space left on device")

        monkeypatch.setattr(head.orders, "carry_out", fails)
        with pytest.raises(NotServing, match="light could not be loaded because of a bug; see the log"):
            await asked(head, "light")


async def test_nothing_goes_as_idle_that_has_an_order(tmp_path: Path, shared: tuple[Settings, list[Node]]) -> None:
    async with demanding(tmp_path, shared, idle="30m") as (head, clock, _):
        slow = make_checksum_model(tmp_path / "slow", quiet_ids=ENDLESS, load_ms=1500)
        await head.load(slow, by_hand("anna=0:4"))
        ordered = asyncio.create_task(head.load("slow", by_hand("berta=0:4")))
        await until(lambda: head.orders.concern(head.ready()))
        clock.now += 31 * 60
        await head.demands.look_at_idle()
        assert await ordered == "slow"
        assert shown(head) == {"slow": ServingState.READY}


def test_times_and_aliases() -> None:
    assert [parse_seconds(text) for text in ("30m", "90s", "2h")] == [1800, 90, 7200]
    assert parse_aliases("gpt-4o=org/name, small=demo") == {"gpt-4o": "org/name", "small": "demo"}


@pytest.mark.full  # one takes a place above
async def test_a_kept_model_that_lost_its_place_takes_only_what_it_needs(tmp_path: Path) -> None:
    """Equal shares would not fit beside nobody; the place of one other is enough."""
    sizes = {"kept": HEAVY // 4, "normal": HEAVY // 4, "small": 1}
    kept, normal, small = (
        make_checksum_model(tmp_path / name, seed=i, quiet_ids=ENDLESS, num_key_value_heads=heads)
        for i, (name, heads) in enumerate(sizes.items())
    )
    settings = cluster_settings(tmp_path / "home")
    memory = {"anna": "450MB", "berta": "450MB", "carla": "140MB"}
    with ExitStack() as stack:
        nodes = [stack.enter_context(running_node(replace(settings, name=n, memory=m))) for n, m in memory.items()]
        async with running_head(settings, *nodes) as head:
            await head.load(kept, by_hand("anna=0:4"), keep=True)
            await head.load(normal, by_hand("berta=0:4"), beside=True)
            await head.load(small, by_hand("carla=0:4"), beside=True)
            nodes[0].kill()
            await until(lambda: shown(head)["normal"] is ServingState.FAILED)
            await until(lambda: shown(head)["kept"] is ServingState.READY)
            assert shown(head)["small"] is ServingState.READY
            assert await ask_of(head, kept) == right_answer(kept)


async def test_a_kept_model_takes_no_memory_that_is_being_loaded_into(tmp_path: Path) -> None:
    sizes = {"kept": HEAVY // 4, "slow": HEAVY // 4, "small": 1}
    kept, slow, small = (
        make_checksum_model(
            tmp_path / name,
            seed=i,
            quiet_ids=ENDLESS,
            num_key_value_heads=heads,
            load_ms=60_000 if name == "slow" else 0,
        )
        for i, (name, heads) in enumerate(sizes.items())
    )
    async with running_cluster(tmp_path / "home", "anna", "berta", memory="450MB") as (head, nodes):
        await head.load(kept, by_hand("anna=0:4"), keep=True)
        await head.load(small, by_hand("berta=0:4"), beside=True)
        loading = asyncio.create_task(head.load(slow, by_hand("berta=0:4"), beside=True))
        await until(lambda: len(nodes[1].stages()) == 2)
        nodes[0].kill()
        await until(lambda: shown(head)["kept"] is ServingState.WAITING)
        assert shown(head)["small"] is ServingState.READY  # its memory alone would not be enough
        loading.cancel()
        await asyncio.gather(loading, return_exceptions=True)
