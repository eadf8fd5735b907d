"""transformers' own `generate` on a whole model, as the yardstick of `bench decode`. Knows nothing of shards.

A process: `python -m backends.torch_backend_reference FOLDER DEVICE DTYPE PROMPT NEW`; every line of input is a round,
answered by one line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder, device, dtype, prompt, new = sys.argv[1:]
    kind = getattr(torch, DTYPES[dtype])
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=kind, use_safetensors=True)
    model.to(device).eval()
    length, count = int(prompt), int(new)
    ids = (torch.arange(length, device=device) * 31 % model.config.vocab_size)[None]
    for _ in sys.stdin:
        first = _generate(model, ids, 1)
        total = _generate(model, ids, count)
        print(json.dumps(_run(length, count, first, total)), flush=True)


def _generate(model: Any, ids: Any, count: int) -> float:
    """Seconds for `count` greedy tokens after the prompt; the ids come back to the CPU, so the work is finished."""
    began = time.perf_counter()
    model.generate(
        ids, attention_mask=ids.new_ones(ids.shape), do_sample=False, min_new_tokens=count, max_new_tokens=count
    ).tolist()
    return time.perf_counter() - began


def _run(length: int, count: int, first: float, total: float) -> dict[str, float]:
    return {"prefill_tok_s": length / first, "decode_tok_s": (count - 1) / (total - first), "ttft_s": first}


if __name__ == "__main__":
    main()
