"""Frames that nobody meant, thousands of them: each is answered, the stages live, and nothing grows."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.ring import words
from tests.ring.stages import raw_ring, running_stages
from tests.support.checksum import expected_tokens, make_checksum_model
from tests.support.mutants import mutants
from together.ring import wire
from together.types import LayerRange, Sampling

PROMPT = (256, 72, 105, 33)
GREEDY = Sampling(temperature=0.0)
GROWTH = 32 * 2**20  # bytes: allocators keep some of what they had
LONG = [pytest.mark.full, pytest.mark.timeout(3600)]  # hypothesis alone takes minutes


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=LONG)])
async def test_mutated_frames_are_answered_and_harm_nothing(count: int, tmp_path: Path) -> None:
    toy = make_checksum_model(tmp_path / "toy", context=256)
    frames = mutants([(wire.FRAME.encode, words.frames)], count)
    async with running_stages(toy, LayerRange(0, 2), LayerRange(2, 4)) as stages, raw_ring(stages) as ring:
        await ring.join()
        for frame in frames[:100]:
            await ring.ask(frame)
        before = [psutil.Process(stage.status.pid).memory_info().rss for stage in stages]
        for frame in frames[100:]:
            await ring.ask(frame)
        after = [psutil.Process(stage.status.pid).memory_info().rss for stage in stages]
        await ring.join()
        assert await ring.generate(PROMPT, 4, sequence=2**40) == expected_tokens(toy, PROMPT, 4, GREEDY)
        assert max(now - then for then, now in zip(before, after, strict=True)) < GROWTH
