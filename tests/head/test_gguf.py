"""A GGUF file in a real cluster: three machines of which two have nothing, and files that are refused meanwhile."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.chain import Chain, load_shard, new_sequence
from tests.support.cluster import ask, by_hand, cluster_settings, running_head, start_node
from tests.support.gguf_models import make_gguf
from tests.support.hiding import HIDING, can_hide
from tests.support.pieces import flip
from together.errors import BrokenModel, TogetherError, UnsupportedModel
from together.head.plan import open_model
from together.models.manifest import describe
from together.models.units import units_for
from together.requests import Message
from together.text.tokenizer import TextModel
from together.types import LayerRange
from together.weights.imports import imported
from together.weights.part import size_of

LAYERS = {"anna": LayerRange(0, 1), "berta": LayerRange(1, 3), "carla": LayerRange(3, 4)}
SPLIT = "anna=0:1,berta=1:3,carla=3:4"


def units_in(home: Path) -> dict[str, int]:
    """Units by name, with the time of their last change."""
    return {file.name: file.stat().st_mtime_ns for file in home.glob("shards/*/*.safetensors")}


def taken(home: Path) -> int:
    return sum(size_of(file) for file in home.glob("shards/**/*") if file.is_file())


def greedy(folder: Path, text: str, tokens: int) -> str:
    """What one stage on this machine would answer."""
    words = TextModel.open(folder)
    prompt = words.prompt_ids((Message("user", text),))
    chain = Chain([load_shard(folder, "torch", LayerRange(0, 4))])
    ids = list(chain.greedy(new_sequence(), prompt, tokens))
    chain.shards[0].close()
    return str(words.tokenizer.decode(ids, skip_special_tokens=True))


@pytest.mark.skipif(not can_hide(), reason="this system has no mounts of a process's own")
@pytest.mark.full  # three nodes and six stages that start: a minute
async def test_three_machines_of_which_two_have_nothing(tmp_path: Path) -> None:
    anna, claims = tmp_path / "anna", str(tmp_path / "claims")
    file = make_gguf(anna / "disk")
    folder = await asyncio.to_thread(imported, file, anna / "home")
    base = cluster_settings(anna / "home", memory="2GB", backend="torch", dtype="fp32", exact=True, claims=claims)
    hidden = (*HIDING, str(anna))  # what anna's disk has is not on theirs
    with ExitStack() as stack:
        nodes = [start_node(replace(base, name="anna"))]
        for name in ("berta", "carla"):
            nodes.append(start_node(replace(base, name=name, home=str(tmp_path / name)), within=hidden))
        for node in nodes:
            stack.callback(node.stop)
        for node in nodes:
            node.wait_ready()
        async with running_head(base, *nodes) as head:
            await head.load(file, by_hand(SPLIT))
            told = await asyncio.to_thread(greedy, folder, "the weather", 12)
            assert (await ask(head, "the weather", 12)).strip() == told.strip()
            manifest = describe(folder)
            for name in ("berta", "carla"):
                wanted = units_for(manifest, LAYERS[name])
                assert units_in(tmp_path / name).keys() == {unit.name for unit in wanted}
                small = len(manifest.to_json()) + sum(each.size for each in manifest.small)
                assert taken(tmp_path / name) < 1.1 * (small + sum(unit.size for unit in wanted))
            assert units_in(anna / "home") == {}
            before = {name: units_in(tmp_path / name) for name in LAYERS}

            broken = anna / "disk" / "broken.gguf"
            broken.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
            with pytest.raises(TogetherError, match=r"broken\.gguf"):
                await head.load(broken, by_hand(SPLIT))
            assert (await ask(head, "the weather", 12)).strip() == told.strip(), "what serves goes on"

            await head.unload()
            await head.load(file, by_hand(SPLIT))
            assert {name: units_in(tmp_path / name) for name in LAYERS} == before
            assert (await ask(head, "the weather", 12)).strip() == told.strip()

            await head.unload()
            flip(file, file.stat().st_size // 2)
            with pytest.raises(BrokenModel, match=r"tiny\.gguf was changed since it was loaded; load it again"):
                await head.load(folder, by_hand(SPLIT))
            await head.load(file, by_hand(SPLIT))
            assert head.view().serving.plan is not None


async def test_a_quantized_gguf_model_is_not_quantized_again(tmp_path: Path) -> None:
    file = make_gguf(tmp_path / "disk")
    settings = cluster_settings(tmp_path / "home")
    opened = await open_model(file, settings)
    assert opened.ref.path == str((await asyncio.to_thread(imported, file, tmp_path / "home")).resolve())
    with pytest.raises(UnsupportedModel, match="is quantized already"):
        await open_model(file, settings, "mlx-affine-4-g64@1")
