"""What every ring of a quantized model must do: compute as transformers does on the weights widened."""

from __future__ import annotations

from pathlib import Path

from tests.support.chain import Chain, assert_close, new_sequence, row
from tests.support.families import prompt_ids, reference_greedy, reference_logits

PROMPT = prompt_ids(24)


def conforms(chain: Chain, judge: Path) -> None:
    """`judge` is a plain folder in fp32 with the same weights."""
    assert_close(chain.logits(row(new_sequence(), 0, PROMPT)), reference_logits(judge, PROMPT))
    assert chain.greedy(new_sequence(), PROMPT, 8) == reference_greedy(judge, PROMPT, 8)
