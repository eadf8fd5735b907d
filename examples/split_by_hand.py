"""Split a model by hand over the devices of this machine and ask it, from Python.

`.venv/bin/python examples/split_by_hand.py` runs as it is, with the bundled model in two processes on the CPU of any
machine. With an NVIDIA GPU, try "cuda:0" in place of the first "cpu".
"""

from __future__ import annotations

import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(CHECKOUT))  # so that it runs from any folder

from together.scripting import PartitionStrategy, partition  # noqa: E402

MODEL = CHECKOUT / "examples" / "demo_model"  # 8 layers
STRATEGY = PartitionStrategy(
    num_partitions=2,
    strategy_type="custom",
    custom_boundaries=[(0, 4), (5, 7)],  # first and last layer, both included
    target_devices=["cpu", "cpu"],  # the first partition's device, the second one's
)


def main() -> None:
    with partition(MODEL, STRATEGY) as model:  # one process per partition, ended with this block
        print(model)
        print(model.generate("What is the capital of France?", max_tokens=32))
        conversation = [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello! What would you like to know?"},
            {"role": "user", "content": "What is 7 + 5?"},
        ]
        for piece in model.stream(conversation, top_k=40, temperature=0.2, seed=1):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
