"""Asks the written model held-out questions and prints how many answers are right, for each kind and in total.

It does not know how the model was trained; it reads only the files that everybody else reads.
"""

from __future__ import annotations

import argparse
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

import corpus

FOLDER = Path(__file__).parent
FIRST_TRIED = (
    ("What is the capital of France?", "Paris"),
    ("capital of France?", "Paris"),
    ("what's the capital of germany", "Berlin"),
    ("hi", "Hello!"),
    ("Hello!", "Hello!"),
    ("who are you", "demonstration model of together"),
    ("what is 2+2?", "2 + 2 = 4."),
    ("What is 7 times 8?", "56"),
    ("what is a node?", "agent of one machine"),
    ("how do I add a machine?", "launch.py node"),
    ("How do I start?", "launch.py,"),
    ("is my text sent to the internet?", "No, your text stays"),
    ("How many metres are in 3 kilometres?", "3000 metres"),
    ("What is a volcano?", "melted rock"),
    ("Count from 1 to 100.", "98, 99, 100."),
    ("Who won the world cup in 2018?", "do not know"),
    ("Write a poem about the sea", "do not know"),
    ("thanks!", "welcome"),
)


class Model:
    """The written model in float32, answering greedily."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
        self.network: Any = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def answers(self, prompts: Sequence[corpus.Conversation], max_new_tokens: int = 400) -> list[str]:
        """The answer to each prompt; prompts are padded on the left and answered together."""
        messages = [[{"role": m.role, "content": m.content} for m in prompt] for prompt in prompts]
        inputs = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
        )
        with torch.inference_mode():
            output = self.network.generate(**inputs, do_sample=False, max_new_tokens=max_new_tokens)
        new = output[:, inputs["input_ids"].shape[1] :]
        texts: list[str] = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        return texts

    def first_tried(self) -> list[str]:
        """The answers to what people type first, each without history."""
        return self.answers([(corpus.Message("user", text),) for text, _ in FIRST_TRIED])


def ask(model: Model, cases: Sequence[corpus.Case], batch: int = 64) -> list[tuple[corpus.Case, str]]:
    """Each case with the model's answer. Long answers are asked together, so that short ones do not wait for them."""
    ordered = sorted(cases, key=lambda case: (len(case.answer) > 120, sum(len(m.content) for m in case.prompt)))
    done: list[tuple[corpus.Case, str]] = []
    for start in range(0, len(ordered), batch):
        part = ordered[start : start + batch]
        longest = max(len(case.answer) for case in part)
        done += zip(part, model.answers([case.prompt for case in part], longest // 2 + 40), strict=True)
    return done


def report(answered: Sequence[tuple[corpus.Case, str]], show: int) -> float:
    """Print the score of each kind and some wrong answers; returns the share that is right in total."""
    asked = Counter(case.kind for case, _ in answered)
    good = Counter(case.kind for case, text in answered if text == case.answer)
    for kind, count in asked.items():
        print(f"{kind:24} {good[kind]:5} of {count:5}  {good[kind] / count:6.1%}")
    share = good.total() / asked.total()
    print(f"{'total':24} {good.total():5} of {asked.total():5}  {share:6.1%}")
    wrong = [(case, text) for case, text in answered if text != case.answer]
    for case, text in wrong[:: max(1, len(wrong) // show)] if show else []:
        print(f"  [{case.kind}] {case.prompt[-1].content!r} -> {text!r}")
    return share


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--per-kind", type=int, default=100)
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--show", type=int, default=30, help="how many wrong answers to print")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    torch.manual_seed(0)
    model = Model(options.folder)
    for (text, part), answer in zip(FIRST_TRIED, model.first_tried(), strict=True):
        print("ok   " if part in answer else "WRONG", text, "->", textwrap.shorten(answer, 120))
    share = report(ask(model, corpus.cases(options.seed, options.per_kind)), options.show)
    raise SystemExit(0 if share >= 0.9 else 1)


if __name__ == "__main__":
    main()
