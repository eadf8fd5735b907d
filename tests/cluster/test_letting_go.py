"""A full cache lets go of what its machine can make again: the view and both terminals say so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.desktop.joining import Program, running
from tests.support.checksum import make_checksum_model
from tests.support.cluster import cluster_settings, until
from tests.support.hiding import HIDING, can_hide
from tests.support.mlx_folders import make_plain
from together.api.app import view_json
from together.cluster_types import Endpoint
from together.desktop.joining import tell_of_nodes
from together.desktop.show import Screen
from together.errors import TogetherError
from together.head.head import Head
from together.models.manifest import describe
from together.models.names import NORM_UNIT, layer_unit
from together.planning.request import PlanRequest
from together.weights.converting import make_units
from together.weights.store import Store, begin_form, known_model

FOUR = "mlx-affine-4-g64@1"
WIDTH = 1024  # of the toy: embedding and head have 1 MB each
GONE = "the cache was full: tiny in 4 bit was let go, "

pytestmark = pytest.mark.skipif(not can_hide(), reason="this system has no mounts of a process's own")


def make_form(home: Path) -> Path:
    """A model of a machine, and its form in the machine's cache, whose folder it returns."""
    plain, store = make_plain(home / "models" / "tiny", "llama", "bf16", num_hidden_layers=1), Store(home)
    folder = begin_form(plain, describe(plain), FOUR, store)
    make_units(store, plain, folder.name, [NORM_UNIT, layer_unit(0)], lambda done: None)
    return folder


def make_both(folder: Path) -> tuple[Path, Path]:
    """The form of a model in the cache of one machine, and the toy of another one."""
    return make_form(folder / "vm"), make_checksum_model(folder / "studio" / "disk" / "toy", width=WIDTH)


def needed(toy: Path) -> int:
    return sum(unit.size for unit in describe(toy).units.values())


@asynccontextmanager
async def two_machines(tmp_path: Path, cache: int) -> AsyncIterator[tuple[Head, Program]]:
    """A head, and a node whose cache may have so many bytes and which does not see the head's disk."""
    settings = cluster_settings(tmp_path / "studio")
    other = replace(settings, home=str(tmp_path / "vm"), name="vm", cache=f"{cache}B", claims=str(tmp_path / "claims"))
    with running(other, "node", within=(*HIDING, str(tmp_path / "studio"))) as node:
        port = await asyncio.to_thread(port_of, node)
        head = Head(settings, (Endpoint(("127.0.0.1",), port),))
        await head.start()
        telling = asyncio.create_task(tell_of_nodes(head, 0, Screen()))
        try:
            await until(lambda: head.view().nodes)
            yield head, node
        finally:
            telling.cancel()
            await head.stop()
        node.stop()


def port_of(node: Program) -> int:
    return int(node.wait_for("lends").partition("ports ")[2].split()[0])


def said(capsys: pytest.CaptureFixture[str], before: list[str]) -> str:
    """All that this process's terminal got."""
    before.append(capsys.readouterr().out)
    return "".join(before)


async def test_a_load_that_lets_something_go_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    form, toy = await asyncio.to_thread(make_both, tmp_path)
    size, lines = known_model(form, tmp_path / "vm").bytes, list[str]()
    async with two_machines(tmp_path, cache=size + needed(toy)) as (head, node):
        await head.load(toy, PlanRequest(strategy="uniform"))
        assert not form.exists()
        (gone,) = head.view().nodes[0].let_go
        assert (gone.model, gone.form, gone.bytes) == ("tiny", "4 bit", size)
        shown: Any = view_json(head.view())["nodes"]
        assert shown[0]["let_go"][0]["sentence"] == str(gone.sentence)
        await asyncio.to_thread(node.wait_for, "runs layers")
        await until(lambda: f"vm: {GONE}" in said(capsys, lines))
    assert said(capsys, lines).count(GONE) == 1
    assert [line.startswith(GONE) for line in node.lines if "let go" in line] == [True]


async def test_a_cache_that_is_too_small_lets_nothing_go(tmp_path: Path) -> None:
    form, toy = await asyncio.to_thread(make_both, tmp_path)
    async with two_machines(tmp_path, cache=needed(toy) - 1) as (head, node):
        with pytest.raises(TogetherError, match=r"vm: .*toy \(.*\) needs .* more in the cache"):
            await head.load(toy, PlanRequest(strategy="uniform"))
        view = head.view()
        assert "more in the cache" in str(view.serving.sentence)
        assert view.nodes[0].let_go == ()
        assert form.exists()
        await asyncio.to_thread(node.wait_for, "more in the cache")
    assert node.count("let go") == 0
