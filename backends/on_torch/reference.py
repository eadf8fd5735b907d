"""transformers' own `generate` on a whole model, as the yardstick of `bench decode`.

A process: `python -m backends.on_torch.reference FOLDER DEVICE DTYPE`; every line of input, `PROMPT NEW` in
tokens, is a round, answered by one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


class Clock:
    """Takes the place of a text streamer: `generate` hands it the prompt, then every token as it is drawn."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, ids: Any) -> None:
        ids.tolist()  # waits for the device, so the token is really there
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to do."""


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder, device, dtype = sys.argv[1:]
    kind = getattr(torch, DTYPES[dtype])
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, use_safetensors=True)
    model.to(device).eval()
    for line in sys.stdin:
        prompt, new = line.split()
        ids = (torch.arange(int(prompt), device=device) * 31 % model.config.vocab_size)[None]
        print(json.dumps(_round(model, ids, int(new)) | {"threads": torch.get_num_threads()}), flush=True)


def _round(model: Any, ids: Any, count: int) -> dict[str, float]:
    """`count` greedy tokens after the prompt: the first one ends the prefill, the others are decode."""
    clock = Clock()
    began = time.perf_counter()
    model.generate(
        ids,
        attention_mask=ids.new_ones(ids.shape),
        do_sample=False,
        min_new_tokens=count,
        max_new_tokens=count,
        streamer=clock,
    )
    first, last = clock.times[1], clock.times[-1]  # the prompt comes first
    return {
        "prefill_tok_s": ids.shape[1] / (first - began),
        "decode_tok_s": (count - 1) / (last - first),
        "ttft_s": first - began,
    }


if __name__ == "__main__":
    main()
