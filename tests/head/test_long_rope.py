"""A model with two ropes: the context that it is loaded with chooses, and another one gives it other stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.support.cluster import GREEDY, by_hand, running_cluster
from tests.support.families import make_checkpoint, reference_greedy
from tests.support.lightest import LIGHTEST
from tests.support.tokenizers import byte_level, write_text_files
from together.head.head import Head
from together.requests import CompletionRequest
from together.text.tokenizer import TextModel

TRAINED, TOKENS = 48, 6


async def said(head: Head, text: str) -> str:
    request = CompletionRequest((text,), GREEDY, TOKENS)
    return "".join([piece.text async for piece in head.complete(request)])


def right(folder: Path, text: str) -> str:
    model = TextModel.open(folder)
    return model.tokenizer.decode(reference_greedy(folder, model.encode(text), TOKENS))


async def test_the_context_chooses_a_rope(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    sizes: dict[str, Any] = {"original_max_position_embeddings": TRAINED, "max_position_embeddings": 256}
    make_checkpoint(folder, "phi3-long", vocab_size=330, eos_token_id=1, **sizes)
    write_text_files(folder, byte_level(), "{{ messages[0].content }}", eos=1)
    short, long = "Who takes the hidden states?", "Who takes the hidden states, and where? " * 3
    async with running_cluster(tmp_path, "anna", "berta", backend=LIGHTEST, dtype="fp32", exact=True) as (head, _):
        await head.load(folder, replace(by_hand("anna=0:2,berta=2:4"), context=TRAINED))
        assert await said(head, short) == right(folder, short)
        before = {stage.pid for node in head.view().nodes for stage in node.stages}
        await head.load(folder, replace(by_hand("anna=0:2,berta=2:4"), context=160))
        assert await said(head, long) == right(folder, long)
        assert not before & {stage.pid for node in head.view().nodes for stage in node.stages}
