"""A real model tells stories in the terminal: they end by themselves or say that they were cut off, and are English."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.conftest import RealApp, run_up
from tests.support.smollm2 import smollm2_folder
from together.models.generation import USUAL
from together.requests import Message
from together.text.tokenizer import TextModel

QUESTION = "Write a short story about a fox."
SEEDS, LIMIT = range(1, 5), 256
COMMON = set("a an and as at be but by for from had have he her his i in is it its not of on or she that the".split())
COMMON |= set("their them they this to was were with you fox".split())
EDGE = 1e-3  # of a probability: how far rounding may move the nucleus's end
MINUTES = 900.0


def stories(app: RealApp) -> list[CompletedProcess[str]]:
    def story(seed: int) -> CompletedProcess[str]:
        return app.command("chat", QUESTION, "--seed", str(seed), "--max-tokens", str(LIMIT), timeout=MINUTES)

    with ThreadPoolExecutor(len(SEEDS)) as pool:
        return list(pool.map(story, SEEDS))


def outside(folder: Path, said: str) -> list[int]:
    """The places of the answer's tokens that our defaults could not have drawn from what transformers computes."""
    text = TextModel.open(folder)
    prompt, answer = text.prompt_ids((Message("user", QUESTION),)), text.encode(said)
    ids = torch.tensor([[*prompt, *answer]])  # [1, prompt + answer]
    with torch.inference_mode():
        logits = AutoModelForCausalLM.from_pretrained(folder)(ids).logits[0, len(prompt) - 1 : -1].double()
    chances, order = torch.softmax(logits / USUAL.temperature, -1).sort(-1, descending=True)  # [answer, vocabulary]
    kept = chances.cumsum(-1) - chances < USUAL.top_p + EDGE
    drawn = order == torch.tensor(answer)[:, None]
    return [place for place, fits in enumerate((kept & drawn).any(-1).tolist()) if not fits]


@pytest.mark.full
@pytest.mark.timeout(3 * MINUTES)
def test_stories_end_or_say_so_and_are_what_the_model_says(tmp_path: Path) -> None:
    folder = smollm2_folder()
    with run_up(tmp_path, "--model", str(folder), "--users", "4", "--context", "512") as app:
        told = stories(app)
    cut = f"(the answer was cut off at its limit of {LIMIT} tokens; for a longer one add: --max-tokens {2 * LIMIT})\n"
    for story in told:
        assert story.returncode == 0
        assert story.stderr in ("", cut)
        words = re.findall(r"[a-z']+", story.stdout.lower())
        common = [word for word in words[-60:] if word in COMMON]
        assert len(common) > 15, f"no English at the end of {story.stdout!r}"
        assert outside(folder, story.stdout.removesuffix("\n")) == []
    assert len({story.stdout for story in told}) == len(told)
